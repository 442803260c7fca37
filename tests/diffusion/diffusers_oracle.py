"""What the tests of samplers share: a small network that depends on everything, and Diffusers' own loop around it."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Tensor

from miniai.diffusion.sampling import Sampler

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
SHAPE = (2, 3, 4, 4)


def network(x: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
    """Nonlinear in x, mixing channels and pixels, and quick to notice a timestep that is off by one."""
    t = timestep.to(x.dtype).reshape(-1, 1, 1, 1)
    mixed = x + 0.3 * x.roll(1, dims=1) - 0.2 * x.roll(1, dims=3)
    return torch.tanh(mixed * (0.8 + 0.3 * torch.cos(t / 20))) + 0.1 * torch.sin(t / 7)


def diffusers_scheduler(sampler: Sampler, file: dict[str, Any]) -> Any:
    """The Diffusers class of `sampler`, made from the contents of a scheduler file as its pipelines do."""
    own = {"dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}, "pndm": {"skip_prk_steps": True}}
    spacing = {} if sampler.sigma_spacing == "timesteps" else {f"use_{sampler.sigma_spacing}_sigmas": True}
    values = {**file, **own.get(sampler.name, {}), **spacing}
    return _scheduler(sampler.diffusers_class, tuple(sorted(values.items())))


@cache
def _scheduler(class_name: str, values: tuple[tuple[str, Any], ...]) -> Any:
    """Made once, since some classes take a second for it; `set_timesteps` makes them as new."""
    return getattr(diffusers, class_name).from_config(dict(values))


def diffusers_loop(
    scheduler: Any,
    n_steps: int | dict[str, Any],
    start: Tensor,
    seed: int,
    model: Callable[..., Tensor] = network,
    **options: Any,
) -> Tensor:
    """Sampling as Diffusers' pipelines write it, from unit noise `start`; `n_steps` may be {"timesteps": [...]}."""
    scheduler.set_timesteps(**n_steps) if isinstance(n_steps, dict) else scheduler.set_timesteps(n_steps)
    x = start * scheduler.init_noise_sigma
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        prediction = model(scheduler.scale_model_input(x, t), t.repeat(len(x)))
        x = scheduler.step(prediction, t, x, **options).prev_sample
    return x


def start_noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawing(seed: int, shape: tuple[int, ...] = SHAPE) -> Callable[[int], Tensor]:
    """The `noise` of a sampler that draws what `diffusers_loop` draws with the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda i: torch.randn(shape, generator=generator)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
