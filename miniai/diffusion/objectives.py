"""Training objectives: what a diffusion network is taught, and how much each noise level counts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from miniai.diffusion.parametrisation import like_images, training_target
from miniai.diffusion.schedule import SMALLEST_ALPHA_BAR, NoiseSchedule, PredictionType
from miniai.diffusion.weighting import WeightOfX0, as_weight_of_prediction

Network = Callable[..., Tensor]
TimestepSampling = Literal["uniform", "logit_normal"]
Weighting = Literal["none", "min_snr", "min_snr_plus_one"]


@dataclass(frozen=True)
class DiffusionObjective:
    """`objective(network, (x0, condition), generator) -> loss`, for a Learner.

    - schedule: the training noise; its `config.prediction_type` says what the network predicts.
    - weighting, gamma: "none" is Ho et al.'s simple loss; "min_snr" is Hang et al. 2023, and "min_snr_plus_one" the
      same with SNR + 1, which lets high noise count as much as in the plain loss of v: see `min_snr_weight`.
    - timesteps, timestep_shift, stratified: see `draw_timesteps`.
    - weight: in place of `weighting`, the weight of the error in x0 at each sigma: see `miniai.diffusion.weighting`.

    >>> from miniai.diffusion.schedule import ScheduleConfig
    >>> objective = DiffusionObjective(NoiseSchedule(ScheduleConfig()))
    >>> x0 = torch.zeros(64, 1, 4, 4)
    >>> loss = objective(lambda x_t, t, condition: 0 * x_t, (x0, None), torch.Generator())
    >>> 0.9 < loss.item() < 1.1  # who says nothing is wrong by the noise's variance
    True
    """

    schedule: NoiseSchedule
    weighting: Weighting = "none"
    gamma: float = 5.0
    timesteps: TimestepSampling = "uniform"
    timestep_shift: int | float = 1.0
    stratified: bool = True
    weight: WeightOfX0 | None = None

    def __call__(
        self,
        network: Network,
        batch: tuple[Float[Tensor, "b c h w"], Any],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        return self.errors(network, batch, generator).mean()

    def errors(
        self,
        network: Network,
        batch: tuple[Float[Tensor, "b c h w"], Any],
        generator: torch.Generator,
    ) -> Float[Tensor, " b"]:
        """Each picture's own part of the loss, which is their mean."""
        x0, condition = batch
        t = draw_timesteps(
            len(x0),
            self.schedule.n_timesteps,
            generator,
            distribution=self.timesteps,
            shift=self.timestep_shift,
            stratified=self.stratified,
        )
        return diffusion_errors(
            network,
            x0,
            self.schedule.alpha_bar,
            self.schedule.config.prediction_type,
            gamma=None if self.weighting == "none" else self.gamma,
            snr_offset=1.0 if self.weighting == "min_snr_plus_one" else 0.0,
            generator=generator,
            t=t,
            condition=condition,
            weight=self.weight,
        )


def diffusion_errors(
    network: Network,
    x0: Float[Tensor, "b c h w"],
    alpha_bar: Float[Tensor, " n_timesteps"],
    prediction_type: PredictionType,
    *,
    gamma: float | None,
    generator: torch.Generator,
    t: Int[Tensor, " b"] | None = None,
    condition: Any = None,
    snr_offset: float = 0.0,
    weight: WeightOfX0 | None = None,
) -> Float[Tensor, " b"]:
    """Each picture's mean squared error of the network's prediction at a random noise level, in float32. Their mean is
    the loss of Ho et al. 2020, eq. 14.

    The network is called once, as `network(x_t, t, condition)` with t in float32 and
    x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps. It may run under autocast: the error is taken in float32 anyway.

    - gamma, snr_offset: weights of `min_snr_weight`; gamma None for none.
    - weight: in their place, the weight of the error in x0 at each sigma.
    - generator: draws t (where not given) and the noise, in float32 on its own device.
    """
    if t is None:
        t = draw_timesteps(len(x0), len(alpha_bar), generator)
    noise = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=torch.float32).to(x0.device)
    level = alpha_bar.to(t.device, non_blocking=True)[t].double()
    signal, spread = level.sqrt().to(x0.device, torch.float32), (1 - level).sqrt().to(x0.device, torch.float32)
    x0 = x0.float()
    x_t = like_images(signal, x0) * x0 + like_images(spread, x0) * noise
    prediction = network(x_t, t.to(x0.device, torch.float32), condition)
    sigma = ((1 - level) / level).sqrt().to(x0.device, torch.float32)
    target = training_target(prediction_type, x0, noise, sigma)
    error = (prediction.float() - target).square().flatten(1).mean(1)
    if weight is not None:
        error = error * weight_of_prediction(weight, level, prediction_type).to(x0.device, torch.float32)
    elif gamma is not None:
        error = error * min_snr_weight(level, prediction_type, gamma, snr_offset).to(x0.device, torch.float32)
    return error


def min_snr_weight(
    alpha_bar: Float[Tensor, " b"], prediction_type: PredictionType, gamma: float = 5.0, offset: float = 0.0
) -> Float[Tensor, " b"]:
    """min(SNR + offset, gamma) as the weight of the error in x0, turned into the weight of the error in the prediction.

    Hang et al. 2023, section 3.4: min(SNR, gamma) for x0, min(SNR, gamma) / SNR for eps and min(SNR, gamma) / (SNR + 1)
    for v; SNR = alpha_bar / (1 - alpha_bar). Salimans & Ho 2022, section 4, gives the errors' proportions, and with an
    offset of 1 their weight "SNR + 1", which is the plain loss of v, cut off at gamma.
    """
    snr = alpha_bar / (1 - alpha_bar)
    if offset > 0:  # else the weight of eps without signal would be infinite, as in `weight_of_prediction`
        snr = snr.clamp(min=SMALLEST_ALPHA_BAR)
    weight_of_x0 = (snr + offset).clamp(max=gamma)
    if prediction_type == "sample":
        return weight_of_x0
    if prediction_type == "epsilon":
        # Without an offset the quotient is 1 at SNR 0, where 0 / 0 would not say so.
        return (gamma / snr).clamp(max=1) if offset == 0 else weight_of_x0 / snr
    return weight_of_x0 / (snr + 1)


def weight_of_prediction(
    weight: WeightOfX0, alpha_bar: Float[Tensor, " b"], prediction_type: PredictionType
) -> Float[Tensor, " b"]:
    """The weight of the error in what the network predicts; without signal, that of the least signal there is."""
    level = alpha_bar.clamp(min=SMALLEST_ALPHA_BAR)
    return as_weight_of_prediction(weight, ((1 - level) / level).sqrt(), prediction_type)


def draw_timesteps(
    n: int,
    n_timesteps: int,
    generator: torch.Generator,
    *,
    distribution: TimestepSampling = "uniform",
    shift: int | float = 1.0,
    stratified: bool = False,
) -> Int[Tensor, " n"]:
    """`n` timesteps in [0, n_timesteps).

    - distribution: "uniform", or "logit_normal", which favours the middle: Esser et al. 2024, eq. 19, with mean 0 and
      deviation 1.
    - shift: above 1 it moves the draws towards high noise, where text decides what there will be, below 1 towards low:
      the quantile u of time becomes shift * u / (1 + (shift - 1) * u), Esser et al. 2024, eq. 23.
    - stratified: the batch covers the levels evenly, one draw in each n-th part of the distribution, in random order:
      the same expected loss with less variance (in the spirit of Kingma et al. 2021, appendix I.1).
    """
    if not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"a shift of timesteps is above 0, and {shift} is not")
    place = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    if stratified:
        order = torch.randperm(n, generator=generator, device=generator.device)
        place = (order + place) / n
    if distribution == "logit_normal":
        place = torch.sigmoid(torch.special.ndtri(place.clamp(1e-12, 1 - 1e-12)))
    if shift != 1:
        place = shift * place / (1 + (shift - 1) * place)
    return (place * n_timesteps).long().clamp(max=n_timesteps - 1)


def drop_condition(
    condition: Shaped[Tensor, "b ..."],
    empty: Shaped[Tensor, "..."],
    p: float,
    generator: torch.Generator,
) -> Shaped[Tensor, "b ..."]:
    """`condition` with each row replaced by `empty` with probability `p`: Ho & Salimans 2022, algorithm 1, line 3.

    `empty` is one row (the empty prompt, the "no class" label), without the batch dimension.
    """
    if not (0 <= p <= 1 and math.isfinite(p)):
        raise ValueError(f"a probability lies within [0, 1], and {p} does not")
    dropped = torch.rand(len(condition), generator=generator, device=generator.device).to(condition.device) < p
    mask = dropped.reshape(-1, *[1] * (condition.ndim - 1))
    return torch.where(mask, empty.to(condition.device, condition.dtype), condition)
