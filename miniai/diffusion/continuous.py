"""Noise in continuous time: each schedule says how large sigma is at time t in [0, 1], and when it is that large.

x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps and sigma = sqrt((1 - alpha_bar) / alpha_bar), as for the discrete
schedules. Where no signal would be left at t = 1, sigma stops at 4096, as theirs does (`SMALLEST_ALPHA_BAR`).
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.diffusion.schedule import SMALLEST_ALPHA_BAR, PredictionType, ScheduleConfig

Times = Float[Tensor, " b"]


@runtime_checkable
class ContinuousSchedule(Protocol):
    """sigma rises with t, and `time` undoes `sigma`."""

    def sigma(self, t: Times) -> Times: ...

    def time(self, sigma: Times) -> Times: ...


@dataclass(frozen=True)
class LinearTime:
    """beta rises linearly: Song et al. 2021, eq. 33; the limit of DDPM's linear schedule.

    >>> schedule = LinearTime()
    >>> t = torch.tensor([0.01, 0.5, 1.0])
    >>> torch.allclose(schedule.time(schedule.sigma(t)), t, atol=1e-4)
    True
    """

    beta_min: int | float = 0.1
    beta_max: int | float = 20.0

    def sigma(self, t: Times) -> Times:
        return torch.expm1((self.beta_max - self.beta_min) / 2 * t**2 + self.beta_min * t).sqrt()

    def time(self, sigma: Times) -> Times:
        rise = self.beta_max - self.beta_min
        return ((self.beta_min**2 + 2 * rise * torch.log1p(sigma**2)).sqrt() - self.beta_min) / rise


@dataclass(frozen=True)
class CosineTime:
    """alpha_bar = cos^2((t + s) / (1 + s) pi / 2), divided by its value at 0: Nichol & Dhariwal 2021, eq. 17.

    >>> round(CosineTime(s=0.0).sigma(torch.tensor([0.5])).item(), 5)
    1.0
    """

    s: int | float = 0.008

    def sigma(self, t: Times) -> Times:
        cosine = torch.cos((t + self.s) / (1 + self.s) * math.pi / 2)
        return _from_alpha_bar((cosine / self._first()) ** 2)

    def time(self, sigma: Times) -> Times:
        cosine = (_to_alpha_bar(sigma).sqrt() * self._first()).clamp(-1, 1)
        return torch.acos(cosine) * 2 / math.pi * (1 + self.s) - self.s

    def _first(self) -> float:
        return math.cos(self.s / (1 + self.s) * math.pi / 2)


@dataclass(frozen=True)
class SigmoidTime:
    """alpha_bar falls along a sigmoid: Jabri et al. 2023; Chen 2023, "On the importance of noise scheduling", alg. 1.

    A larger `tau` leaves more signal late; `start` and `end` are the stretch of the sigmoid that is used.

    >>> round(SigmoidTime().sigma(torch.tensor([0.5])).item(), 5)
    1.0
    """

    start: int | float = -3.0
    end: int | float = 3.0
    tau: int | float = 1.0

    def sigma(self, t: Times) -> Times:
        first, last = self._ends()
        here = torch.sigmoid((t * (self.end - self.start) + self.start) / self.tau)
        return _from_alpha_bar((last - here) / (last - first))

    def time(self, sigma: Times) -> Times:
        first, last = self._ends()
        here = last - _to_alpha_bar(sigma) * (last - first)
        return (torch.logit(here) * self.tau - self.start) / (self.end - self.start)

    def _ends(self) -> tuple[float, float]:
        return tuple(1 / (1 + math.exp(-place / self.tau)) for place in (self.start, self.end))  # type: ignore[return-value]


@dataclass(frozen=True)
class KarrasTime:
    """sigma^(1 / rho) rises linearly from sigma_min to sigma_max: Karras et al. 2022, eq. 5, from its end.

    >>> [round(sigma, 3) for sigma in KarrasTime().sigma(torch.tensor([0.0, 1.0])).tolist()]
    [0.002, 80.0]
    """

    sigma_min: int | float = 0.002
    sigma_max: int | float = 80.0
    rho: int | float = 7.0

    def sigma(self, t: Times) -> Times:
        low, high = self._ends()
        return (low + t * (high - low)) ** self.rho

    def time(self, sigma: Times) -> Times:
        low, high = self._ends()
        return (sigma ** (1 / self.rho) - low) / (high - low)

    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


@dataclass(frozen=True)
class FlowTime:
    """sigma = t / (1 - t), the noise of the straight line (1 - t) x0 + t eps: Liu et al. 2022, eq. 1.

    `shift` moves it to higher noise: Esser et al. 2024, eq. 23, for larger pictures.

    >>> FlowTime(shift=3.0).sigma(torch.tensor([0.5])).item()
    3.0
    """

    shift: int | float = 1.0

    def sigma(self, t: Times) -> Times:
        return (self.shift * t / (1 - t)).clamp(max=SMALLEST_ALPHA_BAR**-0.5)

    def time(self, sigma: Times) -> Times:
        return sigma / (self.shift + sigma)


def discretised(
    schedule: ContinuousSchedule, n_timesteps: int = 1000, prediction_type: PredictionType = "epsilon"
) -> ScheduleConfig:
    """The discrete schedule whose alpha_bar after step i is the continuous one's at t = (i + 1) / n_timesteps.

    Betas are capped at 0.999, as Nichol & Dhariwal 2021 cap theirs.

    >>> discretised(CosineTime(), 10).num_train_timesteps
    10
    """
    t = torch.arange(n_timesteps + 1, dtype=torch.float64) / n_timesteps
    alpha_bar = _to_alpha_bar(schedule.sigma(t))
    alpha_bar[0] = 1  # of what no step has touched, where the continuous one may begin with some noise
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(1e-12, 0.999)
    return ScheduleConfig(n_timesteps, trained_betas=tuple(betas.tolist()), prediction_type=prediction_type)


def _from_alpha_bar(alpha_bar: Times) -> Times:
    alpha_bar = alpha_bar.clamp(SMALLEST_ALPHA_BAR, 1)
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def _to_alpha_bar(sigma: Times) -> Times:
    return 1 / (1 + sigma**2)
