"""28. Mean shift clustering (Fukunaga and Hostetler 1975): every point moves to the weighted mean of the data around
it, again and again, until it stands on a peak of their density; points that share a peak are a cluster. The count of
clusters is not given but found, from the bandwidth.
"""

import math
from collections.abc import Callable
from operator import mul

from miniai.scratch.ieee import Number
from miniai.scratch.tensor import Tensor

Kernel = Callable[[float, Number], float]
Point = list[float]


def gaussian(distance: float, bandwidth: Number) -> float:
    """exp(-d² / 2h²): near data weigh most, and all weigh something."""
    return math.exp(-0.5 * (distance / bandwidth) ** 2)


def triangular(distance: float, bandwidth: Number) -> float:
    """1 - d/h, and nothing beyond h: cheap, and nearly as good."""
    return max(1 - distance / bandwidth, 0.0)


def flat(distance: float, bandwidth: Number) -> float:
    """All within h weigh the same."""
    return float(distance <= bandwidth)


def shifted(point: Point, data: list[Point], bandwidth: Number, kernel: Kernel) -> Point:
    """The mean of the data, weighed by nearness to `point`."""
    weights = [kernel(math.dist(point, other), bandwidth) for other in data]
    total = sum(weights)
    return [sum(map(mul, weights, column)) / total for column in zip(*data, strict=True)]


def mean_shift(
    x: Tensor, bandwidth: Number, kernel: Kernel = gaussian, max_steps: int = 100, tolerance: float = 1e-6
) -> Tensor:
    """(n, d): where each point comes to rest. Data stay in place; only the points that look for peaks move."""
    if x.ndim != 2 or not len(x):
        raise ValueError(f"mean shift needs points (n, d), at least one, got shape {list(x.shape)}")
    if bandwidth <= 0 or max_steps < 1:
        raise ValueError(f"bandwidth and max_steps must be above 0, got {bandwidth} and {max_steps}")
    data = x.to("float64").tolist()
    points = list(data)
    for _ in range(max_steps):
        moved = [shifted(point, data, bandwidth, kernel) for point in points]
        longest = max(map(math.dist, points, moved))
        points = moved
        if longest < tolerance:
            break
    return Tensor(points, "float64")


def clusters(peaks: Tensor, apart: Number) -> tuple[list[int], Tensor]:
    """(a label for each point, the peaks): points that came to rest within `apart` of a peak belong to it."""
    centres: list[Point] = []
    labels = []
    for point in peaks.tolist():
        near = next((i for i, centre in enumerate(centres) if math.dist(centre, point) < apart), len(centres))
        if near == len(centres):
            centres.append(point)
        labels.append(near)
    return labels, Tensor(centres, "float64")
