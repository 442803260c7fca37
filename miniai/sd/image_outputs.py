"""Painted pictures in the form asked for."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.images import to_pil

OutputType = Literal["pil", "pt", "np", "latent"]


@dataclass(frozen=True)
class StableDiffusionOutput:
    """What was painted.

    - images: PIL pictures; or with `output_type` "pt" a tensor (b, 3, h, w), with "np" an array (b, h, w, 3), both
      float32 in [0, 1]; or with "latent" the latents (b, c, h, w), scaled as the U-Net sees them.
    - nsfw_content_detected: what a safety checker says of each picture; None without a checker, and of latents.
    """

    images: list[Image.Image] | Tensor | np.ndarray
    nsfw_content_detected: list[bool] | None = None


def convert(images: Float[Tensor, "b 3 h w"], output_type: OutputType) -> list[Image.Image] | Tensor | np.ndarray:
    """Pictures in [-1, 1] in the form asked for; see `StableDiffusionOutput`."""
    if output_type == "pil":
        return to_pil(images)
    unit = (images / 2 + 0.5).clamp(0, 1).cpu()
    if output_type == "pt":
        return unit
    if output_type == "np":
        return unit.permute(0, 2, 3, 1).numpy()
    raise UserError(f"unknown output_type {output_type!r}: there are pil, pt, np and latent")
