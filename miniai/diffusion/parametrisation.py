"""What a network may predict (eps, x0, v, EDM's F, a flow's velocity), and the exact way from each to any other.

All of it lives in variance-exploding coordinates, x = x0 + sigma * eps (Karras et al. 2022, section 2): there, each
parametrisation is one line,  x0 = c_skip(sigma) * x + c_out(sigma) * prediction,  and so is its inverse. A model that
was trained on the variance-preserving x_t = cos(angle) * x0 + sin(angle) * eps sees x_t = x * cos(angle), where
angle = arctan(sigma) (Salimans & Ho 2022, appendix D): the angle stays finite where sigma is not (zero terminal SNR).
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Parametrisation = Literal["epsilon", "sample", "v_prediction", "edm", "flow"]
PARAMETRISATIONS: tuple[str, ...] = get_args(Parametrisation)


def like_images(per_image: Float[Tensor, " b"], images: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """`per_image` with trailing dimensions of size 1, so that it multiplies `images`; the values stay as they are."""
    return per_image.reshape(-1, *[1] * (images.ndim - 1))


def cos_sin(sigma: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Cosine and sine of arctan(sigma), each to full relative precision for any sigma from 0 to infinity.

    They are sqrt(alpha_bar) and sqrt(1 - alpha_bar) of the variance-preserving x_t.
    """
    # cos(atan(sigma)) would lose its digits at large sigma: float32 has none left below 1e-7 next to pi / 2.
    return 1 / torch.hypot(torch.ones_like(sigma), sigma), torch.atan(sigma).sin()


def x0_coefficients(
    kind: Parametrisation, sigma: Float[Tensor, " b"], sigma_data: float = 1.0
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """(c_skip, c_out) such that x0 = c_skip * x + c_out * prediction, for x = x0 + sigma * eps.

    - "epsilon": eps itself, Ho et al. 2020, eq. 11 and 15.
    - "sample": x0 itself.
    - "v_prediction": v = cos(angle) eps - sin(angle) x0, Salimans & Ho 2022, appendix D.
    - "edm": F of Karras et al. 2022, eq. 7, with c_skip and c_out of table 1; `sigma_data` is the data's deviation.
    - "flow": u = eps - x0, the velocity of (1 - t) x0 + t eps at t = sigma / (1 + sigma); Liu et al. 2022, eq. 1.
    """
    one = torch.ones_like(sigma)
    if kind == "epsilon":
        return one, -sigma
    if kind == "sample":
        return one * 0, one
    if kind == "v_prediction":
        cos, sin = cos_sin(sigma)
        return cos**2, -sin
    if kind == "edm":
        cos, sin = cos_sin(sigma / sigma_data)
        return cos**2, sigma_data * sin
    if kind == "flow":
        return 1 / (1 + sigma), -1 / (1 + 1 / sigma)  # sigma / (1 + sigma), also where sigma is infinite
    raise ValueError(f"unknown parametrisation {kind!r}: there are {', '.join(PARAMETRISATIONS)}")


def to_x0(
    prediction: Float[Tensor, "b ..."],
    x: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    kind: Parametrisation,
    sigma_data: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """The x0 that `prediction` stands for, where the network was shown x = x0 + sigma * eps."""
    c_skip, c_out = x0_coefficients(kind, sigma, sigma_data)
    return like_images(c_skip, x) * x + like_images(c_out, x) * prediction


def from_x0(
    x0: Float[Tensor, "b ..."],
    x: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    kind: Parametrisation,
    sigma_data: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """The prediction of `kind` that stands for `x0` at `x`: the inverse of `to_x0`. sigma must be above 0."""
    c_skip, c_out = x0_coefficients(kind, sigma, sigma_data)
    return (x0 - like_images(c_skip, x) * x) / like_images(c_out, x)


def convert(
    prediction: Float[Tensor, "b ..."],
    x: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    source: Parametrisation,
    target: Parametrisation,
    sigma_data: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """A prediction in parametrisation `source` as one in `target`, for the same x and sigma (above 0).

    >>> x0, noise, sigma = torch.ones(1, 1), torch.full((1, 1), 2.0), torch.tensor([3.0])
    >>> convert(noise, x0 + 3 * noise, sigma, "epsilon", "flow").item()  # eps - x0
    1.0
    """
    return from_x0(to_x0(prediction, x, sigma, source, sigma_data), x, sigma, target, sigma_data)


def training_target(
    kind: Parametrisation,
    x0: Float[Tensor, "b ..."],
    noise: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    sigma_data: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """What a network of `kind` should say for `x0` and `noise`: `from_x0` with x = x0 + sigma * noise put in.

    Written out, because x0 and noise are both known here, so that sigma may be anything from 0 to infinity.
    """
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        cos, sin = cos_sin(sigma)
        return like_images(cos, x0) * noise - like_images(sin, x0) * x0
    if kind == "edm":
        cos, sin = cos_sin(sigma / sigma_data)
        return like_images(sin / sigma_data, x0) * x0 - like_images(cos, x0) * noise
    if kind == "flow":
        return noise - x0
    raise ValueError(f"unknown parametrisation {kind!r}: there are {', '.join(PARAMETRISATIONS)}")
