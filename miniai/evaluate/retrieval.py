"""Does a picture show what its caption says, and in the style it names? A model that took no part in painting judges.

R-precision of Xu et al., "AttnGAN" (2018), section 4.1, with CLIP's cosine (Radford et al. 2021) as the judge.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from miniai.base.seeds import make_generator


def draw_candidates(
    captions: Sequence[str], k: int = 32, seed: int = 0, groups: Sequence[str] | None = None
) -> Int[Tensor, "n k"]:
    """For each caption, the index of itself and of k - 1 others, drawn at random, all with different texts.

    Row i depends on (seed, i) and on the set of captions alone. With `groups`, one per caption, the others are of the
    same group, so that whatever the group has in common tells nothing. Raises ValueError if there are too few.
    """
    keys = [""] * len(captions) if groups is None else list(groups)
    members: dict[str, dict[str, int]] = {}  # group -> its distinct captions -> where each stands first
    for i, (group, caption) in enumerate(zip(keys, captions, strict=True)):
        members.setdefault(group, {}).setdefault(caption, i)
    lists = {group: list(texts.values()) for group, texts in members.items()}
    rows = []
    for i, (group, caption) in enumerate(zip(keys, captions, strict=True)):
        own = members[group][caption]
        if len(lists[group]) < k:
            raise ValueError(f"caption {i} has {len(lists[group]) - 1} others to tell it from, fewer than {k - 1}")
        order = torch.randperm(len(lists[group]), generator=make_generator(seed, i))[:k].tolist()
        chosen = [lists[group][j] for j in order]
        rows.append([i] + [j for j in chosen if j != own][: k - 1])
    return torch.tensor(rows, dtype=torch.int64).reshape(len(captions), k)


def largest_k(captions: Sequence[str], k: int = 32, groups: Sequence[str] | None = None) -> int:
    """The most candidates, up to k, that `draw_candidates` can give every caption."""
    keys = [""] * len(captions) if groups is None else list(groups)
    sizes: dict[str, int] = {}
    for group, _ in set(zip(keys, captions, strict=True)):
        sizes[group] = sizes.get(group, 0) + 1
    return min([k, *sizes.values()])


def retrieved(
    image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "m d"], candidates: Int[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """For each picture 1 if its own caption is closest in cosine among its candidates (column 0 is its own), else 0.

    A tie counts for its part: features that are all alike score 1 / k, which is chance, and not 1. `candidates` are
    rows of `text_features`.
    """
    texts = torch.nn.functional.normalize(text_features.double(), dim=-1)
    images = torch.nn.functional.normalize(image_features.double(), dim=-1)
    scores = torch.einsum("nd,nkd->nk", images, texts[candidates.to(texts.device)])
    winners = (scores >= scores.amax(dim=1, keepdim=True) - 1e-12).double()
    return winners[:, 0] / winners.sum(dim=1)


def retrieval_share(
    image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "m d"], candidates: Int[Tensor, "n k"]
) -> float:
    """Share of pictures, 0 to 1, whose own caption is closest among its candidates; see `retrieved`.

    >>> texts = torch.eye(6)
    >>> candidates = draw_candidates(["cat", "dog", "pig", "owl", "fox", "bee"], k=4)
    >>> retrieval_share(texts, texts, candidates), retrieval_share(texts.roll(1, 0), texts, candidates) < 0.5
    (1.0, True)
    """
    return float(retrieved(image_features, text_features, candidates).mean())


def standard_error(share: float, n: int) -> float:
    """One standard deviation of a share measured on n independent pictures (binomial)."""
    return (share * (1 - share) / n) ** 0.5


def fit_classifier(
    features: Float[Tensor, "n d"], classes: Int[Tensor, " n"], n_classes: int, ridge: float = 1e-3
) -> Float[Tensor, "d1 n_classes"]:
    """Weights of a linear classifier, (d + 1, n_classes), by ridge regression onto one column per class, in float64.

    `ridge` is the penalty in parts of the features' mean variance. The closed form has no seed and no steps.
    """
    rows = _with_one(features)
    targets = torch.nn.functional.one_hot(classes, n_classes).double()
    gram = rows.T @ rows
    scale = gram.diagonal()[:-1].mean()
    penalty = torch.full((len(gram),), float(ridge * scale), dtype=torch.float64, device=gram.device)
    penalty[-1] = 1e-9 * len(rows)  # the constant goes free, but for the digits
    return torch.linalg.solve(gram + torch.diag(penalty), rows.T @ targets)


def classify(features: Float[Tensor, "n d"], weights: Float[Tensor, "d1 n_classes"]) -> Int[Tensor, " n"]:
    """The most likely class of each row of features, by the weights that `fit_classifier` gave."""
    return (_with_one(features) @ weights).argmax(dim=1)


def _with_one(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d1"]:
    rows = features.double()
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
