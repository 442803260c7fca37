"""How far apart two sets of pictures are, as sets: Fréchet distance (FID) and kernel distance (KID) of their features.

Features are rows of numbers that some network made of the pictures. Both figures depend on that network and on the
features' scale: compare only what was computed with the same one.
"""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserNotice
from miniai.base.seeds import make_generator

FEW_SAMPLES = 2048  # what Heusel et al.'s own code asks for as the least


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and unbiased covariance (d, d) of a set of features, float64."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """Mean and covariance of at least two rows of features."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least two pictures, not {len(features)}")
    rows = _checked(features)
    mean = rows.mean(dim=0)
    centred = rows - mean
    return Moments(mean, centred.T @ centred / (len(rows) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of the two normal distributions with these moments, at least 0.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))   (Heusel et al. 2017, equation 6; Dowson and Landau 1982)

    With C1 = F1 F1^T and C2 = F2 F2^T the trace of that root is the sum of the singular values of F1^T F2, whose
    squares are the eigenvalues of C1 C2. So no unsymmetric matrix needs a root, nothing is complex, and a singular
    covariance needs no offset.
    """
    trace_of_root = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    shift = (a.mean - b.mean).square().sum()
    return max(0.0, float(shift + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root))


def _factor(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Some F with F F^T = covariance: Cholesky's, which takes the least time; and where that is singular, by
    eigenvalues, of which what rounding left of zeros is set to zero, or its root would be far larger."""
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return triangle
    values, vectors = torch.linalg.eigh(covariance)
    smallest = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > smallest, values, 0).sqrt()


def fid(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Fréchet distance between two sets of features (Heusel et al. 2017); its unit is that of the features, squared.

    The estimate is biased upward, the more the fewer pictures there are: compare figures of equally large sets only. A
    UserNotice says so if either set has fewer than 2,048.

    >>> features = torch.randn(2048, 4)
    >>> round(fid(features, features + 0.5), 4)
    1.0
    """
    fewer = min(len(a), len(b))
    if fewer < FEW_SAMPLES:
        warnings.warn(
            f"FID of {fewer:,} pictures is biased upward (below {FEW_SAMPLES:,} it is no absolute figure): "
            "compare it only with another of as many",
            UserNotice,
            stacklevel=2,
        )
    if max(len(a), len(b)) < a.shape[1]:
        return _distance_of_few(a, b)
    return frechet_distance(moments(a), moments(b))


def _distance_of_few(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """`frechet_distance` of fewer pictures than features, without a matrix of all features.

    With C1 = A^T A and C2 = B^T B for the centred rows A and B, the eigenvalues of C1 C2 are those of (A B^T)(A B^T)^T,
    so the trace of the root is the sum of the singular values of A B^T, which is n by m.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least two pictures, not {min(len(a), len(b))}")
    rows_a, rows_b = _checked(a), _checked(b)
    mean_a, mean_b = rows_a.mean(dim=0), rows_b.mean(dim=0)
    left, right = (rows_a - mean_a) / (len(a) - 1) ** 0.5, (rows_b - mean_b) / (len(b) - 1) ** 0.5
    spread = left.square().sum() + right.square().sum() - 2 * torch.linalg.svdvals(left @ right.T).sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + spread))


@dataclass(frozen=True)
class KID:
    """Mean of the squared MMD over `n_subsets` subsets of `subset_size` pictures, and its deviation among them.

    The estimate is unbiased, so it can be slightly negative; the deviation is of one subset's figure.
    """

    mean: float
    deviation: float
    n_subsets: int
    subset_size: int


def kid(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], n_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KID:
    """Kernel distance between two sets of features (Binkowski et al. 2018, section 4).

    The mean over random subsets of the unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3.
    Subsets are drawn without replacement, at most half of the smaller set, so that they differ from one another.

    >>> features = torch.randn(200, 4)
    >>> far = kid(features[:100], features[100:] + 2, n_subsets=10)
    >>> near = kid(features[:100], features[100:], n_subsets=10)
    >>> far.mean > 10 * abs(near.mean), far.deviation > 0
    (True, True)
    """
    if subset_size < 2:
        raise ValueError(f"KID needs subsets of two pictures and more, not of {subset_size}")
    size = min(subset_size, min(len(a), len(b)) // 2)
    if size < 2 or n_subsets < 1:
        raise ValueError(f"KID needs at least four pictures on each side and one subset, not {len(a)} and {len(b)}")
    a, b = _checked(a), _checked(b)
    figures = []
    for i in range(n_subsets):
        generator = make_generator(seed, i)
        few_a = a[torch.randperm(len(a), generator=generator)[:size].to(a.device)]
        few_b = b[torch.randperm(len(b), generator=generator)[:size].to(b.device)]
        figures.append(squared_mmd(few_a, few_b))
    values = torch.tensor(figures, dtype=torch.float64)
    return KID(float(values.mean()), float(values.std(unbiased=False)), n_subsets, size)


def squared_mmd(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy, kernel (x.y / d + 1)^3
    (Gretton et al. 2012, equation 3; Binkowski et al. 2018, equation 4)."""
    a, b = _checked(a), _checked(b)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"the unbiased estimate needs at least two pictures on each side, not {n} and {m}")
    within_a, within_b, between = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    mean_a = (within_a.sum() - within_a.trace()) / (n * (n - 1))
    mean_b = (within_b.sum() - within_b.trace()) / (m * (m - 1))
    return float(mean_a + mean_b - 2 * between.mean())


def _kernel(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _checked(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """In float64, where the difference of two traces keeps its digits."""
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or Inf: there is no distance between such sets")
    return features.double()
