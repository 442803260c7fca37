"""Inpainting in a part of a large picture: what lies around the mask is cut out, painted at the model's size, put back.

The rectangles, and how pictures are brought to size, are those of Diffusers' `padding_mask_crop`; A1111 calls it "only
masked".
"""

from dataclasses import dataclass
from numbers import Integral

from PIL import Image, ImageOps

from miniai.base.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class MaskCrop:
    """A picture, its mask, and the rectangle of both that is painted at `size`, which is height and width."""

    image: Image.Image
    mask: Image.Image
    box: Box
    size: tuple[int, int]

    @classmethod
    def around(cls, image: object, mask: object, size: tuple[int, int], padding: int, output_type: str) -> "MaskCrop":
        """The rectangle around all of the mask that is not black, `padding` pixels more, and then as much wider or
        higher as it takes to have the proportions of `size`.

        Raises UserError for other than one PIL image, one PIL mask of its size that is not all black, and PIL results.
        """
        if isinstance(padding, bool) or not isinstance(padding, Integral) or padding < 0:
            raise UserError(f"padding_mask_crop {padding!r} is not possible: give a whole number of pixels, 0 or more")
        if not isinstance(image, Image.Image) or not isinstance(mask, Image.Image) or output_type != "pil":
            raise UserError('padding_mask_crop needs image and mask_image as PIL images, and output_type "pil"')
        if image.size != mask.size:
            raise UserError(
                f"the mask has {mask.width}x{mask.height} pixels, the picture {image.width}x{image.height}: "
                "resize the mask"
            )
        painted = mask.convert("L").getbbox()
        if painted is None:
            raise UserError("the mask is black everywhere: there is nothing to crop to, nor to paint")
        return cls(image, mask, widened(painted, int(padding), image.size, size[1] / size[0]), size)

    def parts(self) -> tuple[Image.Image, Image.Image]:
        """The rectangle of picture and mask, at the size that is painted."""
        return filled(self.image.crop(self.box), self.size), filled(self.mask.crop(self.box), self.size)

    def put_back(self, painted: Image.Image) -> Image.Image:
        """The whole picture with `painted` in its place, as far as the mask is white."""
        left, top, right, bottom = self.box
        whole = Image.new("RGBA", self.image.size)
        whole.paste(covered(painted, (bottom - top, right - left)), (left, top))
        kept = Image.new("RGBa", self.image.size)
        kept.paste(self.image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(self.mask.convert("L")))
        result = whole.convert("RGB").convert("RGBA")
        result.alpha_composite(kept.convert("RGBA"))
        return result.convert("RGB")


def widened(box: Box, padding: int, image_size: tuple[int, int], ratio: float) -> Box:
    """`box` with `padding` around it, then with its shorter side, for a width of `ratio` heights, made longer; within
    the picture, and so of another shape where that is too small.

    >>> widened((10, 40, 30, 50), 0, (100, 60), 1.0)
    (10, 35, 30, 55)
    >>> widened((10, 40, 30, 50), 5, (100, 60), 2.0)
    (0, 35, 40, 55)
    """
    width, height = image_size
    left, top = max(box[0] - padding, 0), max(box[1] - padding, 0)
    right, bottom = min(box[2] + padding, width), min(box[3] + padding, height)
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _lengthened(top, bottom, (right - left) / ratio, height)
    else:
        left, right = _lengthened(left, right, (bottom - top) * ratio, width)
    return left, top, right, bottom


def _lengthened(start: int, end: int, length: float, limit: int) -> tuple[int, int]:
    """An interval about as long as `length` with this one in its middle, moved into [0, limit], or all of that."""
    missing = int(length - (end - start))
    start, end = start - missing // 2, end + missing - missing // 2
    over = max(end - limit, 0)
    start, end = start - over, end - over
    under = max(-start, 0)
    return start + under, min(end + under, limit)


def filled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` as large as it fits into `size`, height and width, in its middle; the first and last rows or columns fill
    the rest."""
    height, width = size
    inner_width, inner_height = _scaled(image, size, within=True)
    small = image.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    result = Image.new("RGB", (width, height))
    result.paste(small, (left, top))
    if top > 0:
        result.paste(small.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        last = small.resize((width, top), box=(0, inner_height, width, inner_height))
        result.paste(last, (0, top + inner_height))
    if left > 0:
        result.paste(small.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        last = small.resize((left, height), box=(inner_width, 0, inner_width, height))
        result.paste(last, (left + inner_width, 0))
    return result


def covered(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` as small as it covers `size`, height and width, cut off evenly."""
    height, width = size
    scaled = _scaled(image, size, within=False)
    result = Image.new("RGB", (width, height))
    result.paste(
        image.resize(scaled, Image.Resampling.LANCZOS), (width // 2 - scaled[0] // 2, height // 2 - scaled[1] // 2)
    )
    return result


def _scaled(image: Image.Image, size: tuple[int, int], *, within: bool) -> tuple[int, int]:
    """Width and height of `image` at the scale at which one of them is that of `size`, and the other no larger if
    `within`, no smaller otherwise."""
    height, width = size
    wider = image.width / image.height > width / height
    if wider == within:
        return width, max(image.height * width // image.width, 1)
    return max(image.width * height // image.height, 1), height
