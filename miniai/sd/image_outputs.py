"""Painted pictures in the form asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

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

    def __iter__(self) -> Iterator[Any]:
        """Both, as the tuple that Diffusers returns with `return_dict=False`."""
        return iter((self.images, self.nsfw_content_detected))

    def __getitem__(self, key: int | str) -> Any:
        """By number or by name, as Diffusers' outputs: `output[0]`, `output["images"]`."""
        return getattr(self, key) if isinstance(key, str) else (self.images, self.nsfw_content_detected)[key]


def convert(images: Float[Tensor, "b 3 h w"], output_type: OutputType) -> list[Image.Image] | Tensor | np.ndarray:
    """Pictures in [-1, 1] in the form asked for; see `StableDiffusionOutput`."""
    if output_type == "pil":
        return to_pil(images)
    unit = (images / 2 + 0.5).clamp(0, 1).cpu()
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).numpy()


def check_output_type(output_type: str) -> None:
    """Raise UserError for a form that there is not."""
    if output_type not in get_args(OutputType):
        raise UserError(f"unknown output_type {output_type!r}: there are {', '.join(get_args(OutputType))}")
