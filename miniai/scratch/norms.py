"""13. Lengths of vectors and matrices, and the logarithm of a sum of exponentials, at any size of number."""

import math
from functools import partial

from miniai.scratch.ieee import Number, exp, log
from miniai.scratch.tensor import Dims, Tensor


def vector_norm(x: Tensor, p: Number = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """(Σ |x|^p)^(1/p); the greatest |x| for p = inf, the least for -inf, the count of non-zeros for 0."""
    return x.to("float64").reduce(partial(norm_of_row, p=p), dim, keepdim)


def norm_of_row(row: list[float], p: Number) -> Number:
    """The greatest is divided out first: 1e200 squared is no float64, yet (1e200, 1e200) has a length. Of a negative
    power it is the least that counts most."""
    sizes = [abs(value) for value in row]
    if p == 0:
        return sum(size != 0 for size in sizes)
    if any(math.isnan(size) for size in sizes):  # which no comparison would show
        return math.nan
    most = max(sizes, default=0.0) if p > 0 else min(sizes)
    if math.isinf(p) or not most or math.isinf(most):
        return most
    return most * sum((size / most) ** p for size in sizes) ** (1 / p)


def frobenius_norm(x: Tensor) -> Tensor:
    """sqrt(Σ x²) of a matrix (the last two dimensions): its length, were it a vector."""
    check_matrix(x)
    return vector_norm(x, 2, (-2, -1))


def one_norm(x: Tensor) -> Tensor:
    """The greatest sum of |x| in a column: how far a matrix can stretch a vector, both measured by sums."""
    check_matrix(x)
    return abs(x).sum(-2).reduce(max, -1)


def inf_norm(x: Tensor) -> Tensor:
    """The greatest sum of |x| in a row: the same, measured by the greatest entry."""
    check_matrix(x)
    return abs(x).sum(-1).reduce(max, -1)


def check_matrix(x: Tensor) -> None:
    if x.ndim < 2:
        raise RuntimeError(f"the norm of a matrix needs at least 2 dimensions, got {x.ndim}")


def logsumexp(x: Tensor, dim: Dims = -1, keepdim: bool = False) -> Tensor:
    """log Σ e^x."""
    return x.to("float64").reduce(logsumexp_of_row, dim, keepdim)


def logsumexp_of_row(row: list[float]) -> float:
    """The greatest is taken out first, log Σ e^x = a + log Σ e^(x - a), so that e^10000 is never formed."""
    greatest = max(row, default=-math.inf)
    if math.isinf(greatest):
        return greatest
    return greatest + log(sum(exp(value - greatest) for value in row))
