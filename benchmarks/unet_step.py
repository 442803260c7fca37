"""A training step of the shipped U-Net: ours beside Diffusers' with the same weights, optimizer and batch, in turn.

In bfloat16 too, where the CPU has units for it.

python benchmarks/unet_step.py
"""

import copy
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import diffusers
import torch

from miniai.base.configs import config_to_dict
from miniai.base.device import training_dtype
from miniai.nn.learning import learning
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.model_card import machine
from miniai.recipes.text_to_image_config import SMALL
from miniai.recipes.training import channels_last, initial_weights

BATCH, TOKENS = SMALL.unet_stage.batch_size, SMALL.window


def main(repeats: int = 7) -> None:
    with initial_weights(0):
        ours = UNet2DConditionModel(SMALL.unet)
        theirs = diffusers.UNet2DConditionModel(**config_to_dict(SMALL.unet))
    theirs.load_state_dict(ours.state_dict())
    side, channels = SMALL.unet.sample_size, SMALL.unet.in_channels
    x = torch.randn(BATCH, channels, side, side)
    t, text = torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, TOKENS, SMALL.unet.cross_attention_dim)

    def step(model: torch.nn.Module, bf16: bool, nhwc: bool, as_trained: bool = False) -> Callable[[], float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        latents = x.contiguous(memory_format=torch.channels_last) if nhwc else x

        def run() -> float:
            start = time.perf_counter()
            way = learning(model) if as_trained else nullcontext()
            with way, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = model(latents, t, text)
            out = out if isinstance(out, torch.Tensor) else out.sample
            (out.float() - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            return time.perf_counter() - start

        return run

    plain = diffusers.UNet2DConditionModel(**config_to_dict(SMALL.unet))
    plain.load_state_dict(ours.state_dict())
    rows = {
        "Diffusers, float32": step(plain, bf16=False, nhwc=False),
        "miniai, float32, channels last": step(channels_last(copy.deepcopy(ours)), bf16=False, nhwc=True),
        "miniai, the same, convolutions by Winograd's way": step(
            channels_last(copy.deepcopy(ours)), bf16=False, nhwc=True, as_trained=True
        ),
    }
    if training_dtype(torch.device("cpu")) == torch.bfloat16:
        compiled = channels_last(copy.deepcopy(ours))
        compiled.compile()
        rows |= {
            "Diffusers, bfloat16 autocast, channels last": step(channels_last(theirs), bf16=True, nhwc=True),
            "miniai, bfloat16 autocast, channels last": step(channels_last(ours), bf16=True, nhwc=True),
            "miniai, the same, small maps as products of matrices": step(
                channels_last(copy.deepcopy(ours)), bf16=True, nhwc=True, as_trained=True
            ),
            "miniai, the same, compiled (`--compile`)": step(compiled, bf16=True, nhwc=True),
        }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats + 1):
        for name, run in rows.items():
            times[name].append(run())
    medians = {name: statistics.median(runs[1:]) for name, runs in times.items()}
    slowest = max(medians.values())
    print(f"{machine()}; {os.cpu_count()} cores, batch {BATCH}, median of {repeats} steps in turn\n")
    print("| training step of the shipped U-Net | images/s | times the slowest |\n| --- | ---: | ---: |")
    for name, median in medians.items():
        print(f"| {name} | {BATCH / median:.1f} | {slowest / median:.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
