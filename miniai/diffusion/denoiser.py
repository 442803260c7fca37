"""Denoisers: a network behind the one question that samplers ask, `denoiser(x, sigma) -> x0`; and guidance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from miniai.diffusion.ladder import Ladder
from miniai.diffusion.parametrisation import Parametrisation, cos_sin, from_x0, like_images, to_x0
from miniai.diffusion.samplers import Denoiser
from miniai.diffusion.schedule import NoiseSchedule

# network(x_t, timestep, condition) -> prediction: x_t = x / sqrt(1 + sigma^2), (b, c, h, w); timestep (b,), float32
Network = Callable[..., Float[Tensor, "b c h w"]]
ConditionalDenoiser = Callable[
    [Float[Tensor, "b c h w"], Float[Tensor, " b"], Shaped[Tensor, "b ..."]], Float[Tensor, "b c h w"]
]


@dataclass(frozen=True)
class NetworkDenoiser:
    """`denoiser(x, sigma, condition) -> x0` from a network that predicts eps, x0 or v at discrete timesteps.

    - schedule: gives the timestep that belongs to sigma, and `config.prediction_type`.
    - ladder: where given, its sigmas are told to the network as exactly its timesteps, as Diffusers does; any sigma
      between them as the schedule's interpolation.
    - dtype: what the network computes in. x, x0 and the arithmetic between are float32 (or float64, if x is).
    """

    network: Network
    schedule: NoiseSchedule
    ladder: Ladder | None = None
    dtype: torch.dtype = torch.float32

    def __call__(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        condition: Shaped[Tensor, "b ..."] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        x_t = x * like_images(cos_sin(sigma)[0], x)
        prediction = self.network(x_t.to(self.dtype), self.timestep(sigma), condition).to(x.dtype)
        return to_x0(prediction, x, sigma, self.schedule.config.prediction_type)

    def timestep(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The timestep that the network is told for each sigma, float32."""
        t = self.schedule.sigma_to_t(sigma)
        if self.ladder is not None:
            rungs = self.ladder.sigmas[:-1].to(sigma.device, sigma.dtype)
            distance, nearest = (sigma[:, None] - rungs).abs().min(dim=1)
            t = torch.where(distance <= 1e-6 * sigma, self.ladder.timesteps.to(t.device, t.dtype)[nearest], t)
        return t.to(torch.float32)


def conditioned(denoiser: ConditionalDenoiser, condition: Shaped[Tensor, "b ..."]) -> Denoiser:
    """The plain denoiser for one condition (text embeddings, class labels), without guidance."""
    return lambda x, sigma: denoiser(x, sigma, condition)


def guided(
    denoiser: ConditionalDenoiser,
    condition: Shaped[Tensor, "b ..."],
    negative: Shaped[Tensor, "b ..."],
    scale: float | Float[Tensor, " b"],
    *,
    rescale: float = 0.0,
    rescale_as: Parametrisation = "epsilon",
    interval: tuple[float, float] = (0.0, float("inf")),
) -> Denoiser:
    """Classifier-free guidance, both branches in one batch: Ho & Salimans 2022, eq. 6, with 1 + w = `scale`.

    x0 = negative + scale * (positive - negative), which equals guidance on eps or v, since x0 is affine in either.

    - condition, negative: what the picture should and should not be; `negative` is the empty prompt as a rule.
    - scale: 1 asks for `condition` alone, and then only that is computed; or one for each picture.
    - rescale: 0 to 1, `rescale_guided` on the prediction in the network's own parametrisation, `rescale_as`.
    - interval: guidance acts where low < sigma <= high, and elsewhere the scale is 1: Kynkäänniemi et al. 2024.

    >>> def denoiser(x, sigma, condition):  # knows nothing but what it is asked for
    ...     return condition[:, :, None, None].expand_as(x)
    >>> asked, empty = torch.ones(2, 3), torch.zeros(2, 3)
    >>> guided(denoiser, asked, empty, 2.5)(torch.randn(2, 3, 4, 4), torch.ones(2)).unique()
    tensor([2.5000])
    """
    low, high = interval
    both = torch.cat([negative, condition])
    alone = not isinstance(scale, Tensor) and scale == 1

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if alone or (interval != (0.0, float("inf")) and not bool(((sigma > low) & (sigma <= high)).any())):
            return denoiser(x, sigma, condition)
        x0_negative, x0_positive = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        scales = torch.where((sigma > low) & (sigma <= high), scale, 1.0)
        x0 = x0_negative + like_images(scales, x) * (x0_positive - x0_negative)
        if rescale > 0:
            positive = from_x0(x0_positive, x, sigma, rescale_as)
            rescaled = rescale_guided(from_x0(x0, x, sigma, rescale_as), positive, rescale)
            x0 = to_x0(rescaled, x, sigma, rescale_as)
        return x0

    return denoise


def autoguided(denoiser: Denoiser, guide: Denoiser, scale: float) -> Denoiser:
    """Guidance by a worse version of the same network, such as one trained for less time, under the same condition:
    x0 = guide + scale * (denoiser - guide), Karras et al. 2024, "Guiding a diffusion model with a bad version of
    itself" (arXiv 2406.02507), eq. 3, with the guide of its section 4.

    The guide is expected to err in the same way and more, so that a step away from it is one towards what the data
    are; unlike classifier-free guidance it does not draw pictures to the middle of their class.
    With `scale` 1 the denoiser alone is asked.
    """
    if scale == 1:
        return denoiser
    return lambda x, sigma: torch.lerp(guide(x, sigma), denoiser(x, sigma), scale)


def rescale_guided(
    guided_prediction: Float[Tensor, "b c h w"], positive: Float[Tensor, "b c h w"], share: float
) -> Float[Tensor, "b c h w"]:
    """The guided prediction with, by `share`, the deviation of the positive one: Lin et al. 2023, section 3.4."""
    deviation = positive.std(dim=(1, 2, 3), keepdim=True) / guided_prediction.std(dim=(1, 2, 3), keepdim=True)
    return guided_prediction * (share * deviation + (1 - share))


def clipped(denoiser: Denoiser, limit: float = 1.0) -> Denoiser:
    """A denoiser whose x0 stays within [-limit, limit]: Diffusers' `clip_sample`."""
    return lambda x, sigma: denoiser(x, sigma).clamp(-limit, limit)
