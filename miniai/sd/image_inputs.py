"""Pictures to start from, and masks of what is to be painted anew: read from whatever form they come in, and encoded.

The forms, the resizing and the order of draws are those of Diffusers' StableDiffusionImg2ImgPipeline and
StableDiffusionInpaintPipeline, so that equal seeds give equal pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.images import to_tensor
from miniai.base.seeds import is_shared
from miniai.nn.autoencoder import AutoencoderKL, DiagonalGaussian
from miniai.nn.packed import is_packed, pack_weights
from miniai.nn.painting import painting

# One picture or several. Arrays are (h, w, 3) or (n, h, w, 3), tensors (3, h, w) or (n, 3, h, w), in [0, 1]; a tensor
# with negative numbers is taken to be in [-1, 1]. A mask is (h, w), (n, h, w), or of the same with one channel; of any
# type, white from 0.5 on.
ImageInput = Image.Image | np.ndarray | Tensor | Sequence[Image.Image] | Sequence[np.ndarray] | Sequence[Tensor]
IMAGE_TO_IMAGE_STRENGTH, INPAINTING_STRENGTH = 0.8, 1.0  # Diffusers' defaults


@dataclass(frozen=True)
class Source:
    """What painting starts from.

    - images: in [-1, 1]; or, if `is_latent`, latents scaled as the U-Net sees them.
    - mask: 1 where something new is to be painted, 0 where the picture stays; None is image to image.
    - size: (height, width) of the pictures to be painted, in pixels.
    """

    images: Float[Tensor, "n c h w"]
    mask: Float[Tensor, "m 1 h2 w2"] | None
    size: tuple[int, int]
    is_latent: bool = False

    def masked_images(self) -> Float[Tensor, "k c h w"]:
        """The pictures with grey where something new is to be painted: what a 9-channel model is shown."""
        assert self.mask is not None
        return self.images * (self.mask < 0.5)


def read_source(
    image: ImageInput | None,
    mask_image: ImageInput | None,
    size: tuple[int | None, int | None],
    factor: int,
    latent_channels: int,
    own_side: int,
) -> Source | None:
    """The pictures and the mask of a request; None without a picture.

    `size` is the height and width asked for, to which the pictures are resized; a side that is None is the first
    picture's own, rounded down to a multiple of `factor`, or with a mask the model's `own_side`, as in Diffusers. A
    mask must be of the size of its picture.
    Raises UserError for what is no picture, and for a picture and a mask that do not go together.
    """
    if image is None:
        if mask_image is not None:
            raise UserError("a mask needs a picture that it belongs to: give image as well as mask_image")
        return None
    if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == latent_channels:
        if mask_image is not None:
            raise UserError("inpainting needs the picture itself, and not its latents: give image as a picture")
        own = (image.shape[2] * factor, image.shape[3] * factor)
        if any(asked not in (None, side) for asked, side in zip(size, own, strict=True)):
            raise UserError(
                f"latents of a picture of {own[1]}x{own[0]} pixels cannot be resized: leave out height and width"
            )
        return Source(image.float(), None, own, is_latent=True)
    items = _as_list(image, "image")
    own = _sides(items[0], "image")
    size = size if mask_image is None else (size[0] or own_side, size[1] or own_side)
    height, width = (side - side % factor if asked is None else asked for asked, side in zip(size, own, strict=True))
    if min(height, width) < factor or height % factor or width % factor:
        raise UserError(f"a picture of {width}x{height} pixels cannot be painted: sides must be multiples of {factor}")
    images = _read_images(items, (height, width))
    mask = None if mask_image is None else _read_mask(mask_image, own, (height, width))
    if mask is not None and len(mask) != len(images) and 1 not in (len(mask), len(images)):
        raise UserError(f"{len(mask)} masks for {len(images)} pictures: give one, or one for each")
    return Source(images, mask, (height, width))


def painted_share(strength: float | None, has_mask: bool) -> float:
    """`strength`, or where it is None Diffusers' default."""
    return strength if strength is not None else INPAINTING_STRENGTH if has_mask else IMAGE_TO_IMAGE_STRENGTH


def skipped_steps(n_steps: int, strength: float | None, has_mask: bool) -> int:
    """How many of the first steps fall away: all but int(n_steps * strength), as in Diffusers' `get_timesteps`."""
    strength = painted_share(strength, has_mask)
    if not (math.isfinite(strength) and 0 <= strength <= 1):
        raise UserError(f"strength {strength} is not possible: give a number from 0 to 1")
    n_kept = min(int(n_steps * strength), n_steps)
    if n_kept < 1:
        raise UserError(f"strength {strength} of {n_steps} steps leaves none: raise the strength or the steps")
    return n_steps - n_kept


def spread(n_given: int, n_images: int, n_each: int, what: str) -> list[int]:
    """Which of `n_given` belongs to each picture: one for all, one for each prompt (of `n_each` pictures), or one each.

    Raises UserError, saying `what` there are too many or too few of.
    """
    if n_given == 1:
        return [0] * n_images
    if n_given == n_images:
        return list(range(n_images))
    if n_given * n_each == n_images:
        return [i for i in range(n_given) for _ in range(n_each)]
    raise UserError(f"{n_given} {what} for {n_images} pictures: give one, or one for each prompt or picture")


def encode_images(vae: AutoencoderKL, images: Float[Tensor, "n 3 h w"]) -> DiagonalGaussian:
    """The distribution of the latents of pictures, float32, not yet scaled. The encoder of a packed autoencoder is
    packed here: without pictures to start from it takes no memory."""
    if is_packed(vae.decoder):
        pack_weights(vae.encoder)
    weight = vae.encoder.conv_in.weight
    with painting(vae.encoder):
        seen = vae.encode(images.to(weight.device, weight.dtype))
    return DiagonalGaussian(seen.mean.float(), seen.log_variance.float())


def draw_latents(seen: DiagonalGaussian, generators: list[torch.Generator], n_each: int) -> Float[Tensor, "b c h w"]:
    """Latents for each picture to be painted, from its own generator; if all share one, one draw for each of `seen`."""
    n_given = len(seen.mean)
    rows = spread(n_given, len(generators), n_each, "pictures to start from")

    def draw(row: int, generator: torch.Generator) -> Tensor:
        one = slice(row, row + 1)
        return DiagonalGaussian(seen.mean[one], seen.log_variance[one]).sample(generator)

    if is_shared(generators):
        return seen.sample(generators[0])[rows]
    return torch.cat([draw(row, one) for row, one in zip(rows, generators, strict=True)])


def latent_mask(mask: Float[Tensor, "m 1 h w"], shape: Sequence[int], n_each: int) -> Float[Tensor, "b 1 h2 w2"]:
    """The mask in the size of the latents, the nearest pixel for each, one for each picture."""
    return F.interpolate(mask, size=tuple(shape[2:]))[spread(len(mask), shape[0], n_each, "masks")]


def _as_list(value: ImageInput, name: str) -> list[Image.Image] | list[Tensor]:
    """Pictures one by one; arrays become tensors, channels first."""
    items = value if isinstance(value, list | tuple) else [value]
    if isinstance(items[0] if items else None, Image.Image) and all(isinstance(item, Image.Image) for item in items):
        return list(items)
    tensors: list[Tensor] = []
    for given in items:
        item: Any = _channels_first(given, is_mask=name == "mask_image")
        if not isinstance(item, Tensor) or not 2 <= item.ndim <= 4 or item.numel() == 0:
            raise UserError(f"{name} is no picture: give a PIL image, an array (h, w, 3) or a tensor (3, h, w)")
        tensors += list(item) if item.ndim == 4 else [item[None] if item.ndim == 2 else item]
    if not tensors:
        raise UserError(f"{name} is an empty list: give a picture")
    if not tensors[0].is_floating_point():
        raise UserError(f"{name} holds whole numbers: divide by 255, since arrays and tensors are in [0, 1]")
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise UserError(f"{name}: the pictures of one request must be of one size")
    return tensors


def _channels_first(item: Any, is_mask: bool) -> Any:
    """An array as a tensor, a mask as numbers; several masks without their channel, (n, h, w), with it. What is neither
    array nor tensor as it is."""
    is_array = isinstance(item, np.ndarray)
    tensor = torch.from_numpy(item) if is_array else item
    if not isinstance(tensor, Tensor):
        return item
    tensor = tensor.float() if is_mask else tensor
    if is_mask and tensor.ndim == 3 and tensor.shape[-1 if is_array else 0] != 1:
        return tensor[:, None]
    return tensor.movedim(-1, -3) if is_array and tensor.ndim in (3, 4) else tensor


def _sides(item: Image.Image | Tensor, name: str) -> tuple[int, int]:
    if isinstance(item, Image.Image):
        return item.height, item.width
    channels, height, width = item.shape
    if channels != {"image": 3, "mask_image": 1}[name]:
        wanted = "3 channels" if name == "image" else "1 channel"
        raise UserError(f"{name} has {channels} channels: give {wanted}")
    return height, width


def _read_images(items: list[Image.Image] | list[Tensor], size: tuple[int, int]) -> Float[Tensor, "n 3 h w"]:
    if isinstance(items[0], Image.Image):
        pictures: list[Image.Image] = items
        return to_tensor([_resize(picture.convert("RGB"), size) for picture in pictures])
    images = torch.stack(items).float()
    if images.shape[2:] != size:
        images = F.interpolate(images, size=size)
    return images if float(images.min()) < 0 else images * 2 - 1


def _read_mask(mask_image: ImageInput, own: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "m 1 h w"]:
    """Grey or black and white, as 0 and 1: 1, white, is painted anew. `own` is the size of the picture."""
    items = _as_list(mask_image, "mask_image")
    for item in items:
        found = _sides(item, "mask_image")
        if found != own:
            raise UserError(
                f"the mask has {found[1]}x{found[0]} pixels, the picture {own[1]}x{own[0]}: resize the mask"
            )
    if isinstance(items[0], Image.Image):
        pictures: list[Image.Image] = items
        levels = np.stack([np.asarray(_resize(picture, size).convert("L")) for picture in pictures])
        grey = torch.from_numpy(levels)[:, None].float() / 255
    else:
        grey = torch.stack(items).float()
        grey = F.interpolate(grey, size=size) if grey.shape[2:] != size else grey
    return (grey >= 0.5).float()


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    same = (picture.height, picture.width) == size
    return picture if same else picture.resize((width, height), Image.Resampling.LANCZOS)
