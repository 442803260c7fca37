"""Pictures in and out: an allow-list of formats, a pixel cap, tensors in [-1, 1], and A1111's PNG text."""

import os
import struct
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.files import atomic_file

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 50_000_000
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, OverflowError)


def open_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture at `path` as RGB: turned upright as its camera says, transparent parts on white, a GIF's first frame.

    Raises UserError if the file is missing, damaged, not PNG, JPEG, WebP, BMP or GIF, or has more than `max_pixels`
    pixels, which is seen in its header before anything is unpacked.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cap below is stricter than Pillow's warning
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, image, max_pixels)
                return rgb_on_white(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large a picture: scale it below {max_pixels:,} pixels") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture in {', '.join(FORMATS)}: convert it to one of these") from error
    except _DAMAGE as error:
        raise UserError(f"cannot read {path} ({error}): the picture is damaged or not readable, replace it") from error


def _check_size(path: str | os.PathLike[str], image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise UserError(f"{path} has {image.width}x{image.height} pixels: scale it below {max_pixels:,} pixels in all")


def rgb_on_white(image: Image.Image) -> Image.Image:
    """Any picture as RGB, its transparent parts on white."""
    image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey (Pillow would clip it to white); any other picture as it is."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def to_pil(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Tensors in [-1, 1] (values outside are clipped) as 8-bit RGB pictures, rounded to the nearest level."""
    # The order of operations is Diffusers' own, so that equal tensors give equal pixels.
    levels = ((images.detach().float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).contiguous().numpy()]


def to_tensor(images: list[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    """Pictures of one size as a float32 tensor in [-1, 1]. Raises ValueError if sizes differ or there are none."""
    if len({image.size for image in images}) != 1:
        raise ValueError(f"a batch needs pictures of one size, not {sorted({image.size for image in images})}")
    levels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return levels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def grid(images: list[Image.Image], n_columns: int, gap: int = 0) -> Image.Image:
    """One picture with `images` in rows of `n_columns`, left to right, on white; `gap` pixels between neighbours."""
    if not images or n_columns < 1:
        raise ValueError("a grid needs at least one picture and one column")
    width, height = max(image.width for image in images), max(image.height for image in images)
    n_columns = min(n_columns, len(images))
    n_rows = -(-len(images) // n_columns)
    sheet = Image.new("RGB", (n_columns * (width + gap) - gap, n_rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, n_columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet


def save_png(path: str | os.PathLike[str], image: Image.Image, parameters: str | None = None) -> None:
    """Write a PNG atomically; `parameters` goes into the text chunk of that name, where A1111 and its kin look."""
    notes = PngImagePlugin.PngInfo()
    if parameters is not None:
        notes.add_text("parameters", parameters)
    with atomic_file(path) as file:
        image.save(file, format="PNG", pnginfo=notes)


def read_parameters(path: str | os.PathLike[str]) -> str | None:
    """The `parameters` text of a PNG, or None if it has none. Raises UserError if it is missing or damaged."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            _check_size(path, image, MAX_PIXELS)
            image.load()  # the text may stand after the pixels
            return image.info.get("parameters")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path") from error
    except (Image.DecompressionBombError, *_DAMAGE) as error:
        raise UserError(f"cannot read {path} ({error}): it is not a PNG, or damaged") from error


def save_gif(path: str | os.PathLike[str], frames: Sequence[Image.Image], ms_per_frame: int | Sequence[int]) -> None:
    """Write an endlessly repeating GIF atomically; `ms_per_frame` is one duration, or one for each frame."""
    if not frames:
        raise ValueError("a GIF needs at least one frame")
    duration = ms_per_frame if isinstance(ms_per_frame, int) else list(ms_per_frame)
    with atomic_file(path) as file:
        frames[0].save(file, format="GIF", save_all=True, append_images=list(frames[1:]), duration=duration, loop=0)
