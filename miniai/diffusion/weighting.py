"""How much each noise level counts: weights of the squared error in x0, as functions of sigma.

In these terms every objective is one weight, whatever the network predicts: an error in the prediction is one in x0
times c_out(sigma), so its weight is that of x0 times c_out^2 (`as_weight_of_prediction`). SNR is 1 / sigma^2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.diffusion.parametrisation import Parametrisation, x0_coefficients

WeightOfX0 = Callable[[Float[Tensor, " b"]], Float[Tensor, " b"]]


def as_weight_of_prediction(
    weight: WeightOfX0, sigma: Float[Tensor, " b"], kind: Parametrisation, sigma_data: int | float = 1.0
) -> Float[Tensor, " b"]:
    """The weight of the squared error in a prediction of `kind` that does what `weight` does to that in x0.

    >>> sigma = torch.tensor([0.5, 4.0])
    >>> as_weight_of_prediction(Plain("epsilon"), sigma, "epsilon")
    tensor([1., 1.])
    """
    _, c_out = x0_coefficients(kind, sigma, float(sigma_data))
    return weight(sigma) * c_out**2


@dataclass(frozen=True)
class Plain:
    """Weight 1 for the error in a prediction of `kind`: for "epsilon" the simple loss of Ho et al. 2020, eq. 14."""

    kind: Parametrisation
    sigma_data: int | float = 1.0

    def __call__(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return x0_coefficients(self.kind, sigma, float(self.sigma_data))[1] ** -2


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma): Hang et al. 2023, section 3.4.

    >>> MinSNR(gamma=5.0)(torch.tensor([0.1, 1.0, 2.0]))
    tensor([5.0000, 1.0000, 0.2500])
    """

    gamma: int | float = 5.0

    def __call__(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (sigma**-2).clamp(max=self.gamma)


@dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, 1): Salimans & Ho 2022, section 4. Their other weight, SNR + 1, is `EDMWeight` of data of deviation 1.

    >>> TruncatedSNR()(torch.tensor([0.5, 1.0, 2.0]))
    tensor([4., 1., 1.])
    """

    def __call__(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (sigma**-2).clamp(min=1)


@dataclass(frozen=True)
class P2:
    """SNR / (k + SNR)^gamma: Choi et al. 2022, eq. 8, where it is 1 / (k + SNR)^gamma for the error in eps.

    Little weight where little noise is left; gamma 0 is the simple loss.

    >>> P2()(torch.tensor([1.0, 0.1]))
    tensor([0.5000, 0.9901])
    """

    gamma: int | float = 1.0
    k: int | float = 1.0

    def __call__(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return sigma**-2 / (self.k + sigma**-2) ** self.gamma


@dataclass(frozen=True)
class EDMWeight:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which is 1 / c_out^2: Karras et al. 2022, table 1."""

    sigma_data: int | float = 0.5

    def __call__(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class LogNormal:
    """`base` times exp(-(ln sigma - mean)^2 / (2 deviation^2)): the levels in the middle count most.

    With sigmas drawn evenly in ln sigma it is what drawing them log-normally is: Karras et al. 2022, table 1, with
    their mean and deviation; and Kingma & Gao 2023, section 3, on weighting in place of drawing.

    >>> LogNormal(base=Plain("sample"), mean=0.0, deviation=1.0)(torch.tensor([1.0, 2.718281828]))
    tensor([1.0000, 0.6065])
    """

    base: WeightOfX0 = EDMWeight()
    mean: int | float = -1.2
    deviation: int | float = 1.2

    def __call__(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        place = (sigma.log() - self.mean) / self.deviation
        return self.base(sigma) * torch.exp(-(place**2) / 2)
