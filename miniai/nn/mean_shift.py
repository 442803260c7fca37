"""Mean shift clustering on any device (Fukunaga and Hostetler 1975): every point moves to the weighted mean of the data
around it until it stands on a peak of their density; points that share a peak are a cluster.

scratch/meanshift.py is the same, one point after another; here a batch of points moves at once. The weights of a batch
are a matrix (batch, n): `batch_size` times n numbers are what it takes of memory.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Kernel = Callable[[Tensor, int | float], Tensor]  # distances and bandwidth to weights


def gaussian(distance: Float[Tensor, "b n"], bandwidth: int | float) -> Float[Tensor, "b n"]:
    """exp(-d² / 2h²): near data weigh most, and all weigh something."""
    return (-0.5 * (distance / bandwidth) ** 2).exp()


def triangular(distance: Float[Tensor, "b n"], bandwidth: int | float) -> Float[Tensor, "b n"]:
    """1 - d/h, and nothing beyond h."""
    return (1 - distance / bandwidth).clamp(min=0)


def flat(distance: Float[Tensor, "b n"], bandwidth: int | float) -> Float[Tensor, "b n"]:
    """All within h weigh the same."""
    return (distance <= bandwidth).to(distance.dtype)


@torch.no_grad()
def mean_shift(
    x: Float[Tensor, "n d"],
    bandwidth: int | float,
    kernel: Kernel = gaussian,
    *,
    batch_size: int = 1024,
    max_steps: int = 100,
    tolerance: float = 1e-6,
) -> Float[Tensor, "n d"]:
    """Where each point comes to rest: when no point of its batch moves by `tolerance` or more, or after `max_steps`.

    Raises ValueError for no points, and for a number that is not above 0.

    >>> left, right = torch.randn(30, 2) * 0.1, torch.randn(20, 2) * 0.1 + 5
    >>> labels, peaks = clusters(mean_shift(torch.cat([left, right]), bandwidth=1), apart=0.5)
    >>> labels.bincount(), peaks.shape
    (tensor([30, 20]), torch.Size([2, 2]))
    """
    if not len(x):
        raise ValueError("mean shift needs at least one point")
    if bandwidth <= 0 or batch_size < 1 or max_steps < 1:
        raise ValueError(
            f"bandwidth, batch_size and max_steps must be above 0, got {bandwidth}, {batch_size} and {max_steps}"
        )
    return torch.cat([moved(points, x, bandwidth, kernel, max_steps, tolerance) for points in x.split(batch_size)])


def moved(
    points: Float[Tensor, "b d"],
    data: Float[Tensor, "n d"],
    bandwidth: int | float,
    kernel: Kernel,
    max_steps: int,
    tolerance: float,
) -> Float[Tensor, "b d"]:
    """The points of one batch at rest. The data stay in place."""
    for _ in range(max_steps):
        # differences, not products: those would lose the small distances of points that have nearly met
        distance = torch.cdist(points, data, compute_mode="donot_use_mm_for_euclid_dist")
        weights = kernel(distance, bandwidth)
        means = weights @ data / weights.sum(1, keepdim=True)
        longest = (means - points).norm(dim=1).max()
        points = means
        if longest < tolerance:
            break
    return points


def clusters(peaks: Float[Tensor, "n d"], apart: int | float) -> tuple[Int[Tensor, " n"], Float[Tensor, "k d"]]:
    """(a label for each point, the peaks): points that came to rest within `apart` of a peak belong to it, and to the
    first of several."""
    labels = torch.full((len(peaks),), -1, dtype=torch.int64, device=peaks.device)
    firsts: list[Tensor] = []
    while (free := (labels < 0).nonzero()).numel():
        first = peaks[free[0, 0]]
        near = (peaks - first).norm(dim=1) < apart
        labels[near & (labels < 0)] = len(firsts)
        firsts.append(first)
    return labels, torch.stack(firsts) if firsts else peaks[:0]
