"""Several prompts in one picture, "a dolphin AND twemoji style :0.5", as A1111 reads them.

What they mean is in `miniai.diffusion.composition`. A1111's own syntax alone knows the word; elsewhere it is text.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*$")


@dataclass(frozen=True)
class PromptParts:
    """The parts of prompts: `texts[k][i]` is part k of prompt i and counts `weights[i, k]`; a prompt of fewer parts
    than another has empty ones, which count 0."""

    texts: list[list[str]]
    weights: Float[Tensor, "p m"]


def split_parts(prompts: str | list[str] | None) -> PromptParts | None:
    """Each prompt cut at every AND; a number behind a colon at the end of a part is its weight, else 1. None if there
    is no AND: then a number at the end is text, too, where A1111 takes it for a weight (as in "a clock at 12:30").

    >>> split_parts(["a dolphin AND twemoji style :0.5", "a cat"])
    PromptParts(texts=[['a dolphin', 'a cat'], ['twemoji style', '']], weights=tensor([[1.0000, 0.5000],
            [1.0000, 0.0000]]))
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts or [""]
    cut = [[_weighed(part) for part in _AND.split(prompt)] for prompt in prompts]
    n_parts = max(map(len, cut))
    if n_parts == 1:
        return None
    even = [[*parts, *[("", 0.0)] * (n_parts - len(parts))] for parts in cut]
    texts = [[parts[k][0] for parts in even] for k in range(n_parts)]
    return PromptParts(texts, torch.tensor([[weight for _, weight in parts] for parts in even]))


def check_parts(parts: PromptParts | None, scale: int | float, rescale: int | float) -> None:
    """Raise UserError where parts cannot be composed."""
    if parts is None:
        return
    if scale <= 1:
        raise UserError("AND needs guidance: give a guidance_scale above 1")
    if rescale:
        raise UserError("AND does not go with guidance_rescale: leave one out")


def _weighed(part: str) -> tuple[str, float]:
    found = _WEIGHT.search(part)
    return (part.strip(), 1.0) if found is None else (part[: found.start()].strip(), float(found[1]))
