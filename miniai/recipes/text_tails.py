"""Texts whose end comes from another text, so that a U-Net listens to each word for what that word says.

The text encoder is causal: what stands behind "a dolphin" in "a dolphin, twemoji style" has heard of the dolphin, and
so have the end-of-text tokens. A U-Net that can read thing and style off the last tokens learns each pair by heart, and
does not know those of a pair that no picture shows. With the last tokens of "a dog, twemoji style" in their place it
can read the thing off the thing's own words alone.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from miniai.sd.clip_text import COMMA

Swap = tuple[Int[Tensor, "b window"], Int[Tensor, "b window"]]  # of which text each token is, and which of its tokens


def tail_starts(ids: Int[Tensor, "b window"], eos_id: int) -> Int[Tensor, " b"]:
    """Where each text's tail begins: at its last comma, or at the end-of-text token of one that has none."""
    end = (ids == eos_id).int().argmax(1)
    places = torch.arange(ids.shape[1], device=ids.device)
    commas = torch.where(ids == COMMA, places, -1).amax(1)
    return torch.where(commas > 0, commas, end)


def swapped_tails(ids: Int[Tensor, "b window"], eos_id: int, share: float, generator: torch.Generator) -> Swap:
    """Index of a batch's hidden states, (b, window, width), such that `share` of the texts end in the tail of another
    one of the batch with the same words in it, where there is any; the empty text stays as it is."""
    b, window = ids.shape
    starts = tail_starts(ids, eos_id)
    texts, places = torch.arange(b, device=ids.device), torch.arange(window, device=ids.device)
    tails = ids.gather(1, (starts[:, None] + places).clamp(max=window - 1))
    alike: Bool[Tensor, "b b"] = (tails[:, None] == tails).all(2) & (starts > 1) & (starts > 1)[:, None]
    alike.fill_diagonal_(False)
    drawn: Float[Tensor, "b b+1"] = torch.rand(b, b + 1, generator=generator, device=generator.device).to(ids.device)
    swapped = (drawn[:, b] < share) & alike.any(1)
    of = torch.where(swapped, torch.where(alike, drawn[:, :b], -1.0).argmax(1), texts)
    in_tail = places >= starts[:, None]
    return (
        torch.where(in_tail, of[:, None], texts[:, None]),
        torch.where(in_tail, (starts[of] - starts)[:, None] + places, places).clamp(max=window - 1),
    )
