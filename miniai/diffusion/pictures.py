"""What diffusion looks like: noise put in, noise taken out, samplers side by side, quality over steps."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from miniai.base.images import grid, save_gif, to_pil
from miniai.base.plots import Plot, curves
from miniai.diffusion.parametrisation import cos_sin, like_images
from miniai.diffusion.samplers import Denoiser, Noise, no_noise

Images = Float[Tensor, "b c h w"]
Decode = Callable[[Images], Images]


def as_pictures(images: Images) -> list[Image.Image]:
    """Tensors in [-1, 1] of one channel (grey) or three as pictures.

    >>> as_pictures(torch.ones(1, 1, 2, 3))[0].size
    (3, 2)
    """
    return to_pil(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)


def noising(
    x0: Images, sigmas: Sequence[int | float], generator: torch.Generator, decode: Decode | None = None
) -> Image.Image:
    """Each picture in a row of its own, at each of `sigmas` from left to right, with the same noise throughout.

    What is shown is x_t, of the variance that networks see. `decode` makes pictures of latents.

    >>> noising(torch.zeros(2, 1, 4, 4), [0.0, 1.0, 80.0], torch.Generator()).size
    (14, 9)
    """
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    columns = []
    for level in sigmas:
        cos, sin = (like_images(part.to(x0), x0) for part in cos_sin(torch.full((len(x0),), float(level))))
        columns.append(_shown(cos * x0 + sin * noise, decode))
    return grid([column[i] for i in range(len(x0)) for column in columns], len(columns), gap=1)


def denoising_path(
    sampler: Callable[..., Images],
    denoiser: Denoiser,
    x: Images,
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    n_shown: int = 8,
    noise: Noise = no_noise,
    decode: Decode | None = None,
    **options: Any,
) -> tuple[Image.Image, list[Image.Image]]:
    """The sampler's estimates of x0 on the way: a grid (a row for each picture, `n_shown` steps), and a frame per step.

    The last step is always shown. Frames hold all the pictures side by side; `save_path` makes a GIF of them.

    >>> from miniai.diffusion.samplers import euler
    >>> sheet, frames = denoising_path(euler, lambda x, s: 0 * x, torch.ones(2, 1, 4, 4), torch.tensor([2.0, 1.0, 0.0]))
    >>> sheet.size, len(frames), frames[0].size
    ((9, 9), 2, (9, 4))
    """
    seen: list[list[Image.Image]] = []

    def keep(i: int, x: Tensor, sigma: float, x0: Tensor) -> None:
        seen.append(_shown(x0, decode))

    sampler(denoiser, x, sigmas, noise=noise, callback=keep, **options)
    places = torch.linspace(0, len(seen) - 1, min(n_shown, len(seen))).round().long().tolist()
    sheet = grid([seen[place][i] for i in range(len(x)) for place in places], len(places), gap=1)
    return sheet, [grid(step, len(x), gap=1) for step in seen]


def save_path(path: str | os.PathLike[str], frames: Sequence[Image.Image], ms_per_frame: int = 80) -> None:
    """The frames of `denoising_path` as a GIF that rests on the last for a second and a half.

    >>> save_path("path.gif", [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")])
    >>> Image.open("path.gif").n_frames
    2
    """
    save_gif(path, frames, [ms_per_frame] * (len(frames) - 1) + [1500])


def side_by_side(
    samplers: Mapping[str, Callable[..., Images]],
    denoiser: Denoiser,
    x: Images,
    sigmas: Float[Tensor, " n_plus_1"],
    *,
    noise: Callable[[], Noise] = lambda: no_noise,
    decode: Decode | None = None,
) -> Image.Image:
    """What each sampler makes of the same start, a row for each in the order given.

    `noise()` makes the noise anew for each sampler, so that all of them draw the same.

    >>> from miniai.diffusion.samplers import euler, heun
    >>> x, sigmas = torch.ones(3, 1, 4, 4), torch.tensor([2.0, 1.0, 0.0])
    >>> side_by_side({"Euler": euler, "Heun": heun}, lambda x, s: 0 * x, x, sigmas).size
    (14, 9)
    """
    rows = [_shown(sampler(denoiser, x, sigmas, noise=noise()), decode) for sampler in samplers.values()]
    return grid([picture for row in rows for picture in row], len(x), gap=1)


def plot_quality(
    path: str | os.PathLike[str] | None,
    figures: Mapping[str, Mapping[int, int | float]],
    real: int | float | None = None,
    name: str = "FID",
    xlabel: str = "steps",
) -> Plot:
    """A figure such as FID over the number of steps (or of calls), a line for each sampler; `real` is the floor.

    >>> plot = plot_quality(None, {"Euler": {10: 9.0, 20: 5.2}, "Heun": {10: 6.0, 20: 4.0}}, real=2.6)
    >>> plot.png[1:4]
    b'PNG'
    """
    lines = {label: (sorted(points), [points[n] for n in sorted(points)]) for label, points in figures.items()}
    if real is not None:
        steps = sorted({n for points in figures.values() for n in points})
        lines["real pictures"] = (steps, [real] * len(steps))
    return curves(path, lines, xlabel=xlabel, ylabel=name, log_x=True, log_y=True)


def _shown(images: Images, decode: Decode | None) -> list[Image.Image]:
    return as_pictures((images if decode is None else decode(images)).detach())
