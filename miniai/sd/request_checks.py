"""What a request to paint may ask for, told before anything is computed."""

import math
from collections.abc import Sequence
from numbers import Integral

import torch

from miniai.base.errors import UserError


def guidance_strength(guidance_scale: int | float) -> float:
    """The scale as `guided` takes it: as in Diffusers, 1 or less is no guidance."""
    if not math.isfinite(guidance_scale):
        raise UserError(f"guidance scale {guidance_scale} is not possible: give a number such as 7.5")
    return max(1.0, float(guidance_scale))


def check_whole(**numbers: object) -> None:
    """Raise UserError for the first that is no whole number: 2.0 is none."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise UserError(f"{name} {number!r} is not possible: give a whole number")


def check_shares(**shares: int | float) -> None:
    """Raise UserError for the first that is not within 0 to 1."""
    for name, share in shares.items():
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise UserError(f"{name} {share} is not possible: give a number from 0 to 1")


def noise_interval(interval: Sequence[int | float] | None) -> tuple[float, float]:
    """The (low, high) noise levels between which guidance acts, as `guided` takes them; None is everywhere."""
    if interval is None:
        return 0.0, math.inf
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise UserError(f"guidance_interval {interval} is not possible: give two noise levels, such as 0.3 and 5")
    return float(interval[0]), float(interval[1])


def spread_generators(
    generator: torch.Generator | list[torch.Generator] | None, n_images: int
) -> list[torch.Generator]:
    """A generator for each picture: those given, or for all of them the one given, or fresh ones from the system."""
    if generator is None:
        fresh = [torch.Generator() for _ in range(n_images)]
        for one in fresh:
            one.seed()
        return fresh
    generators = [generator] * n_images if isinstance(generator, torch.Generator) else generator
    if len(generators) != n_images:
        raise UserError(f"{len(generators)} generators for {n_images} pictures: give one, or one for each")
    if any(one.device.type != "cpu" for one in generators):
        raise UserError("noise is drawn on the CPU: make the generator with torch.Generator(), without a device")
    return generators
