"""Stable Diffusion 1.5 at full size, 512 by 512 pixels, random weights: ours beside Diffusers, in turn.

    python benchmarks/sd_speed.py [--compiled] [--repeats 5]

A step is one call of the U-Net on two pictures, as guidance needs; a decode is the VAE's, of one picture. The error is
that of the output against Diffusers' in float32, root mean square over the root mean square of the output.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from miniai.base.configs import config_to_dict
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.packed import pack_weights
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.recipes.model_card import machine
from miniai.recipes.training import initial_weights

UNET, VAE = UNetConfig(), VAEConfig()  # Stable Diffusion 1.5's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each, in turn")
    parser.add_argument("--compiled", action="store_true", help="Diffusers compiled, too (minutes)")
    arguments = parser.parse_args()
    print(f"{machine()}; {torch.get_num_threads()} threads, diffusers {diffusers.__version__}\n")
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 64, 64, generator=generator), torch.randn(2, 77, 768, generator=generator)
    with torch.inference_mode():
        with initial_weights(0):
            steps = unets(latents, text, arguments.compiled)
        report("guided step", steps, arguments.repeats)
        del steps
        with initial_weights(0):
            decodes = decoders(latents[:1])
        report("decode", decodes, arguments.repeats)


def unets(latents: Tensor, text: Tensor, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Each a U-Net with the same weights, ready to be called."""
    reference: Any = diffusers.UNet2DConditionModel(**config_to_dict(UNET)).eval()
    theirs = diffusers.UNet2DConditionModel(**config_to_dict(UNET)).to(torch.bfloat16).eval()
    theirs.load_state_dict(reference.state_dict())
    ours = UNet2DConditionModel(UNET).to(torch.bfloat16).eval()
    ours.load_state_dict(reference.state_dict())
    pack_weights(ours.to(memory_format=torch.channels_last))
    t, half = torch.tensor([500.0, 500.0]), torch.bfloat16
    nhwc = latents.contiguous(memory_format=torch.channels_last)
    rows: dict[str, Callable[[], Tensor]] = {
        "Diffusers, float32": lambda: reference(latents, t, text).sample,
        "Diffusers, bfloat16": lambda: theirs(latents.to(half), t, text.to(half)).sample,
        "miniai, bfloat16": lambda: ours(nhwc.to(half), t, text.to(half)),
    }
    if compiled:
        fast = torch.compile(theirs)
        rows["Diffusers, bfloat16, compiled"] = lambda: fast(latents.to(half), t, text.to(half)).sample
    return rows


def decoders(latents: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The same for the VAE's decoder."""
    reference: Any = diffusers.AutoencoderKL(**config_to_dict(VAE)).eval()
    theirs = diffusers.AutoencoderKL(**config_to_dict(VAE)).to(torch.bfloat16).eval()
    theirs.load_state_dict(reference.state_dict())
    ours = AutoencoderKL(VAE).to(torch.bfloat16).eval()
    ours.load_state_dict(reference.state_dict())
    pack_weights(ours.to(memory_format=torch.channels_last))
    half, nhwc = torch.bfloat16, latents.contiguous(memory_format=torch.channels_last)
    return {
        "Diffusers, float32": lambda: reference.decode(latents).sample,
        "Diffusers, bfloat16": lambda: theirs.decode(latents.to(half)).sample,
        "miniai, bfloat16": lambda: ours.decode(nhwc.to(half)),
    }


def report(what: str, rows: dict[str, Callable[[], Tensor]], repeats: int) -> None:
    """Time each in turn and print a table; the first call of each is not timed."""
    outputs = {name: call().float() for name, call in rows.items()}
    exact = outputs["Diffusers, float32"]
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, call in rows.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(runs) for name, runs in times.items()}
    peer = medians["Diffusers, bfloat16"]
    print(f"| {what} | seconds, median of {repeats} | of Diffusers' bfloat16 time | error |")
    print("| --- | ---: | ---: | ---: |")
    for name, median in medians.items():
        error = float((outputs[name] - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        print(f"| {name} | {median:.2f} | {median / peer:.2f} | {error:.4f} |")
    print(flush=True)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
