"""What a LoRA costs at each step of painting: here, where it is added to the weights, and in Diffusers, where it is
computed beside each layer (or fused, if one asks for that). The packaged model's U-Net; a LoRA of rank 8 on the linear
layers of its transformers.

    python benchmarks/lora_step.py [--half bfloat16]

Needs the extra `dev`: diffusers and peft.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch

from miniai import StableDiffusionPipeline, packaged_model
from miniai.nn.low_rank import LowRankLayers
from miniai.recipes.model_card import machine
from miniai.recipes.personalise_config import UNET_LAYERS
from miniai.recipes.training import initial_weights
from miniai.sd.lora_files import UNET, write_lora

BATCH = 8


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    dtype, device = getattr(torch, options.half), torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        write_lora(file, {UNET: random_changes()})
        steps = {name: step_of(pipe, device, dtype) for name, pipe in painters(file, dtype, device).items()}
        started = time.perf_counter()
        StableDiffusionPipeline.from_pretrained(packaged_model(), dtype, device).load_lora_weights(file)
        loading = time.perf_counter() - started
    print(f"`python benchmarks/lora_step.py --half {options.half}`, {date.today()}, {machine()}, ", end="")
    print(f"diffusers {diffusers.__version__}: {BATCH} pictures a step, median of {options.repeats} in turn\n")
    print("| painter | ms a step | beside ours without |\n| --- | ---: | ---: |")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.repeats + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - started))
    base = statistics.median(times["ours"])
    for name, each in times.items():
        print(f"| {name} | {statistics.median(each):.1f} | {statistics.median(each) / base:.2f} |")
    print(f"\nThe model read and the LoRA in its weights: {loading:.2f} s.")


def random_changes() -> Any:
    unet = StableDiffusionPipeline.from_pretrained(packaged_model()).unet
    with initial_weights(0):
        layers = LowRankLayers(unet, UNET_LAYERS, rank=8)
        for layer in layers.layers:
            torch.nn.init.normal_(layer.up, std=0.01)
    return layers.changes()


def painters(file: Path, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    def theirs() -> Any:
        return diffusers.StableDiffusionPipeline.from_pretrained(packaged_model(), torch_dtype=dtype).to(device)

    def ours() -> StableDiffusionPipeline:
        return StableDiffusionPipeline.from_pretrained(packaged_model(), dtype, device)

    made = {"Diffusers": theirs(), "Diffusers with the LoRA": theirs(), "Diffusers with it fused": theirs()}
    made |= {"ours": ours(), "ours with the LoRA": ours()}
    for name, pipe in made.items():
        if "with" in name:
            pipe.load_lora_weights(file)
        if "fused" in name:
            pipe.fuse_lora()
            pipe.unload_lora_weights()
    return made


def step_of(pipe: Any, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    config = pipe.unet.config
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, config.in_channels, config.sample_size, config.sample_size)
    x = torch.randn(shape, generator=generator).to(device, dtype)
    text = torch.randn(BATCH, 77, config.cross_attention_dim, generator=generator).to(device, dtype)
    t = torch.full((BATCH,), 500, device=device)
    return lambda: pipe.unet(x, t, text)


if __name__ == "__main__":
    main()
