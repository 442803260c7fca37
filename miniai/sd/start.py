"""What sampling starts from: noise, the latents of a picture, and the part of them that is to stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.seeds import randn
from miniai.diffusion.denoiser import Network
from miniai.diffusion.known_region import KnownRegion
from miniai.nn.autoencoder import AutoencoderKL, DiagonalGaussian
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.image_inputs import Source, draw_latents, encode_images, latent_mask, spread


@dataclass(frozen=True)
class Start:
    """All of it float32 on the device.

    - noise: of unit variance.
    - x0: clean latents that the noise is added to; None is noise alone.
    - region: what stays, for a model that knows nothing of masks.
    - beside: mask and latents of the masked picture, which an inpainting model reads beside the noisy latents.
    """

    noise: Float[Tensor, "b c h w"]
    x0: Float[Tensor, "b c h w"] | None = None
    region: KnownRegion | None = None
    beside: Float[Tensor, "b k h w"] | None = None

    def network(self, unet: Network) -> Network:
        """The U-Net, given what it reads beside the latents, in as many copies as guidance makes of them."""
        beside = self.beside
        if beside is None:
            return unet

        def network(x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
            copies = beside.repeat(len(x) // len(beside), 1, 1, 1).to(x.dtype)
            return unet(torch.cat([x, copies], dim=1), timestep, condition)

        return network


def make_start(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    source: Source | None,
    shape: Sequence[int],
    generators: list[torch.Generator],
    latents: Float[Tensor, "b c h w"] | None,
    masked: Float[Tensor, "m c2 h2 w2"] | None,
    n_each: int,
    noise_alone: bool,
) -> Start:
    """Draw the start for latents of `shape`, from each picture's generator in Diffusers' order: picture, noise, mask.

    - latents: unit noise of the caller, instead of a draw.
    - masked: what an inpainting model is shown of the picture, instead of `source.masked_images()`; or its latents,
      scaled as the U-Net sees them.
    - n_each: pictures of each prompt.
    - noise_alone: with a mask, start without the picture (strength 1).

    Raises UserError if picture, mask, noise and model do not go together.
    """
    device = unet.conv_in.weight.device
    native = unet.config.in_channels > vae.config.latent_channels
    has_mask = source is not None and source.mask is not None
    if native and not has_mask:
        raise UserError("this model is made for inpainting: give image and mask_image")
    if latents is not None and tuple(latents.shape) != tuple(shape):
        raise UserError(f"latents have shape {tuple(latents.shape)}: this request needs {tuple(shape)}")

    known = None
    if source is not None and not (native and noise_alone):
        known = picture_latents(vae, source, generators, n_each).to(device)
    noise = (randn(shape, generators) if latents is None else latents).to(device, torch.float32)
    if source is None or source.mask is None:
        return Start(noise, known)

    x0 = None if noise_alone else known
    mask = latent_mask(source.mask, shape, n_each).to(device)
    masked = source.masked_images() if masked is None else masked.float()
    is_latent = masked.shape[1] == vae.config.latent_channels
    if native:
        if is_latent:
            shown = masked[spread(len(masked), shape[0], n_each, "masked pictures")]
        else:
            shown = draw_latents(encode_images(vae, masked), generators, n_each) * vae.config.scaling_factor
        return Start(noise, x0, beside=torch.cat([mask, shown.to(device)], dim=1))
    if not is_latent:
        # Diffusers encodes the masked picture here too, for nothing but this draw, on which later noise depends.
        nothing = torch.zeros(len(masked), *shape[1:])
        draw_latents(DiagonalGaussian(nothing, nothing), generators, n_each)
    assert known is not None
    return Start(noise, x0, region=KnownRegion(mask, known, noise))


def check_masked(masked: Any, source: Source | None, shape: Sequence[int]) -> None:
    """Raise UserError for `masked_image_latents` that are neither pictures as large as those of `source` nor latents of
    `shape`, and for any without a mask."""
    if masked is None:
        return
    if source is None or source.mask is None:
        raise UserError("masked_image_latents belong to a mask: give image and mask_image")
    possible = [(3, *source.size), tuple(shape[1:])]
    if not isinstance(masked, Tensor) or masked.ndim != 4 or tuple(masked.shape[1:]) not in possible:
        found = tuple(masked.shape) if isinstance(masked, Tensor) else type(masked).__name__
        wanted = " or ".join(f"(n, {', '.join(map(str, sides))})" for sides in possible)
        raise UserError(f"masked_image_latents are {found}: give a tensor {wanted}")


def latent_shape(
    unet: UNet2DConditionModel, vae: AutoencoderKL, n_images: int, height: int | None, width: int | None
) -> tuple[int, int, int, int]:
    """(n_images, channels, height, width) of the latents for pictures of `height` by `width` pixels; None is the size
    that the model was trained on."""
    factor = vae.config.factor
    sides = []
    for name, pixels in (("height", height), ("width", width)):
        pixels = unet.config.sample_size * factor if pixels is None else pixels
        if pixels < factor or pixels % factor:
            raise UserError(f"{name} {pixels} is not possible: this model paints multiples of {factor} pixels")
        sides.append(pixels // factor)
    return n_images, vae.config.latent_channels, sides[0], sides[1]


def picture_latents(
    vae: AutoencoderKL, source: Source, generators: list[torch.Generator], n_each: int
) -> Float[Tensor, "b c h w"]:
    """Clean latents for each picture to be painted, scaled as the U-Net sees them."""
    if source.is_latent:
        return source.images[spread(len(source.images), len(generators), n_each, "pictures to start from")]
    return draw_latents(encode_images(vae, source.images), generators, n_each) * vae.config.scaling_factor
