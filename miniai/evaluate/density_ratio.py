"""How much likelier each sample is among real ones than among others: a density ratio by logistic regression.

A classifier that is to tell samples of p from as many of q, and is as sure as it should be, says sigmoid(log p/q)
(Sugiyama et al. 2012, "Density Ratio Estimation in Machine Learning", chapter 4). To keep samples of q with a chance in
proportion to that ratio makes samples of p of them (Azadi et al. 2019, "Discriminator Rejection Sampling", arXiv
1810.06758, section 3.1).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MOST_STEPS = 100
TOLERANCE = 1e-9


@dataclass(frozen=True)
class DensityRatio:
    """p/q = exp(`weights` · (x - `mean`) / `deviation` + `bias`), in float64."""

    mean: Float[Tensor, " d"]
    deviation: Float[Tensor, " d"]
    weights: Float[Tensor, " d"]
    bias: Float[Tensor, ""]

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The ratio for each row, above 0."""
        return (scaled(features, self.mean, self.deviation) @ self.weights + self.bias).exp()

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a file of weights; `DensityRatio(**tensors)` is the same again."""
        return dict(vars(self))


def scaled(features: Tensor, mean: Tensor, deviation: Tensor) -> Float[Tensor, "n d"]:
    """Features less their mean, in parts of their deviation."""
    return (features.double() - mean) / deviation


def fit_density_ratio(
    real: Float[Tensor, "n d"], other: Float[Tensor, "m d"], ridge: int | float = 1e-3
) -> DensityRatio:
    """The ratio of the density of `real` to that of `other`, whose numbers need not be alike: both count by their mean.

    Newton's method in float64 on (mean loss over real + mean loss over other) / 2 + ridge * |weights|², which has one
    minimum: no seed, no rate. Features are scaled to the deviation that they have in both; those that never change
    count for nothing. `ridge` must be above 0: where a plane parts all of the one from all of the other, the
    likeliest ratio is infinite. Raises ValueError otherwise, and for fewer than two rows of either.

    >>> real, other = torch.randn(4000, 1) + 1, torch.randn(4000, 1)
    >>> ratio = fit_density_ratio(real, other)
    >>> at = torch.tensor([[0.0], [1.0]])
    >>> bool((ratio(at).log() - (at[:, 0] - 0.5)).abs().max() < 0.1)  # of two normal distributions it is exp(x - 1/2)
    True
    """
    if ridge <= 0 or min(len(real), len(other)) < 2:
        raise ValueError(f"a ridge above 0 and two rows of each are needed, not {ridge}, {len(real)} and {len(other)}")
    both = torch.cat([real, other]).double()
    mean, deviation = both.mean(0), both.std(0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    rows = torch.cat([scaled(both, mean, deviation), both.new_ones(len(both), 1)], 1)
    signs = torch.cat([both.new_ones(len(real)), -both.new_ones(len(other))])
    shares = torch.cat([both.new_full((len(part),), 0.5 / len(part)) for part in (real, other)])
    penalty = both.new_full((rows.shape[1],), float(ridge))
    penalty[-1] = 0.0  # the constant goes free
    found = _minimum(rows, signs, shares, penalty)
    return DensityRatio(mean, deviation, found[:-1], found[-1])


def _minimum(
    rows: Float[Tensor, "n d"], signs: Float[Tensor, " n"], shares: Float[Tensor, " n"], penalty: Float[Tensor, " d"]
) -> Float[Tensor, " d"]:
    """The w at which sum(shares * log(1 + exp(-signs * rows w))) + sum(penalty * w²) is least."""

    def loss(w: Tensor) -> Tensor:
        return -(shares * F.logsigmoid(signs * (rows @ w))).sum() + (penalty * w.square()).sum()

    w = rows.new_zeros(rows.shape[1])
    for _ in range(MOST_STEPS):
        wrong = torch.sigmoid(-signs * (rows @ w))
        slope = -rows.T @ (shares * signs * wrong) + 2 * penalty * w
        if slope.abs().max() < TOLERANCE:
            break
        curvature = (rows.T * (shares * wrong * (1 - wrong))) @ rows + torch.diag(2 * penalty)
        step = torch.linalg.solve(curvature, slope)
        now, length = loss(w), 1.0
        while length > 1e-6 and loss(w - length * step) > now:
            length /= 2
        w = w - length * step
    return w
