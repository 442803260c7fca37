"""Inverse problems: the pictures that could have been measured so, and those that a loss of one's own likes.

Both are guidance through the denoised estimate: a denoiser made from a denoiser, for any sampler. With p(y | x) for how
likely the measurement y is to come of the noisy x, Tweedie's formula turns the score of Bayes' rule into

    D(x | y) = D(x) + sigma^2 grad_x log p(y | x),

and the methods differ in how they guess p(y | x) from D(x) = E[x0 | x] alone: `restoring` takes x0 to be normal around
D(x), which suits linear measurements and is exact for data of one deviation; `loss_guided` takes x0 to be D(x) itself,
which suits anything that has a gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from miniai.diffusion.parametrisation import like_images
from miniai.diffusion.samplers import Denoiser

Images = Float[Tensor, "b c h w"]
Operator = Callable[[Images], Float[Tensor, "b ..."]]
PictureLoss = Callable[[Images], Float[Tensor, " b"]]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright red, green and blue are


@dataclass(frozen=True)
class Masked:
    """Inpainting: what is seen where `mask` is 1; 0 where nothing is known. `mask` is (h, w), or like the pictures."""

    mask: Float[Tensor, "..."]

    def __call__(self, images: Images) -> Images:
        return images * self.mask.to(images)


@dataclass(frozen=True)
class Averaged:
    """Super-resolution: the mean of each square of `factor` by `factor` pixels."""

    factor: int

    def __call__(self, images: Images) -> Float[Tensor, "b c h2 w2"]:
        return F.avg_pool2d(images, self.factor)


@dataclass(frozen=True)
class Blurred:
    """Deblurring: a Gaussian of `deviation` pixels over the picture, which is mirrored at its edges."""

    deviation: int | float

    def __post_init__(self) -> None:
        if not self.deviation > 0:
            raise ValueError(f"the deviation of a blur must be above 0, not {self.deviation}")

    def __call__(self, images: Images) -> Images:
        radius = math.ceil(3 * self.deviation)
        places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        line = torch.exp(-(places**2) / (2 * self.deviation**2))
        line = (line / line.sum()).expand(images.shape[1], 1, -1)
        padded = F.pad(images, (radius,) * 4, mode="reflect")
        rows = F.conv2d(padded, line[:, :, None, :], groups=images.shape[1])
        return F.conv2d(rows, line[:, :, :, None], groups=images.shape[1])


@dataclass(frozen=True)
class Grey:
    """Colourising: how bright each pixel of red, green and blue is."""

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        shares = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
        return (images * shares[:, None, None]).sum(1, keepdim=True)


@dataclass(frozen=True)
class Measurement:
    """What is known of pictures: observed = operator(x0) + noise of deviation `sigma_y`.

    - operator: linear, and of each picture by itself; its transpose is taken from its gradient.
    - sigma_y: in the pictures' own unit, above 0: nothing is measured exactly, and it keeps the equations solvable.
    """

    operator: Operator
    observed: Float[Tensor, "b ..."]
    sigma_y: int | float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.sigma_y < math.inf:
            raise ValueError(f"sigma_y must be above 0, not {self.sigma_y}")


def restoring(denoiser: Denoiser, measurement: Measurement, *, sigma_data: int | float = 0.5) -> Denoiser:
    """E[x0 | x, measurement], with x0 taken to be normal around D(x): Song et al. 2023, "Pseudoinverse-guided diffusion
    models for inverse problems", eq. 7 and 8.

    With A the operator, r^2 = sigma^2 sigma_data^2 / (sigma^2 + sigma_data^2) the variance that x0 is left with (their
    section 3.3, for data of any deviation) and J the Jacobian of D,

        D(x | y) = D(x) + sigma^2 J^T A^T (r^2 A A^T + sigma_y^2)^-1 (y - A D(x)).

    The inverse is by conjugate gradients, so that any linear operator will do. Each call of the network costs a
    backward pass more. For normal data of deviation `sigma_data` along every axis it is exact.

    >>> picture = torch.ones(1, 1, 2, 2)
    >>> seen = Measurement(Masked(torch.tensor([[1.0, 0.0], [0.0, 0.0]])), picture * torch.tensor([[1.0, 0], [0, 0]]))
    >>> denoiser = restoring(lambda x, sigma: x * 0.25 / (0.25 + like_images(sigma, x) ** 2), seen)
    >>> denoiser(torch.zeros(1, 1, 2, 2), torch.ones(1)).flatten().round(decimals=2).tolist()
    [1.0, 0.0, 0.0, 0.0]
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoiser(x, sigma)
        estimate = x0.detach()
        measured, transposed = torch.func.vjp(measurement.operator, estimate)[:2]
        variance = (sigma**2 * sigma_data**2 / (sigma**2 + sigma_data**2)).to(estimate)

        def system(v: Tensor) -> Tensor:
            once = measurement.operator(transposed(v)[0])
            return like_images(variance, v) * once + float(measurement.sigma_y) ** 2 * v

        v = conjugate_gradients(system, measurement.observed.to(measured) - measured)
        (pull,) = torch.autograd.grad(x0, x, transposed(v)[0])
        return estimate + like_images(sigma.to(estimate) ** 2, estimate) * pull

    return denoise


def loss_guided(denoiser: Denoiser, loss: PictureLoss, *, scale: int | float = 1.0) -> Denoiser:
    """D(x) - scale sigma^2 grad_x loss(D(x)): pictures as likely as exp(-scale loss(x0)) makes them, taken at D(x).

    Chung et al. 2023, "Diffusion posterior sampling for general noisy inverse problems", eq. 10 and 11.

    `loss` gives a number for each clean picture (or latents, which it may decode); anything with a gradient will do,
    such as a distance of CLIP's embeddings. Each call of the network costs a backward pass more.

    >>> towards_1 = loss_guided(lambda x, sigma: x / 2, lambda x0: (x0 - 1).square().flatten(1).sum(1), scale=0.5)
    >>> towards_1(torch.zeros(1, 1, 1, 2), torch.ones(1)).flatten().tolist()
    [0.5, 0.5]
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoiser(x, sigma)
            (push,) = torch.autograd.grad(loss(x0).sum(), x)
        return x0.detach() - float(scale) * like_images(sigma.to(push) ** 2, push) * push

    return denoise


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], right: Float[Tensor, "b ..."], *, n_most: int = 50, tolerance: float = 1e-5
) -> Float[Tensor, "b ..."]:
    """v with system(v) = right, for a symmetric positive definite system in each picture: Hestenes and Stiefel 1952.

    Ends when what is left is `tolerance` of `right` in every picture, or after `n_most` steps.

    >>> conjugate_gradients(lambda v: 4 * v, torch.ones(1, 2)).tolist()
    [[0.25, 0.25]]
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    v, rest = torch.zeros_like(right), right
    direction, size = rest, dot(rest, rest)
    enough = size * tolerance**2
    for _ in range(n_most):
        if bool((size <= enough).all()):
            break
        image = system(direction)
        along = size / dot(direction, image).clamp(min=torch.finfo(right.dtype).tiny)
        v = v + like_images(along, v) * direction
        rest = rest - like_images(along, v) * image
        size_before, size = size, dot(rest, rest)
        share = size / size_before.clamp(min=torch.finfo(right.dtype).tiny)
        direction = rest + like_images(share, rest) * direction
    return v
