"""Discrete noise schedules: how much noise is in a picture at each training timestep."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]

# Zero terminal SNR makes the last sigma infinite. Diffusers' samplers put this, float16's smallest number, in place of
# an alpha_bar of 0, which makes the last sigma 4096.
SMALLEST_ALPHA_BAR = 2.0**-24


@dataclass(frozen=True)
class ScheduleConfig:
    """A noise schedule, with the names that Diffusers uses in `scheduler_config.json`.

    Betas are variances per training step. The last six fields do not describe the noise, but how samplers walk through
    it: see `miniai.diffusion.ladder`. Defaults are those that Diffusers' classes share; Stable Diffusion's are
    `beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"`.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}: at least 2 are needed")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(f"{len(self.trained_betas)} trained_betas for {self.num_train_timesteps} timesteps")
        if self.trained_betas is None and not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"beta_start {self.beta_start} and beta_end {self.beta_end} must rise within (0, 1)")
        if self.trained_betas is not None and not all(0 < beta < 1 for beta in self.trained_betas):
            raise ValueError("trained_betas must all lie within (0, 1)")


def make_betas(config: ScheduleConfig, dtype: torch.dtype = torch.float64) -> Float[Tensor, " t"]:
    """The variance that each training step adds; the last is 1 after a zero-SNR rescale."""
    n = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = torch.tensor(config.trained_betas, dtype=dtype)
    elif config.beta_schedule == "linear":  # Ho et al. 2020, section 4
        betas = torch.linspace(config.beta_start, config.beta_end, n, dtype=dtype)
    elif config.beta_schedule == "scaled_linear":  # Rombach et al. 2022, their code: linear in the square root
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, n, dtype=dtype) ** 2
    elif config.beta_schedule == "sigmoid":  # Xu et al. 2022 (GeoDiff), as Diffusers has it
        ramp = torch.linspace(-6, 6, n, dtype=dtype).sigmoid()
        betas = config.beta_start + ramp * (config.beta_end - config.beta_start)
    else:  # Nichol & Dhariwal 2021, eq. 17, with their cap of 0.999
        t = torch.arange(n + 1, dtype=torch.float64) / n
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999).to(dtype)
    return rescale_to_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def rescale_to_zero_terminal_snr(betas: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Betas changed so that nothing of the picture is left at the last step: Lin et al. 2023, algorithm 1."""
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def _finite_sigma(alpha_bar: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    finite = torch.where(alpha_bar == 0, SMALLEST_ALPHA_BAR, alpha_bar)
    return ((1 - finite) / finite).sqrt()


class NoiseSchedule:
    """alpha_bar for each training timestep, and the ways between timestep and sigma.

    x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps is what networks see. Samplers work on x = x_t / sqrt(alpha_bar),
    which is x0 + sigma * eps with sigma = sqrt((1 - alpha_bar) / alpha_bar).

    Attributes: `alpha_bar`, falling, 0 at the end of a zero-SNR schedule; `sigma`, rising and always finite (see
    `SMALLEST_ALPHA_BAR`). Both are float64 on the CPU; methods answer on the device and in the dtype they are asked in.
    `sigma_in_float32` is what Diffusers, which has all of it in float32, has for `sigma`: some parts in a million off.

    >>> schedule = NoiseSchedule(ScheduleConfig(beta_schedule="squaredcos_cap_v2"))
    >>> sigma = schedule.t_to_sigma(torch.tensor([0, 500]))
    >>> schedule.sigma_to_t(sigma).round().tolist()
    [0.0, 500.0]
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.alpha_bar: Float[Tensor, " t"] = (1 - make_betas(config)).cumprod(0)
        self.sigma: Float[Tensor, " t"] = _finite_sigma(self.alpha_bar)

    @cached_property
    def sigma_in_float32(self) -> Float[Tensor, " t"]:
        return _finite_sigma((1 - make_betas(self.config, torch.float32)).cumprod(0))

    @property
    def n_timesteps(self) -> int:
        return len(self.alpha_bar)

    def sigma_to_t(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The timestep, fractional, 0 to n_timesteps - 1, at which the noise is `sigma`.

        Interpolated linearly in log(sigma), and held at the ends, as k-diffusion's `DiscreteSchedule.sigma_to_t` does.
        """
        table = self.sigma.log().to(sigma.device, sigma.dtype)
        log_sigma = sigma.clamp(min=1e-10).log().contiguous()
        low = (torch.searchsorted(table, log_sigma, right=True) - 1).clamp(0, self.n_timesteps - 2)
        fraction = (log_sigma - table[low]) / (table[low + 1] - table[low])
        return low + fraction.clamp(0, 1)

    def t_to_sigma(self, t_index: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """sigma at a timestep, which may be fractional: the inverse of `sigma_to_t`, float64 if `t_index` is whole."""
        t = t_index if t_index.is_floating_point() else t_index.double()
        table = self.sigma.log().to(t.device, t.dtype)
        low = t.floor().long().clamp(0, self.n_timesteps - 2)
        return torch.lerp(table[low], table[low + 1], (t - low).clamp(0, 1)).exp()
