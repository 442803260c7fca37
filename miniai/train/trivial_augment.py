"""TrivialAugment (Müller & Hutter 2021): one operation, drawn evenly, at a strength drawn evenly. That is all of it.

Operations work on pictures (b, c, h, w) of whole levels 0 to 255 in float32, each picture at its own strength; colour
operations give what Pillow gives, to one level, and geometric ones interpolate linearly and fill with black.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from miniai.train.augment import Generators, uniforms

Levels = Float[Tensor, "b c h w"]
Strength = Float[Tensor, " b"]


@dataclass(frozen=True)
class TrivialAugment:
    """One of `names` for each picture, at one of 31 strengths, with either sign; pictures in [-1, 1].

    The default is the paper's set ("RA space"); leave out what the data does not bear, such as rotation of letters.

    >>> pictures = torch.rand(4, 3, 16, 16) * 2 - 1
    >>> generators = [torch.Generator().manual_seed(i) for i in range(4)]
    >>> changed = TrivialAugment()(pictures, generators)
    >>> changed.shape == pictures.shape, bool(changed.abs().max() <= 1)
    (True, True)
    """

    names: tuple[str, ...] = ()
    n_strengths: int = 31

    def __post_init__(self) -> None:
        if unknown := [name for name in self.names if name not in OPERATIONS]:
            raise ValueError(f"there is no operation {unknown[0]!r}, only {', '.join(OPERATIONS)}")
        if self.n_strengths < 2:
            raise ValueError(f"strengths go from none to full, so there are at least 2, not {self.n_strengths}")

    def __call__(self, images: Float[Tensor, "b c h w"], generators: Generators) -> Float[Tensor, "b c h w"]:
        names = self.names or tuple(OPERATIONS)
        draws = uniforms(generators, 3)
        which = (draws[:, 0] * len(names)).long()
        strength = (draws[:, 1] * self.n_strengths).floor() / (self.n_strengths - 1)
        sign = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
        out = images.clone()
        for index, name in enumerate(names):
            rows = (which == index).nonzero()[:, 0]
            if not len(rows) or name == "identity":
                continue
            here = rows.to(images.device)
            levels = ((images[here].float() + 1) * 127.5).round().clamp(0, 255)
            strengths = (strength[rows], sign[rows])
            changed = OPERATIONS[name](levels, *(part.to(images.device, torch.float32) for part in strengths))
            out[here] = (changed / 127.5 - 1).clamp(-1, 1).to(images.dtype)
        return out


def autocontrast(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Each channel stretched to 0 … 255."""
    low, high = levels.amin(dim=(2, 3), keepdim=True), levels.amax(dim=(2, 3), keepdim=True)
    stretched = (levels * (255 / (high - low)) - low * (255 / (high - low))).floor().clamp(0, 255)
    return torch.where(high > low, stretched, levels)


def equalize(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Each channel's histogram made flat, by Pillow's table in whole numbers."""
    flat = levels.flatten(0, 1).flatten(1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.long, device=levels.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    in_highest = counts.gather(1, flat.amax(dim=1, keepdim=True))
    step = (flat.shape[1] - in_highest) // 255
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=levels.device))
    return table.gather(1, flat).reshape(levels.shape).float()


def solarize(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Levels at or above 256 (1 - strength) inverted."""
    return torch.where(levels >= 256 * (1 - _wide(strength)), 255 - levels, levels)


def posterize(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Only the 8 to 4 highest bits of each level."""
    step = 2 ** (4 * _wide(strength)).round()
    return (levels / step).floor() * step


def colour(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Less or more colour; nothing for a grey picture."""
    return _enhance(levels, _grey(levels), strength, sign) if levels.shape[1] == 3 else levels


def contrast(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Towards or away from the picture's mean grey."""
    mean = (_grey(levels).mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
    return _enhance(levels, mean, strength, sign)


def brightness(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Towards or away from black."""
    return _enhance(levels, torch.zeros_like(levels), strength, sign)


def sharpness(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Towards or away from a 3×3 mean with five times the weight in the middle; the border stays."""
    kernel = torch.ones(3, 3, device=levels.device)
    kernel[1, 1] = 5
    n_channels = levels.shape[1]
    weight = (kernel / kernel.sum()).expand(n_channels, 1, 3, 3)
    smooth = levels.clone()
    smooth[..., 1:-1, 1:-1] = (F.conv2d(levels, weight, groups=n_channels) + 0.5).floor().clamp(0, 255)
    return _enhance(levels, smooth, strength, sign)


def rotate(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Up to 30 degrees."""
    angle = sign * strength * math.radians(30)
    cos, sin = angle.cos(), angle.sin()
    return _affine(levels, (cos, -sin), (sin, cos))


def shear_x(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Rows moved by up to 0.3 of their distance from the middle."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(levels, (one, sign * strength * 0.3), (zero, one))


def shear_y(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Columns moved by up to 0.3 of their distance from the middle."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(levels, (one, zero), (sign * strength * 0.3, one))


def translate_x(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Up to 10 pixels in 32 sideways."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(levels, (one, zero), (zero, one), x=sign * strength * levels.shape[-1] * 10 / 32)


def translate_y(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Up to 10 pixels in 32 up or down."""
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(levels, (one, zero), (zero, one), y=sign * strength * levels.shape[-2] * 10 / 32)


def identity(levels: Levels, strength: Strength, sign: Strength) -> Levels:
    """Nothing."""
    return levels


OPERATIONS: dict[str, Callable[[Levels, Strength, Strength], Levels]] = {
    one.__name__: one
    for one in (
        identity,
        autocontrast,
        equalize,
        rotate,
        solarize,
        colour,
        posterize,
        contrast,
        brightness,
        sharpness,
        shear_x,
        shear_y,
        translate_x,
        translate_y,
    )
}


def _wide(per_image: Strength) -> Float[Tensor, "b 1 1 1"]:
    return per_image[:, None, None, None]


def _grey(levels: Levels) -> Float[Tensor, "b 1 h w"]:
    """Luminance by ITU-R 601-2, in Pillow's whole numbers."""
    if levels.shape[1] != 3:
        return levels.mean(dim=1, keepdim=True)
    red, green, blue = levels.split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 65536).floor()


def _enhance(levels: Levels, plain: Tensor, strength: Strength, sign: Strength) -> Levels:
    """Between `plain` (factor 0) and the picture (factor 1), or beyond it: factors 0.1 to 1.9."""
    factor = 1 + 0.9 * _wide(sign * strength)
    return (plain + factor * (levels - plain)).clamp(0, 255).floor()


def _affine(
    levels: Levels,
    first: tuple[Strength, Strength],
    second: tuple[Strength, Strength],
    x: Strength | None = None,
    y: Strength | None = None,
) -> Levels:
    """Each pixel of the result looks at `first · (x, y)`, `second · (x, y)` from the middle, plus (x, y) pixels."""
    _, _, h, w = levels.shape
    rows = torch.arange(h, device=levels.device) - (h - 1) / 2
    columns = torch.arange(w, device=levels.device) - (w - 1) / 2
    down, across = rows[None, :, None].expand(1, h, w), columns[None, None, :].expand(1, h, w)
    nothing = torch.zeros_like(first[0])
    x, y = nothing if x is None else x, nothing if y is None else y

    def mix(a: Strength, b: Strength, shift: Strength) -> Tensor:
        return a[:, None, None] * across + b[:, None, None] * down + shift[:, None, None]

    grid = torch.stack([mix(*first, x) * 2 / w, mix(*second, y) * 2 / h], dim=-1)
    return F.grid_sample(levels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
