"""Randomness without hidden state: every draw names its generator, and every generator names its seed."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def make_generator(*seed: int) -> torch.Generator:
    """A CPU generator for `seed`.

    One integer is torch's own `manual_seed`, so that a seed means here what it means everywhere else. Several, such as
    `(seed, step)`, are mixed by SHA-256: neighbouring tuples give streams that have nothing in common, and a run
    resumed at a step draws what the unbroken run drew there.
    """
    if not seed:
        raise ValueError("make_generator needs at least one integer")
    if len(seed) == 1:
        return torch.Generator().manual_seed(seed[0])
    digest = hashlib.sha256(",".join(str(int(part)) for part in seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def on_host(generator: torch.Generator) -> torch.Generator:
    """`generator` itself if it draws on the CPU, else one there with its seed: for a choice that Python makes by the
    draw, which would otherwise have to wait for the GPU."""
    return generator if generator.device.type == "cpu" else make_generator(generator.initial_seed())


def image_generators(seed: int, n_images: int) -> list[torch.Generator]:
    """One generator per image, seeded `seed + i`: image i draws the same noise at any batch size."""
    return [make_generator(seed + i) for i in range(n_images)]


def is_shared(generators: Sequence[torch.Generator]) -> bool:
    """Whether all pictures draw from one generator."""
    return len(generators) > 0 and all(one is generators[0] for one in generators)


def randn(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Float[Tensor, "b ..."]:
    """Unit normal noise, float32 on the CPU; row i is drawn from `generators[i]` alone. Where all are one and the same,
    all rows are one draw, as in Diffusers: torch draws 16 numbers at a time, so that rows of another number, drawn one
    by one, would be others."""
    if len(generators) != shape[0]:
        raise ValueError(f"{shape[0]} images need as many generators, not {len(generators)}")
    if is_shared(generators):
        return torch.randn(tuple(shape), generator=generators[0], dtype=torch.float32)
    return torch.cat([torch.randn((1, *shape[1:]), generator=one, dtype=torch.float32) for one in generators])
