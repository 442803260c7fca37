"""Distillation: a student network that does in one step what its teacher does in two, or in two calls.

Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models": where the teacher takes 2 N steps
of DDIM the student learns to take N; then it is the teacher of the next, until few steps are left.
Meng et al. 2023, "On Distillation of Guided Diffusion Models": before that, a student that is told the scale of the
guidance learns to say in one call what classifier-free guidance says in two.

In variance-exploding coordinates, x = x0 + sigma eps, a step of DDIM without noise is one of Euler, `step_towards`:
x_next = D + (sigma_next / sigma) (x - D) with D = denoiser(x, sigma). A student is a denoiser as any other, only that
Euler's steps on its own rungs are what it was made for. What teaches it is a denoiser, too; both are asked as
`denoiser(x, sigma, condition)`, and the network behind the student as in `EDMObjective`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from miniai.diffusion.continuous import ContinuousSchedule, KarrasTime
from miniai.diffusion.continuous_objectives import EDMDenoiser, draw_noise, draw_quantiles
from miniai.diffusion.denoiser import clipped, guided
from miniai.diffusion.parametrisation import like_images
from miniai.diffusion.samplers import Denoiser, step_towards
from miniai.diffusion.weighting import EDMWeight, WeightOfX0
from miniai.nn.layers import sinusoidal_embedding

Network = Callable[..., Tensor]
Teacher = Callable[..., Float[Tensor, "b c h w"]]  # teacher(x, sigma, condition) -> x0
Images = Float[Tensor, "b c h w"]
PerImage = Float[Tensor, " b"]


class GuidedCondition(NamedTuple):
    """What a student of guidance is told: the condition (class labels), and the scale of the guidance, one each."""

    labels: Shaped[Tensor, "b ..."]
    scale: Float[Tensor, " b"]


def halved(sigmas: Float[Tensor, " n_plus_1"]) -> Float[Tensor, " half_n_plus_1"]:
    """Every second rung, from the first to the last: the ladder of a student. Raises ValueError for an odd number of
    steps.

    >>> halved(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]))
    tensor([8., 2., 0.])
    """
    if len(sigmas) % 2 == 0:
        raise ValueError(f"{len(sigmas) - 1} steps cannot be halved")
    return sigmas[::2]


def one_step_target(x: Images, x_next: Images, sigma: PerImage, sigma_next: PerImage) -> Images:
    """The x0 that takes x at `sigma` to x_next at `sigma_next` in one step: Salimans & Ho 2022, algorithm 2.

    There, with z = alpha x, x~ = (z'' - (sigma'' / sigma) z) / (alpha'' - (sigma'' / sigma) alpha), where each sigma is
    alpha times ours. Divided by alpha'', x0~ = (x'' - r x) / (1 - r) with r = sigma'' / sigma; in the last step r is 0,
    and x0~ is x'' itself.
    """
    shrink = like_images(sigma_next / sigma, x)
    return (x_next - shrink * x) / (1 - shrink)


def two_step_target(teacher: Denoiser, x: Images, sigma: PerImage, sigma_mid: PerImage, sigma_next: PerImage) -> Images:
    """The x0 with which one step from `sigma` to `sigma_next` lands where the teacher's two, by sigma_mid, do.

    It is a mean of the teacher's two estimates with the weights r' (1 - r) and 1 - r', where r = sigma_mid / sigma and
    r' = sigma_next / sigma_mid: so it lies within the bounds that they lie in.
    """
    x_mid = step_towards(teacher(x, sigma), x, like_images(sigma_mid / sigma, x))
    x_next = step_towards(teacher(x_mid, sigma_mid), x_mid, like_images(sigma_next / sigma_mid, x))
    return one_step_target(x, x_next, sigma, sigma_next)


@dataclass(frozen=True)
class ProgressiveObjective:
    """Salimans & Ho 2022, algorithm 2: `objective(network, (x0, condition), generator) -> loss` of the student.

    - teacher: `teacher(x, sigma, condition) -> x0`; no gradient reaches it.
    - sigmas: the teacher's ladder, of an even number of steps; the student's is `halved(sigmas)`, and each picture is
      noised to one of its rungs.
    - sigma_data: of the student's preconditioning, as in EDMObjective.
    - clip: the bound of the teacher's estimates, where sampling bounds them; None for none.
    - weight: of the error in x0; None is weight 1 for the error in the network's own F, which for data of deviation 1
      is their "SNR + 1"; their "truncated SNR" is `weighting.TruncatedSNR()`.

    >>> sigmas = torch.tensor([80.0, 5.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    >>> zero = lambda x, sigma, condition: 0 * x
    >>> objective = ProgressiveObjective(zero, sigmas, weight=lambda sigma: 0 * sigma)
    >>> objective(zero, (torch.ones(4, 1, 2, 2), None), torch.Generator()).item()
    0.0
    """

    teacher: Teacher
    sigmas: Float64[Tensor, " n_plus_1"]
    sigma_data: int | float = 0.5
    clip: float | None = None
    weight: WeightOfX0 | None = None
    stratified: bool = True

    def __call__(self, network: Network, batch: tuple[Images, Any], generator: torch.Generator) -> Float[Tensor, ""]:
        x0, condition = _exact(batch[0]), batch[1]
        sigma, sigma_mid, sigma_next = (level.to(x0.dtype).to(x0.device) for level in self.draw(len(x0), generator))
        x = x0 + like_images(sigma, x0) * draw_noise(x0, generator).to(x0.dtype)

        def teacher(x: Tensor, sigma: Tensor) -> Tensor:
            return self.teacher(x, sigma, condition)

        with torch.no_grad():
            bounded = teacher if self.clip is None else clipped(teacher, self.clip)
            target = two_step_target(bounded, x, sigma, sigma_mid, sigma_next)
        said = EDMDenoiser(network, self.sigma_data)(x, sigma, condition)
        return _loss(said, target, sigma, self.weight or EDMWeight(self.sigma_data))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Float64[Tensor, " n"], ...]:
        """(sigma, sigma_mid, sigma_next) of `n` rungs of the student, each as likely as any other."""
        n_rungs = len(halved(self.sigmas)) - 1
        rung = (draw_quantiles(n, generator, self.stratified) * n_rungs).long().to(self.sigmas.device)
        return self.sigmas[2 * rung], self.sigmas[2 * rung + 1], self.sigmas[2 * rung + 2]


@dataclass(frozen=True)
class GuidanceObjective:
    """Meng et al. 2023, section 3.1: the student, told the scale, is to say what the guided teacher says.

    `objective(network, (x0, labels), generator) -> loss`, with the network called with a `GuidedCondition`. As theirs,
    the scale is uniform, and so is time on the schedule that is sampled by.

    - empty: one row of the condition that stands for none.
    - scales: the lowest and the highest; a scale is 1 + w of the paper, 1 is no guidance.
    - weight: of the error in x0; None is weight 1 for the error in F.
    """

    teacher: Teacher
    empty: Shaped[Tensor, "..."]
    scales: tuple[int | float, int | float]
    schedule: ContinuousSchedule = KarrasTime()
    sigma_data: int | float = 0.5
    weight: WeightOfX0 | None = None
    stratified: bool = True

    def __call__(
        self, network: Network, batch: tuple[Images, Shaped[Tensor, "b ..."]], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        x0, labels = _exact(batch[0]), batch[1]
        time = draw_quantiles(len(x0), generator, self.stratified)
        sigma = self.schedule.sigma(time).to(x0.dtype).to(x0.device)
        scale = draw_scales(len(x0), *self.scales, generator, self.stratified).to(x0.device)
        x = x0 + like_images(sigma, x0) * draw_noise(x0, generator).to(x0.dtype)
        with torch.no_grad():
            target = guided(self.teacher, labels, self.empty.to(labels.device).expand_as(labels), scale)(x, sigma)
        said = EDMDenoiser(network, self.sigma_data)(x, sigma, GuidedCondition(labels, scale))
        return _loss(said, target, sigma, self.weight or EDMWeight(self.sigma_data))


def draw_scales(
    n: int, low: int | float, high: int | float, generator: torch.Generator, stratified: bool = True
) -> Float[Tensor, " n"]:
    """`n` scales of guidance, uniform from `low` to `high`, in float32."""
    return (low + (high - low) * draw_quantiles(n, generator, stratified)).float()


def guidance_scale_embedding(scale: PerImage, dim: int) -> Float[Tensor, "b dim"]:
    """w = scale - 1 as sines and cosines of 1000 w: Meng et al. 2023, section 3.1, in the form that Diffusers gives it,
    `get_guidance_scale_embedding` of its pipeline of latent consistency models."""
    return sinusoidal_embedding(1000 * (scale - 1), dim, flip_sin_to_cos=False, freq_shift=1)


def told_scale(network: Network, dim: int) -> Network:
    """`network(x, time, labels, embedding of the scale)` as one that takes a `GuidedCondition`: for a UNet2DModel with
    `time_cond_proj_dim=dim`."""

    def told(x: Tensor, time: Tensor, condition: GuidedCondition) -> Tensor:
        return network(x, time, condition.labels, guidance_scale_embedding(condition.scale, dim))

    return told


def _exact(images: Images) -> Images:
    """In float32, or float64 if they are."""
    return images if images.dtype == torch.float64 else images.float()


def _loss(said: Images, target: Images, sigma: PerImage, weight: WeightOfX0) -> Float[Tensor, ""]:
    """Mean squared error of x0, each picture's times its weight."""
    return ((said - target).square().flatten(1).mean(1) * weight(sigma)).mean()
