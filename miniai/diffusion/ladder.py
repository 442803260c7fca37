"""The sigmas that a sampler visits, from most noise to least, and the timesteps that the network is told at each.

Every family of samplers in Diffusers places its steps a little differently; `LadderRule` says how, in six words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.diffusion.schedule import NoiseSchedule

# Stands for an infinite sigma: one part in a million of signal, and float32 still holds the rest.
NO_SIGNAL = 1e6

StepList = Sequence[int | float] | np.ndarray
SigmaSpacing = Literal["timesteps", "karras", "exponential"]


@dataclass(frozen=True)
class LadderRule:
    """How one family of samplers places its steps.

    - whole_timesteps: the network is only ever asked at whole timesteps (DDIM, DDPM, DPM-Solver), not between them.
    - one_more: n + 1 timesteps are spread over the schedule and the lowest is left out (DPM-Solver).
    - unit_start: sampling starts from noise of variance 1 in the network's coordinates, whatever the spacing. Without
      it that holds for "leading" only, and otherwise x starts as sigma * noise (Euler and its relatives).
    - ends_in_first_timestep: with `set_alpha_to_one=False`, sampling ends at timestep 0 and not at sigma 0 (DDIM).
    - round_karras: Karras sigmas are told to the network as the nearest whole timesteps (DPM2).
    - exact_zero_snr: a schedule that ends without signal starts from noise alone (DDIM, DDPM): from sigma `NO_SIGNAL`,
      where the others have `schedule.SMALLEST_ALPHA_BAR`.
    """

    whole_timesteps: bool = False
    one_more: bool = False
    unit_start: bool = False
    ends_in_first_timestep: bool = False
    round_karras: bool = False
    exact_zero_snr: bool = False


@dataclass(frozen=True)
class Ladder:
    """n steps: n + 1 falling sigmas, and the timestep that belongs to each of the first n; float64 on the CPU.

    Unit noise times `start_scale` is a sampler's first x; its last x times `end_scale` is the latents
    (1 at sigma 0, and where what is left is x0 + sigma * eps, as Euler's is).
    `n_skipped` steps stood before these, see `after`.
    """

    sigmas: Float[Tensor, " n_plus_1"]
    timesteps: Float[Tensor, " n"]
    start_scale: float
    end_scale: float = 1.0
    n_skipped: int = 0

    @property
    def n_steps(self) -> int:
        return len(self.timesteps)

    def after(self, n_skipped: int) -> "Ladder":
        """The ladder without its first `n_skipped` steps, for a start from a picture: x = x0 + sigmas[0] * noise."""
        if not 0 <= n_skipped < self.n_steps:
            raise ValueError(f"{n_skipped} of {self.n_steps} steps cannot be skipped: at least one must stay")
        kept = self.sigmas[n_skipped:]
        return Ladder(kept, self.timesteps[n_skipped:], float(kept[0]), self.end_scale, self.n_skipped + n_skipped)


def make_ladder(
    schedule: NoiseSchedule,
    n_steps: int,
    rule: LadderRule,
    sigma_spacing: SigmaSpacing = "timesteps",
) -> Ladder:
    """The ladder of `n_steps` steps: equal to what `set_timesteps(n_steps)` gives in Diffusers' class of that family.

    Timesteps follow the config's `timestep_spacing` and `steps_offset`; `sigma_spacing` "karras" or "exponential" puts
    the sigmas of those names in their place, over the same range. One single step always starts at the last timestep,
    where Diffusers' "leading" and "linspace" would start at timestep 0, without any noise to remove.
    Raises UserError when `n_steps` is out of range.
    """
    config, sigma_table = schedule.config, _sigma_table(schedule, rule)
    t = _timesteps(schedule, n_steps, rule)
    if sigma_spacing == "timesteps":
        sigmas = np.interp(t, np.arange(schedule.n_timesteps), sigma_table)
    else:
        sigmas = _spaced(sigma_table, t, rule, sigma_spacing)
        t = _told_timesteps(schedule, sigmas, t, rule, sigma_spacing)
    last = _last_sigma(schedule, rule)
    levels = np.append(sigmas, last)
    # A ladder from timestep 0 to timestep 0 (no leading offset, set_alpha_to_one=False) has an empty last step.
    if not (np.diff(levels)[:-1] < 0).all() or levels[-2] < last:
        raise UserError(
            f"{n_steps} steps do not fit into {schedule.n_timesteps} timesteps with timestep_spacing "
            f"{config.timestep_spacing!r} and steps_offset {config.steps_offset}: take fewer steps"
        )
    return _ladder(schedule, rule, levels, t)


def ladder_at(schedule: NoiseSchedule, timesteps: StepList, rule: LadderRule) -> Ladder:
    """The ladder that visits these timesteps, falling, and ends as one of `make_ladder` does: Diffusers'
    `set_timesteps(timesteps=...)`. Raises UserError for a list that does not fall within the schedule."""
    t = _falling("timesteps", timesteps, schedule.n_timesteps - 1)
    t = np.trunc(t) if rule.whole_timesteps else t
    sigmas = np.interp(t, np.arange(schedule.n_timesteps), _sigma_table(schedule, rule))
    levels = np.append(sigmas, _last_sigma(schedule, rule))
    if not (np.diff(levels)[:-1] < 0).all() or levels[-2] < levels[-1]:
        raise UserError("timesteps: each must be a whole one of its own for this sampler")
    return _ladder(schedule, rule, levels, t)


def ladder_through(schedule: NoiseSchedule, sigmas: StepList, rule: LadderRule) -> Ladder:
    """The ladder of these noise levels, falling, the last of them, mostly 0, being where it ends: Diffusers'
    `set_timesteps(sigmas=...)`. Raises UserError for a list that does not fall within the schedule."""
    levels = _falling("sigmas", sigmas, float(schedule.sigma[-1]))
    if len(levels) < 2:
        raise UserError("sigmas: give at least two, the last of which is where sampling ends, mostly 0")
    t = schedule.sigma_to_t(torch.from_numpy(levels[:-1])).numpy()
    return _ladder(schedule, rule, levels, np.round(t) if rule.whole_timesteps else t)


def karras_sigmas(sigma_min: float, sigma_max: float, n_steps: int, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022, eq. 5, without its final 0: falling, dense near sigma_min."""
    ramp = np.linspace(0, 1, n_steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[-1], sigmas[0] = sigma_min, sigma_max  # exactly, not within rounding of them
    return sigmas


def exponential_sigmas(sigma_min: float, sigma_max: float, n_steps: int) -> np.ndarray:
    """Falling sigmas, equally far apart in log(sigma)."""
    return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), n_steps))


def cosine_sigmas(sigma_max: int | float, n_steps: int, sigma_data: int | float = 1.0) -> np.ndarray:
    """Falling sigmas without a final 0, equally far apart in arctan(sigma / sigma_data): evenly in time on the cosine
    schedule (Nichol & Dhariwal 2021, eq. 17 with s = 0) of data divided by its deviation `sigma_data`.

    >>> [round(float(sigma), 3) for sigma in cosine_sigmas(3**0.5, 2)]
    [1.732, 0.577]
    """
    angles = np.arctan(sigma_max / sigma_data) * np.arange(n_steps, 0, -1) / n_steps
    return sigma_data * np.tan(angles)


def _sigma_table(schedule: NoiseSchedule, rule: LadderRule, sigma: Float[Tensor, " t"] | None = None) -> np.ndarray:
    """The sigma of each timestep, as the schedule says or as given."""
    table = (schedule.sigma if sigma is None else sigma).numpy()
    no_signal = np.array(NO_SIGNAL, dtype=table.dtype)
    return np.where(schedule.alpha_bar.numpy() == 0, no_signal, table) if rule.exact_zero_snr else table


def _last_sigma(schedule: NoiseSchedule, rule: LadderRule) -> float:
    """Where sampling ends."""
    config = schedule.config
    ends_low = config.final_sigmas_type == "sigma_min" or (rule.ends_in_first_timestep and not config.set_alpha_to_one)
    return float(schedule.sigma[0]) if ends_low else 0.0


def _ladder(schedule: NoiseSchedule, rule: LadderRule, levels: np.ndarray, t: np.ndarray) -> Ladder:
    unit_start = rule.unit_start or schedule.config.timestep_spacing == "leading"
    return Ladder(
        sigmas=torch.from_numpy(levels),
        timesteps=torch.from_numpy(t),
        start_scale=float(np.hypot(1, levels[0]) if unit_start else levels[0]),
        # Euler and its relatives leave what ends above sigma 0 as x0 + sigma * eps, in Diffusers as in k-diffusion.
        end_scale=float(1 / np.hypot(1, levels[-1])) if rule.unit_start else 1.0,
    )


def _falling(name: str, values: StepList, highest: int | float) -> np.ndarray:
    """The list as float64. Raises UserError unless it falls, from `highest` at most, down to 0 at least; a
    thousandth above is rounding, as published lists have it."""
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
        raise UserError(f"{name}: give a list of numbers")
    if (np.diff(given) >= 0).any() or given[0] > highest * 1.001 or given[-1] < 0:
        raise UserError(f"{name} must fall from {highest:g} at most to 0 at least, and {given.tolist()} do not")
    return given


def _timesteps(schedule: NoiseSchedule, n_steps: int, rule: LadderRule) -> np.ndarray:
    """Falling timesteps as in Lin et al. 2023, table 2, and Diffusers' `set_timesteps`."""
    config, n_train = schedule.config, schedule.n_timesteps
    if not 1 <= n_steps <= n_train:
        raise UserError(f"{n_steps} sampling steps: there must be at least 1 and at most {n_train}")
    if n_steps == 1:
        return np.array([n_train - 1.0])
    n_points = n_steps + 1 if rule.one_more else n_steps
    if config.timestep_spacing == "trailing":
        # `arange` rounds as it does for Diffusers; for some n, 61 is one, it makes a step too many there.
        return np.round(np.arange(n_train, 0, -n_train / n_steps))[:n_steps] - 1
    if config.timestep_spacing == "leading":
        rising = np.arange(n_points, dtype=np.float64) * (n_train // n_points) + config.steps_offset
    else:
        rising = np.linspace(0, n_train - 1, n_points)
        rising = np.round(rising) if rule.whole_timesteps else rising
    return rising[n_points - n_steps :][::-1].copy()


def _spaced(table: np.ndarray, t: np.ndarray, rule: LadderRule, sigma_spacing: SigmaSpacing) -> np.ndarray:
    """As many sigmas as timesteps, in the spacing's places, between the ends of the table or the sigmas of the ends of
    `t`."""
    ends = (table[-1], table[0]) if rule.one_more else np.interp(t[[0, -1]], np.arange(len(table)), table)
    make = karras_sigmas if sigma_spacing == "karras" else exponential_sigmas
    return make(float(ends[1]), float(ends[0]), len(t))


def _told_timesteps(
    schedule: NoiseSchedule, sigmas: np.ndarray, t: np.ndarray, rule: LadderRule, sigma_spacing: SigmaSpacing
) -> np.ndarray:
    """The timesteps that Diffusers tells the network at `sigmas`, which do not come from the timesteps `t`.

    Where it makes whole ones of them it does so from sigmas in float32, and what is half-way, or just below a whole
    one, depends on that: at 18 steps one of DPM++ 2M Karras would be another.
    """
    rounds = rule.round_karras or (rule.one_more and schedule.config.beta_schedule != "squaredcos_cap_v2")
    rounds = rounds and sigma_spacing == "karras"
    if not rounds and not rule.whole_timesteps:
        return schedule.sigma_to_t(torch.from_numpy(sigmas)).numpy()
    table = _sigma_table(schedule, rule, schedule.sigma_in_float32)
    log_table, log_sigmas = np.log(table), np.log(_spaced(table, t, rule, sigma_spacing))
    low = (np.searchsorted(log_table, log_sigmas, side="right") - 1).clip(0, len(table) - 2)
    told = low + ((log_sigmas - log_table[low]) / (log_table[low + 1] - log_table[low])).clip(0, 1)
    return np.round(told) if rounds else np.trunc(told)
