"""14. What a sample says: mean, variance, covariance, correlation, histogram."""

from array import array
from functools import partial

from miniai.scratch.ieee import Number, divide, sqrt
from miniai.scratch.tensor import Dims, Tensor


def mean(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """E[x]."""
    return x.mean(dim, keepdim)


def variance(x: Tensor, dim: Dims = None, keepdim: bool = False, correction: int = 1) -> Tensor:
    """E[(x - E[x])²]. With `correction` 1 the sum is divided by n - 1, which makes up for the mean having been taken
    from the same sample (Bessel)."""
    return x.to("float64").reduce(partial(variance_of_row, correction=correction), dim, keepdim)


def variance_of_row(row: list[float], correction: int) -> float:
    centre = divide(sum(row), len(row))
    return divide(sum((value - centre) ** 2 for value in row), max(len(row) - correction, 0))


def standard_deviation(x: Tensor, dim: Dims = None, keepdim: bool = False, correction: int = 1) -> Tensor:
    """The square root of the variance, in the unit of x."""
    return variance(x, dim, keepdim, correction).map(sqrt)


def covariance(x: Tensor, correction: int = 1) -> Tensor:
    """(n, n) for n quantities in the rows of `x`, their samples in its columns: E[(x - E[x]) (y - E[y])]."""
    if x.ndim != 2:
        raise RuntimeError(f"expected one row for each quantity, got {x.ndim} dimensions")
    centred = x - x.mean(1, keepdim=True)
    return centred @ centred.transpose(0, 1) / max(x.shape[1] - correction, 0)


def correlation(x: Tensor) -> Tensor:
    """Covariance over both standard deviations (Pearson): 1 where one quantity rises in step with another, -1 where it
    falls in step."""
    together = covariance(x)
    deviations = Tensor([sqrt(together[i, i].item()) for i in range(len(together))], "float64")
    # Rounding may leave [-1, 1]; what never varies has no correlation, and its nan stays.
    return (together / deviations[:, None] / deviations).map(lambda r: r if r != r else min(1.0, max(-1.0, r)))


def histogram(x: Tensor, bins: int, low: Number, high: Number) -> Tensor:
    """int64 (bins,): how many elements fall into each of `bins` equal parts of [low, high].

    The last bin holds `high` itself too; elements outside count nowhere.
    """
    if bins < 1:
        raise RuntimeError(f"bins must be > 0, but got {bins}")
    if not low < high:
        raise RuntimeError(f"histogram needs low < high, got {low} and {high}")
    counts = array("q", [0]) * bins
    for value in x.flat():
        if low <= value <= high:
            counts[min(int((value - low) * bins / (high - low)), bins - 1)] += 1
    return Tensor.of(counts, (bins,))
