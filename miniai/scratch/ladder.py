"""42. Noise schedules: how much noise a picture holds at each training timestep, and which of them sampling visits.

x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps is what the network sees (Ho et al. 2020, equation 4). Sampling works
on x = x_t / sqrt(alpha_bar) = x0 + sigma * eps. As in diffusion/schedule.py and diffusion/ladder.py, for the sampler
that is here.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path

from miniai.scratch.creation import linspace
from miniai.scratch.folder import read_config, read_json

SAMPLER = "DPMSolverMultistepScheduler"
# Options of Diffusers' class that would change the picture: only these values are understood.
ONLY = {
    **{"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"},
    **{"rescale_betas_zero_snr": False, "thresholding": False, "lower_order_final": True, "euler_at_final": False},
    **{"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False},
    **{"use_lu_lambdas": False, "use_flow_sigmas": False, "lambda_min_clipped": -math.inf},
    **{"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "flow_shift": 1.0},
    **{"use_dynamic_shifting": False, "time_shift_type": "exponential", "clip_sample": False},
}
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}


@dataclass(frozen=True)
class ScheduleConfig:
    """With the names of Diffusers' `scheduler_config.json`. Betas are the variances that training steps add."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not supported here: {', '.join(known)} are")
        if self.num_train_timesteps < 2 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError("there must be at least 2 timesteps, and betas must rise within (0, 1)")

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ScheduleConfig":
        """Reads scheduler_config.json, which must name the sampler that is here."""
        path = folder / "scheduler_config.json"
        named = read_json(path).get("_class_name")
        if named != SAMPLER:
            raise ValueError(f"{path}: the sampler {named} is not supported here, only {SAMPLER} is")
        return read_config(cls, path, ONLY)

    def sigmas(self) -> list[float]:
        """The deviation of the noise at each training timestep, in units of the clean picture's."""
        n, power = self.num_train_timesteps, 2 if self.beta_schedule == "scaled_linear" else 1
        roots = linspace(self.beta_start ** (1 / power), self.beta_end ** (1 / power), n).tolist()
        alpha_bars = accumulate((1 - root**power for root in roots), mul)
        return [math.sqrt((1 - alpha_bar) / alpha_bar) for alpha_bar in alpha_bars]


@dataclass(frozen=True)
class Ladder:
    """n steps: n + 1 falling sigmas, the last 0, and the timestep that belongs to each of the first n. Unit noise times
    `start_scale` is the sampler's first x."""

    sigmas: list[float]
    timesteps: list[int]
    start_scale: float


def make_ladder(config: ScheduleConfig, n_steps: int) -> Ladder:
    """As Lin et al. 2023, table 2, space them and DPM-Solver's class in Diffusers rounds them: whole timesteps, and of
    n + 1 the lowest left out. Raises ValueError where `n_steps` do not fit."""
    n_train = config.num_train_timesteps
    if not 1 <= n_steps <= n_train:
        raise ValueError(f"{n_steps} sampling steps: there must be at least 1 and at most {n_train}")
    if n_steps == 1:
        falling = [n_train - 1]
    elif config.timestep_spacing == "trailing":
        falling = [round(n_train - i * (n_train / n_steps)) - 1 for i in range(n_steps)]
    elif config.timestep_spacing == "leading":
        falling = [i * (n_train // (n_steps + 1)) + config.steps_offset for i in range(n_steps, 0, -1)]
    else:
        falling = [round(t) for t in linspace(0, n_train - 1, n_steps + 1).tolist()[:0:-1]]
    if any(t <= following for t, following in zip(falling, [*falling[1:], -1], strict=True)) or falling[0] >= n_train:
        raise ValueError(f"{n_steps} steps do not fit into {n_train} timesteps: take fewer steps")
    table = config.sigmas()
    sigmas = [table[t] for t in falling]
    return Ladder([*sigmas, 0.0], falling, math.hypot(1, sigmas[0]))
