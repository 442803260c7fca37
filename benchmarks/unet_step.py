"""A training step of the shipped U-Net: ours beside Diffusers' with the same weights, optimizer and batch, in turn.

In bfloat16 too, where the CPU has units for it. The loss is of the last step: all have then learned from one
batch as often, from the same weights.

python benchmarks/unet_step.py
python benchmarks/unet_step.py --profile      which operators a step of ours spends its time in
"""

import argparse
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


Step = Callable[[], tuple[float, float]]  # seconds, and the loss


def main(profiled: bool, repeats: int = 7) -> None:
    with initial_weights(0):
        ours = UNet2DConditionModel(SMALL.unet)
        theirs = diffusers.UNet2DConditionModel(**config_to_dict(SMALL.unet))
    theirs.load_state_dict(ours.state_dict())
    side, channels = SMALL.unet.sample_size, SMALL.unet.in_channels
    x = torch.randn(BATCH, channels, side, side)
    t, text = torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, TOKENS, SMALL.unet.cross_attention_dim)

    def step(model: torch.nn.Module, bf16: bool, nhwc: bool, as_trained: bool = False) -> Step:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
        latents = x.contiguous(memory_format=torch.channels_last) if nhwc else x

        def run() -> tuple[float, float]:
            start = time.perf_counter()
            way = learning(model) if as_trained else nullcontext()
            with way, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = model(latents, t, text)
            out = out if isinstance(out, torch.Tensor) else out.sample
            loss = (out.float() - x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return time.perf_counter() - start, float(loss.detach())

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
    if profiled:
        print_profile(*list(rows.items())[-2 if len(rows) > 3 else -1])
        return
    times: dict[str, list[float]] = {name: [] for name in rows}
    losses = {}
    for _ in range(repeats + 1):
        for name, run in rows.items():
            seconds, losses[name] = run()
            times[name].append(seconds)
    medians = {name: statistics.median(runs[1:]) for name, runs in times.items()}
    slowest = max(medians.values())
    print(f"{machine()}; {os.cpu_count()} cores, batch {BATCH}, median of {repeats} steps in turn\n")
    print("| training step of the shipped U-Net | images/s | times the slowest | loss |\n| --- | ---: | ---: | ---: |")
    for name, median in medians.items():
        print(f"| {name} | {BATCH / median:.1f} | {slowest / median:.2f} | {losses[name]:.4f} |")


def print_profile(name: str, run: Step, n_steps: int = 3, n_rows: int = 16) -> None:
    """The operators that a step spends most of its time in, without those that it calls in turn."""
    run()
    with torch.profiler.profile() as profile:
        for _ in range(n_steps):
            run()
    operators = sorted(profile.key_averages(), key=lambda one: -one.self_cpu_time_total)
    whole = sum(one.self_cpu_time_total for one in operators)
    print(f"{machine()}; {os.cpu_count()} cores, batch {BATCH}, {name}: {n_steps} steps\n")
    print("| operator | calls a step | ms a step | share |\n| --- | ---: | ---: | ---: |")
    for one in operators[:n_rows]:
        milliseconds, share = one.self_cpu_time_total / 1000 / n_steps, one.self_cpu_time_total / whole
        print(f"| `{one.key}` | {one.count // n_steps} | {milliseconds:.1f} | {share:.1%} |")


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true")
    main(parser.parse_args().profile)
