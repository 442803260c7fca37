"""Training steps of the U-Net that paints Fashion-MNIST: ours beside Diffusers' UNet2DModel of the same architecture.

python benchmarks/train_speed.py              `small_unet`, batches of the recipe, each in turn: 10 minutes on 2 cores
python benchmarks/train_speed.py --compiled   both through torch.compile as well, as `--compile` trains: 10 more
python benchmarks/train_speed.py --tiny       to try the command

All start from the same weights and see the same pictures with the same noise, so their losses must be the same curve:
the script fails if they are not. Each line is a whole step: forward, backward, AdamW. bfloat16 is measured where the
CPU has units for it.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from miniai.base.configs import config_to_dict
from miniai.base.device import training_dtype
from miniai.base.seeds import make_generator
from miniai.diffusion.objectives import DiffusionObjective
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.learning import learning
from miniai.nn.unet2d import UNet2DConfig, UNet2DModel
from miniai.recipes.fashion import PADDING
from miniai.recipes.fashion_diffusion_config import RECIPES
from miniai.recipes.fashion_unets import small_unet
from miniai.recipes.model_card import machine
from miniai.recipes.training import channels_last, compiled, initial_weights
from miniai.train.data import Loader
from miniai.train.fashion_mnist import load_fashion_mnist

ROOT = Path(__file__).parents[1]
RECIPE = RECIPES["ddpm"]
SAME_CURVE = 0.05  # relative, of each loss; bfloat16 has 8 bits
Step = Callable[[Tensor, int], tuple[float, float]]  # (pictures, step) to (seconds, loss)


class Theirs(nn.Module):
    """Diffusers' network, called as ours is."""

    def __init__(self, config: UNet2DConfig, weights: dict[str, Tensor]) -> None:
        super().__init__()
        values = config_to_dict(config)
        del values["time_cond_proj_dim"]  # which Diffusers has in its other U-Net alone
        self.model = diffusers.UNet2DModel(**values)
        self.model.load_state_dict(weights)

    def forward(self, x: Tensor, t: Tensor, condition: None) -> Tensor:
        return self.model(x, t).sample


def training_step(
    model: nn.Module, bf16: bool, nhwc: bool, as_trained: bool = False, compiler: str | None = None
) -> Step:
    """One step of the recipe, without what is the same for all (clipping, averages, logging); `as_trained`: with its
    convolutions in the form that the recipe trains them in."""
    model = channels_last(model) if nhwc else model
    network: Any = compiled(model, compiler, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    objective: Any = DiffusionObjective(NoiseSchedule(RECIPE.schedule))

    def run(pictures: Tensor, step: int) -> tuple[float, float]:
        images = pictures.contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
        start = time.perf_counter()
        way = learning(model) if as_trained else nullcontext()
        with way, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(network, (images, None), make_generator(0, step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start, loss.item()

    return run


def compare(
    config: UNet2DConfig, batch_size: int, n_steps: int, data: Path, compiler: str | None
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and losses of the steps of each variant; the first is not timed, and its seconds are left out."""
    with initial_weights(0):
        ours = UNet2DModel(config)  # as PyTorch fills it: with the recipe's zeros, all networks would begin alike
    weights = {name: value.clone() for name, value in ours.state_dict().items()}
    variants = {
        "Diffusers, float32": training_step(Theirs(config, weights), bf16=False, nhwc=False),
        "Diffusers, float32, channels last": training_step(Theirs(config, weights), bf16=False, nhwc=True),
        "miniai, float32, channels last": training_step(deepcopy(ours), bf16=False, nhwc=True, as_trained=True),
    }
    if training_dtype(torch.device("cpu")) == torch.bfloat16:
        variants |= {
            "Diffusers, bfloat16 autocast": training_step(Theirs(config, weights), bf16=True, nhwc=False),
            "Diffusers, bfloat16 autocast, channels last": training_step(Theirs(config, weights), bf16=True, nhwc=True),
            "miniai, bfloat16 autocast, channels last": training_step(
                deepcopy(ours), bf16=True, nhwc=True, as_trained=True
            ),
        }
    if compiler is not None:
        half = training_dtype(torch.device("cpu")) == torch.bfloat16
        name = "bfloat16 autocast, channels last, compiled" if half else "float32, channels last, compiled"
        theirs = Theirs(config, weights)
        variants |= {
            f"Diffusers, {name}": training_step(theirs, bf16=half, nhwc=True, compiler=compiler),
            f"miniai, {name}": training_step(ours, bf16=half, nhwc=True, compiler=compiler),
        }
    loader = Loader(load_fashion_mnist("train", data).scaled(PADDING), batch_size, seed=0)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, list[float]] = {name: [] for name in variants}
    for step in range(n_steps + 1):
        epoch, index = divmod(step, len(loader))
        pictures = next(iter(loader.batches(epoch, start=index)))
        for name, run in variants.items():
            taken, loss = run(pictures, step)
            seconds[name].append(taken)
            losses[name].append(loss)
    return {name: times[1:] for name, times in seconds.items()}, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small network and few pictures: nothing is recorded")
    parser.add_argument("--compiled", action="store_true", help="compiled networks, too: minutes until the first step")
    parser.add_argument("--batch-size", type=int, default=RECIPE.stage.batch_size)
    parser.add_argument("--steps", type=int, default=9, help="of each variant")
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data" / "fashion-mnist")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "train_speed.md")
    options = parser.parse_args()
    config, batch_size, n_steps = small_unet(), options.batch_size, options.steps
    if options.tiny:
        config, batch_size, n_steps = replace(config, block_out_channels=(16, 32, 32, 32)), 4, 2
    seconds, losses = compare(config, batch_size, n_steps, options.data, "inductor" if options.compiled else None)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first, *_ = losses.values()
    worst = max(abs(a - b) / b for curve in losses.values() for a, b in zip(curve, first, strict=True))
    if worst > SAME_CURVE:
        raise SystemExit(f"the losses differ by {100 * worst:.2f} %: these are not the same training")
    slowest = max(medians.values())
    n_parameters = sum(weight.numel() for weight in UNet2DModel(config).parameters())
    lines = [
        f"{machine()}; {n_parameters / 1e6:.1f} M parameters, 32×32 pixels, batch {batch_size};",
        f"median of {n_steps} steps in turn; losses differ by at most {100 * worst:.2f} % at any step",
        "",
        "| training step of the U-Net without text | images/s | times the slowest | loss of the first and last step |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {batch_size / one:.1f} | {slowest / one:.2f} | {losses[name][0]:.4f}, {losses[name][-1]:.4f} |"
            for name, one in medians.items()
        ),
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if not options.tiny:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
