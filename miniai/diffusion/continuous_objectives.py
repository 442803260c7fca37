"""Objectives in continuous time, and the denoiser that each trained network then is: any schedule, EDM, rectified flow.

A network is called as `network(input, time, condition)` with time (b,) in float32; what input and time are is the one
thing in which the three differ. Losses are taken in float32, also under autocast.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from miniai.diffusion.continuous import ContinuousSchedule, CosineTime, FlowTime
from miniai.diffusion.parametrisation import Parametrisation, cos_sin, like_images, to_x0, training_target
from miniai.diffusion.schedule import PredictionType
from miniai.diffusion.weighting import WeightOfX0, as_weight_of_prediction

Network = Callable[..., Tensor]
Images = Float[Tensor, "b c h w"]
PerImage = Float[Tensor, " b"]


def draw_quantiles(n: int, generator: torch.Generator, stratified: bool = True) -> Float64[Tensor, " n"]:
    """`n` numbers in (0, 1), uniform; stratified: one in each n-th part, in random order.

    >>> sorted((draw_quantiles(4, torch.Generator()) * 4).long().tolist())
    [0, 1, 2, 3]
    """
    place = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    if stratified:
        place = (torch.randperm(n, generator=generator, device=generator.device) + place) / n
    return place.clamp(1e-7, 1 - 1e-7)


def draw_noise(x0: Images, generator: torch.Generator) -> Images:
    """Unit normal noise in float32 like x0, drawn on the generator's device."""
    return torch.randn(x0.shape, generator=generator, device=generator.device, dtype=torch.float32).to(x0.device)


def beside(per_image: Float[Tensor, " b"], images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """`like_images`, on the images' device and in their precision, which need not have float64."""
    return like_images(per_image.to(images.device, images.dtype), images)


@dataclass(frozen=True)
class ContinuousObjective:
    """Any schedule in continuous time: the network sees the variance-preserving x_t and t in [0, 1] itself.

    - prediction_type: what it predicts; `weight` is that of the error in x0, None that of 1 for the prediction.

    The loss of Ho et al. 2020, eq. 14, with t uniform in (0, 1) (Kingma et al. 2021).

    >>> x0 = torch.zeros(4, 1, 2, 2)
    >>> objective = ContinuousObjective(prediction_type="sample")
    >>> objective(lambda x_t, t, condition: 0 * x_t, (x0, None), torch.Generator()).item()
    0.0
    """

    schedule: ContinuousSchedule = CosineTime()
    prediction_type: PredictionType = "epsilon"
    weight: WeightOfX0 | None = None
    stratified: bool = True

    def __call__(self, network: Network, batch: tuple[Images, Any], generator: torch.Generator) -> Float[Tensor, ""]:
        return self.errors(network, batch, generator).mean()

    def errors(self, network: Network, batch: tuple[Images, Any], generator: torch.Generator) -> Float[Tensor, " b"]:
        """Each picture's own part of the loss, which is their mean."""
        x0, condition = batch[0].float(), batch[1]
        t = draw_quantiles(len(x0), generator, self.stratified)
        sigma = self.schedule.sigma(t)
        noise = draw_noise(x0, generator)
        cos, sin = (beside(part, x0) for part in cos_sin(sigma))
        prediction = network(cos * x0 + sin * noise, t.to(x0.device, torch.float32), condition)
        return _errors(prediction, x0, noise, sigma, self.prediction_type, self.weight)


@dataclass(frozen=True)
class ContinuousDenoiser:
    """The denoiser of a network that `ContinuousObjective` trained.

    >>> denoiser = ContinuousDenoiser(lambda x_t, t, condition: 0 * x_t, prediction_type="sample")
    >>> denoiser(torch.ones(1, 1, 1, 1), torch.ones(1)).item()
    0.0
    """

    network: Network
    schedule: ContinuousSchedule = CosineTime()
    prediction_type: PredictionType = "epsilon"

    def __call__(self, x: Images, sigma: PerImage, condition: Any = None) -> Images:
        x_t = x * like_images(cos_sin(sigma)[0], x)
        prediction = self.network(x_t.float(), self.schedule.time(sigma).float(), condition)
        return to_x0(prediction.to(x.dtype), x, sigma, self.prediction_type)


@dataclass(frozen=True)
class EDMObjective:
    """Karras et al. 2022, eq. 8: ln sigma ~ N(p_mean, p_std^2), and weight 1 for the error in F, the network's output.

    The network sees c_in x and c_noise = ln(sigma) / 4, where x = x0 + sigma eps; `sigma_data` is the data's deviation.
    With `levels` "cosine" the angle arctan(sigma / sigma_data) is uniform instead: on data divided by its deviation
    c_in x is x_t, and F is -v: v-prediction on the cosine schedule (Salimans & Ho 2022, section 4 and appendix D).

    >>> objective, x0 = EDMObjective(), 0.5 * torch.randn(64, 1, 4, 4)
    >>> 0.8 < objective(lambda x, c_noise, condition: 0 * x, (x0, None), torch.Generator()).item() < 1.2
    True
    """

    sigma_data: int | float = 0.5
    p_mean: int | float = -1.2
    p_std: int | float = 1.2
    stratified: bool = True
    levels: Literal["log_normal", "cosine"] = "log_normal"

    def __call__(self, network: Network, batch: tuple[Images, Any], generator: torch.Generator) -> Float[Tensor, ""]:
        return self.errors(network, batch, generator).mean()

    def errors(self, network: Network, batch: tuple[Images, Any], generator: torch.Generator) -> Float[Tensor, " b"]:
        """Each picture's own part of the loss, which is their mean."""
        x0, condition = batch[0].float(), batch[1]
        sigma = self.draw_sigmas(len(x0), generator)
        noise = draw_noise(x0, generator)
        x = x0 + beside(sigma, x0) * noise
        f = _call_edm(network, x, sigma, condition, self.sigma_data)
        return _errors(f, x0, noise, sigma, "edm", None, self.sigma_data)

    def draw_sigmas(self, n: int, generator: torch.Generator) -> Float64[Tensor, " n"]:
        """`n` sigmas, in random order."""
        place = draw_quantiles(n, generator, self.stratified)
        if self.levels == "cosine":
            return self.sigma_data * CosineTime(s=0.0).sigma(place)
        return (self.p_mean + self.p_std * torch.special.ndtri(place)).exp()


@dataclass(frozen=True)
class EDMDenoiser:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise): Karras et al. 2022, eq. 7, with table 1's coefficients.

    >>> denoiser = EDMDenoiser(lambda x, c_noise, condition: 0 * x, sigma_data=1.0)
    >>> round(denoiser(torch.ones(1, 1, 1, 1), torch.ones(1)).item(), 5)
    0.5
    """

    network: Network
    sigma_data: int | float = 0.5

    def __call__(self, x: Images, sigma: PerImage, condition: Any = None) -> Images:
        f = _call_edm(self.network, x, sigma, condition, self.sigma_data)
        return to_x0(f.to(x.dtype), x, sigma, "edm", float(self.sigma_data))


@dataclass(frozen=True)
class FlowObjective:
    """Rectified flow: the network sees (1 - t) x0 + t eps and t, and predicts eps - x0; Liu et al. 2022, eq. 1.

    - times: "uniform", or "logit_normal" with mean and deviation: Esser et al. 2024, eq. 19.
    - shift: moves the times to higher noise: their eq. 23.

    >>> objective, x0 = FlowObjective(), torch.ones(4, 1, 2, 2)
    >>> objective(lambda x, t, condition: (x - 1) / t[:, None, None, None], (x0, None), torch.Generator()).item() < 1e-6
    True
    """

    times: Literal["uniform", "logit_normal"] = "logit_normal"
    mean: int | float = 0.0
    deviation: int | float = 1.0
    shift: int | float = 1.0
    stratified: bool = True

    def __call__(self, network: Network, batch: tuple[Images, Any], generator: torch.Generator) -> Float[Tensor, ""]:
        return self.errors(network, batch, generator).mean()

    def errors(self, network: Network, batch: tuple[Images, Any], generator: torch.Generator) -> Float[Tensor, " b"]:
        """Each picture's own part of the loss, which is their mean."""
        x0, condition = batch[0].float(), batch[1]
        t = self.draw_times(len(x0), generator)
        noise = draw_noise(x0, generator)
        share = beside(t, x0)
        prediction = network((1 - share) * x0 + share * noise, t.to(x0.device, torch.float32), condition)
        return _errors(prediction, x0, noise, FlowTime().sigma(t), "flow", None)

    def draw_times(self, n: int, generator: torch.Generator) -> Float64[Tensor, " n"]:
        """`n` times in (0, 1)."""
        t = draw_quantiles(n, generator, self.stratified)
        if self.times == "logit_normal":
            t = torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(t))
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
class FlowDenoiser:
    """The denoiser of a network that `FlowObjective` trained: at sigma, t is sigma / (1 + sigma).

    >>> denoiser = FlowDenoiser(lambda x_t, t, condition: 0 * x_t)
    >>> denoiser(torch.ones(1, 1, 1, 1), torch.ones(1)).item()
    0.5
    """

    network: Network

    def __call__(self, x: Images, sigma: PerImage, condition: Any = None) -> Images:
        x_t = x / (1 + like_images(sigma, x))
        prediction = self.network(x_t.float(), FlowTime().time(sigma).float(), condition)
        return to_x0(prediction.to(x.dtype), x, sigma, "flow")


def _call_edm(network: Network, x: Images, sigma: PerImage, condition: Any, sigma_data: int | float) -> Images:
    c_in, c_noise = 1 / (sigma**2 + sigma_data**2).sqrt(), sigma.log() / 4
    return network((x * beside(c_in, x)).float(), c_noise.to(x.device, torch.float32), condition)


def _errors(
    prediction: Tensor,
    x0: Images,
    noise: Images,
    sigma: PerImage,
    kind: Parametrisation,
    weight: WeightOfX0 | None,
    sigma_data: int | float = 1.0,
) -> Float[Tensor, " b"]:
    """Each picture's mean squared error in the prediction, times its weight."""
    target = training_target(kind, x0, noise, sigma.to(x0.device, torch.float32), float(sigma_data))
    error = (prediction.float() - target).square().flatten(1).mean(1)
    if weight is not None:
        error = error * as_weight_of_prediction(weight, sigma, kind, sigma_data).to(x0.device, torch.float32)
    return error
