"""`miniai train texture`: a neural cellular automaton that grows the texture of a picture, and heals it.

Worlds are kept in a pool and go on from where they were, one of each batch anew and one wounded, so that the rule
learns to stay and to heal, not only to arrive (Mordvintsev et al. 2020; Niklasson et al. 2021).
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from miniai.base.configs import config_to_dict
from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, write_json
from miniai.base.images import grid, open_image, save_gif, save_png, to_pil, to_tensor
from miniai.base.seeds import make_generator
from miniai.base.weights import write_weights
from miniai.evaluate.perceptual import layer_outputs
from miniai.nn.cellular import CellularAutomaton, CellularConfig, normalise_gradients, wounded
from miniai.nn.style import gram_matrix, style_loss
from miniai.recipes.style_transfer import feature_network
from miniai.recipes.training import initial_weights
from miniai.train.captions import centre_square

WOUND = 0.8  # of the side: what the disc that is emptied to show healing is across, half of the world
LOST = 4.0  # a cell that holds more, where pictures end at 1: its world has exploded


@dataclass(frozen=True)
class TextureConfig:
    """The whole recipe: worlds of `side` cells, `n_pool` of them, `batch_size` at a time, each for `least` to `most` of
    the automaton's steps; `overflow` weighs what a cell holds beyond [-1, 1]."""

    automaton: CellularConfig = field(default_factory=CellularConfig)
    side: int = 64
    n_pool: int = 64
    batch_size: int = 4
    least: int = 16
    most: int = 48
    rate: int | float = 1e-3
    overflow: int | float = 1.0
    seed: int = 0


def train_texture(
    picture: Path,
    out: Path,
    *,
    vgg: Path | None = None,
    steps: int = 1000,
    device: str = "auto",
    config: TextureConfig | None = None,
) -> dict[str, Any]:
    """Train in `out`: weights and config; `texture.png`, grown from nothing in a world twice as wide; `healing.gif`.

    Returns the style loss of empty worlds, of grown ones, of the same with a wound each, and when they have healed.
    Raises UserError if the picture cannot be read.
    """
    config = config or TextureConfig()
    if steps < 1:
        raise UserError(f"--steps {steps} is not possible: give a number above 0")
    example = to_tensor([centre_square(open_image(picture), config.side)])
    make_folder(out)
    place = pick_device(device)
    network, layers, _ = feature_network(vgg)
    with initial_weights(config.seed):
        automaton = CellularAutomaton(config.automaton).to(place)
    grow(automaton, example.to(place), network.to(place), layers, config, steps)
    write_json(out / "config.json", config_to_dict(config))
    write_weights(out / "model.safetensors", {k: v.contiguous() for k, v in automaton.state_dict().items()})
    return show(automaton, example.to(place), network, layers, config, out)


def grow(
    automaton: CellularAutomaton,
    example: Float[Tensor, "1 c h w"],
    network: nn.Module,
    layers: Sequence[str],
    config: TextureConfig,
    steps: int,
) -> list[float]:
    """Train the automaton in place; returns the style loss of each step."""
    grams = _grams(network, example, layers)
    optimizer = torch.optim.Adam(automaton.parameters(), lr=float(config.rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pool = automaton.empty(config.n_pool, config.side)
    losses, last = [], time.monotonic()
    for step in range(steps):
        generator = make_generator(config.seed, step)
        places = torch.randperm(config.n_pool, generator=generator)[: config.batch_size]
        worlds = pool[places]
        worlds[0] = 0.0
        if len(worlds) > 1:
            worlds[-1:] = wounded(worlds[-1:], generator)
        n_steps = int(torch.randint(config.least, config.most + 1, (1,), generator=generator))
        worlds = automaton(worlds, n_steps, generator)
        style = style_loss(layer_outputs(network, automaton.picture(worlds), layers), grams)
        loss = style + config.overflow * (worlds - worlds.clamp(-1, 1)).abs().mean()
        if not bool(loss.isfinite()):
            raise UserError(f"training stopped at step {step + 1}: loss is NaN or Inf; take a lower rate")
        optimizer.zero_grad()
        loss.backward()
        normalise_gradients(automaton)
        optimizer.step()
        schedule.step()
        lost = worlds.detach().abs().amax(dim=(1, 2, 3)) > LOST  # they would only spoil what comes after
        pool[places] = torch.where(lost[:, None, None, None], 0.0, worlds.detach())
        losses.append(style.item())
        if time.monotonic() - last > 30:
            print(f"step {step + 1} of {steps}, style {losses[-1]:.5f}", file=sys.stderr, flush=True)
            last = time.monotonic()
    return losses


@torch.no_grad()
def show(
    automaton: CellularAutomaton,
    example: Float[Tensor, "1 c h w"],
    network: nn.Module,
    layers: Sequence[str],
    config: TextureConfig,
    out: Path,
) -> dict[str, Any]:
    """`texture.png`, `healing.gif`, and what `train_texture` returns, as `results.json`."""
    grams = _grams(network, example, layers)

    def unlike(world: Tensor) -> float:
        return style_loss(layer_outputs(network, automaton.picture(world), layers), grams).item()

    generator = make_generator(config.seed, 0, 1)
    wide = automaton(automaton.empty(1, 2 * config.side), 4 * config.most, generator)
    save_png(out / "texture.png", _large(grid([*to_pil(example), *to_pil(automaton.picture(wide))], 2, gap=4), config))
    frames, world = [], automaton.empty(config.batch_size, config.side)
    found: dict[str, Any] = {"nothing": unlike(world)}
    for stage in ("grown", "healed"):
        for _ in range(2 * config.most):
            world = automaton(world, 2, generator)
            frames.append(_large(to_pil(automaton.picture(world))[0], config))
        found[stage] = unlike(world)
        if stage == "grown":
            world = wounded(world, generator, WOUND)
            found["wounded"] = unlike(world)
    save_gif(out / "healing.gif", frames, 40)
    write_json(out / "results.json", found)
    return found


def _large(image: Image.Image, config: TextureConfig) -> Image.Image:
    """Small worlds enlarged, cell by cell, to about 192 pixels."""
    zoom = max(1, 192 // config.side)
    return image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST)


def _grams(network: nn.Module, example: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: gram_matrix(one) for name, one in layer_outputs(network, example, layers).items()}
