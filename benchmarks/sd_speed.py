"""Stable Diffusion 1.5 at full size, 512 by 512 pixels, random weights: ours beside its peers, in turn.

    python benchmarks/sd_speed.py [--compiled] [--openvino] [--fast] [--only decode] [--device cuda]
                                  [--half float16] [--float32] [--tiny]

A step is one call of the U-Net on one picture twice, with two texts, as guidance asks; a decode is the VAE's, of one
picture. The first call of each is not among those timed: it has its own column, and with it what has to be done once,
compiling with torch.compile, converting with OpenVINO, making weights ready (once a picture: miniai/nn/painting.py).
The error is that of the output against Diffusers' in float32, root mean square over the root mean square of the output.
Memory and the time to start are measured by benchmarks/sd_process.py.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from miniai.base.configs import config_to_dict
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPTextModel
from miniai.nn.packed import pack_weights
from miniai.nn.painting import painting
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.recipes.model_card import machine
from miniai.recipes.training import initial_weights
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer

Rows = dict[str, Callable[[], Tensor]]
EXACT, PEER = "Diffusers, float32", "Diffusers, bfloat16"
SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}
N_STEPS = 20
FAST_MODES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "deep features of 3 steps": {"cache_interval": 3},
    "guidance between sigma 0.3 and 5": {"guidance_interval": (0.3, 5.0)},
    "both": {"cache_interval": 3, "guidance_interval": (0.3, 5.0)},
}


class Step(nn.Module):
    """A U-Net, ours or another, as tensors to a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        out = self.network(latents, timestep, text)
        return out if isinstance(out, Tensor) else out.sample


class Decode(nn.Module):
    """The same for an autoencoder's decoder."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor) -> Tensor:
        out = self.network.decode(latents)
        return out if isinstance(out, Tensor) else out.sample


@dataclass(frozen=True)
class Task:
    """What is timed: a network of Diffusers and its counterpart here."""

    name: str
    call: Callable[[nn.Module], nn.Module]
    theirs: Any
    ours: Any
    config: Any
    inputs: tuple[Tensor, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each, in turn")
    parser.add_argument(
        "--compiled", action="store_true", help="compiled networks, too (minutes; needs a C++ compiler)"
    )
    parser.add_argument("--openvino", action="store_true", help="OpenVINO, too (pip install -e '.[benchmark]')")
    parser.add_argument("--only", choices=["guided step", "decode"], help="one of the two tables")
    parser.add_argument("--fast", action="store_true", help="only the fast modes, over 20 steps")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--half", choices=["bfloat16", "float16"], help="of a GPU's two half precisions, this one alone"
    )
    parser.add_argument(
        "--float32", action="store_true", help="all in float32: for CPUs that have no units for bfloat16"
    )
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the script out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    diffusers.utils.logging.set_verbosity_error()
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{machine()}; {where}, diffusers {diffusers.__version__}\n")
    with torch.inference_mode():
        if options.fast:
            compare(
                f"{N_STEPS} steps", fast_modes(options.device), max(1, options.repeats // 3), "as it is", "as it is"
            )
            return
        for task in tasks(options.tiny):
            if options.only not in (None, task.name):
                continue
            peer = EXACT if options.float32 else PEER if options.half is None else f"Diffusers, {options.half}"
            with ExitStack() as being_painted:
                with initial_weights(0), torch.inference_mode(False), torch.device(options.device):
                    rows = networks(task, options, being_painted)
                compare(task.name, rows, options.repeats, EXACT, peer)
                del rows


def tasks(tiny: bool) -> list[Task]:
    generator = torch.Generator().manual_seed(0)
    unet = UNetConfig(block_out_channels=(32, 64, 64, 64), layers_per_block=1) if tiny else UNetConfig()
    vae = VAEConfig(block_out_channels=(32,) * 4, layers_per_block=1) if tiny else VAEConfig()
    side = 16 if tiny else 64
    latents, text = torch.randn(1, 4, side, side, generator=generator), torch.randn(2, 77, 768, generator=generator)
    step = (torch.cat([latents] * 2), torch.tensor([500, 500]), text)
    unets, vaes = (diffusers.UNet2DConditionModel, UNet2DConditionModel), (diffusers.AutoencoderKL, AutoencoderKL)
    return [
        Task("guided step", Step, *unets, unet, step),
        Task("decode", Decode, *vaes, vae, (latents,)),
    ]


def networks(task: Task, options: argparse.Namespace, being_painted: ExitStack) -> Rows:
    """Each row a network with the same weights, ready to be called until `being_painted` ends."""
    device = torch.device(options.device)
    reference = task.theirs(**config_to_dict(task.config)).eval()
    state = reference.state_dict()
    rows: Rows = {}

    def add(name: str, network: nn.Module, dtype: torch.dtype, layout: torch.memory_format, **compiler: Any) -> None:
        run = task.call(network.to(device, dtype).to(memory_format=layout))  # type: ignore[call-overload]
        if compiler:
            name, run = f"{name}, compiled", torch.compile(run, **compiler)
        inputs = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in task.inputs]
        inputs = [x.contiguous(memory_format=layout) if x.ndim == 4 else x for x in inputs]
        rows[name] = lambda: run(*inputs)

    def theirs(dtype: torch.dtype) -> nn.Module:
        network = task.theirs(**config_to_dict(task.config)).to(dtype).eval()
        network.load_state_dict(state)
        return network

    def ours(dtype: torch.dtype) -> nn.Module:
        network = task.ours(task.config).to(dtype).eval()
        network.load_state_dict(state)
        return network

    plain, nhwc = torch.contiguous_format, torch.channels_last
    best = plain if device.type == "cuda" and task.name == "decode" else nhwc  # as `packed` of the pipeline has it
    graphs = {"mode": "reduce-overhead"} if device.type == "cuda" else {"mode": "default"}
    add(EXACT, reference, torch.float32, plain)
    if options.compiled and options.half is None:
        add(EXACT, reference, torch.float32, plain, **graphs)
    if options.float32:
        network = ours(torch.float32)
        being_painted.enter_context(painting(network))
        add("miniai, float32", network, torch.float32, plain)
    halves = () if options.float32 else ("bfloat16", "float16") if device.type == "cuda" else ("bfloat16",)
    for name in (options.half,) if options.half else halves:
        dtype = getattr(torch, name)
        add(f"Diffusers, {name}", theirs(dtype), dtype, plain)
        network = ours(dtype)
        add(f"miniai, {name}", pack_weights(network) if device.type == "cpu" else network, dtype, best)
        if options.compiled:
            add(f"Diffusers, {name}", theirs(dtype), dtype, best if device.type == "cuda" else plain, **graphs)
            add(f"miniai, {name}", ours(dtype), dtype, best, **graphs)
    if options.openvino:
        name = "float32" if options.float32 else "bfloat16"
        rows[f"OpenVINO, {name}"] = with_openvino(task, task.call(reference), name)
    return rows


def with_openvino(task: Task, network: nn.Module, precision: str) -> Callable[[], Tensor]:
    """The network converted to OpenVINO at its first call, which computes it in that precision on the CPU."""
    import openvino

    @functools.cache
    def compiled() -> Any:
        model = openvino.convert_model(network, example_input=task.inputs)
        model.reshape({port: list(x.shape) for port, x in zip(model.inputs, task.inputs, strict=True)})
        hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
        hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return openvino.compile_model(model, "CPU", hints)

    inputs = [x.contiguous().numpy() for x in task.inputs]
    return lambda: torch.from_numpy(compiled()(inputs)[0])


def fast_modes(device: str) -> Rows:
    """A whole painting in latents: as it is, and in each fast mode."""
    dtype = torch.bfloat16
    with initial_weights(0):
        text_encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1))
        small = AutoencoderKL(VAEConfig(block_out_channels=(32,) * 4))  # nothing is decoded
        unet = UNet2DConditionModel(UNetConfig())
    tokenizer = CLIPTokenizer.train(["a cat"], 600, 77)
    pipe = StableDiffusionPipeline(tokenizer, text_encoder.eval(), unet.eval(), small.eval(), SCHEDULER)
    pipe.to(device, dtype)
    pipe.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pipe.packed()
    embeds = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(1))

    def painting(options: dict[str, Any]) -> Callable[[], Tensor]:
        return lambda: (
            pipe(
                prompt_embeds=embeds[:1],
                negative_prompt_embeds=embeds[1:],
                num_inference_steps=N_STEPS,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
                **options,
            ).images
        )

    return {name: painting(options) for name, options in FAST_MODES.items()}


def compare(what: str, rows: Rows, repeats: int, exact_name: str, peer: str) -> None:
    """Time each in turn and print a table; the first call of each has a column of its own."""

    def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        start = time.perf_counter()
        out = call().float().cpu()  # to the CPU: only then is a GPU done
        return time.perf_counter() - start, out

    first = {name: timed(call) for name, call in rows.items()}
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, call in rows.items():
            times[name].append(timed(call)[0])
    medians = {name: statistics.median(runs) for name, runs in times.items()}
    exact = first[exact_name][1]
    print(f"| {what} | seconds, median of {repeats} | of the time of {peer} | first call, s | error |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, median in medians.items():
        seconds, output = first[name]
        error = float((output - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        print(f"| {name} | {median:.3f} | {median / medians[peer]:.2f} | {seconds:.1f} | {error:.2g} |")
    print(flush=True)


if __name__ == "__main__":
    main()
