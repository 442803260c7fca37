"""The guidance of one painting, which a callback may change between its steps."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.diffusion.composition import composed
from miniai.diffusion.denoiser import ConditionalDenoiser, guided
from miniai.sd.request_checks import guidance_strength


class Guidance:
    """A denoiser that follows the texts and the scale as they are now: `guided`, made anew when either is changed.

    `options` are those of `guided`; `further` texts beside `condition` are `composed` with it, `weights` being those of
    all of them. `prompt_embeds` are the texts as Diffusers' callbacks see them: (b, n, d), one for
    each picture; with guidance (2 b, n, d), what the pictures should not be first.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        condition: Float[Tensor, "b n d"],
        negative: Float[Tensor, "b n d"],
        scale: int | float,
        further: Sequence[Float[Tensor, "b n d"]] = (),
        weights: Float[Tensor, "b m1"] | None = None,
        **options: Any,
    ) -> None:
        self.denoiser, self.options, self.n_pictures = denoiser, options, len(condition)
        self.further, self.weights = further, weights
        self.negative_prompt_embeds = negative
        self.prompt_embeds = torch.cat([negative, condition]) if scale > 1 else condition
        self.scale = float(scale)
        self.follow(self.prompt_embeds, scale)

    def __call__(self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        return self._guided(x, sigma)

    def follow(self, prompt_embeds: Float[Tensor, "m n d"], scale: int | float) -> None:
        """Go on with these. Raises UserError unless there are as many texts as the scale asks for: one for each
        picture, and above 1 two."""
        scale = guidance_strength(scale)
        n_texts = self.n_pictures * (2 if scale > 1 else 1)
        if len(prompt_embeds) != n_texts or prompt_embeds.shape[2:] != self.prompt_embeds.shape[2:]:
            raise UserError(
                f"a callback left guidance scale {scale:g} and prompt_embeds {tuple(prompt_embeds.shape)}: "
                f"for {self.n_pictures} picture(s) that needs {n_texts} text(s)"
            )
        self.prompt_embeds, self.scale = prompt_embeds, scale
        negative, condition = prompt_embeds.chunk(2) if scale > 1 else (prompt_embeds, prompt_embeds)
        if self.weights is None:
            self._guided = guided(self.denoiser, condition, negative, scale, **self.options)
            return
        if scale <= 1 or condition.shape != self.further[0].shape:
            raise UserError("a callback may not end guidance, nor change the texts' length, where a prompt has an AND")
        conditions, interval = torch.stack([condition, *self.further]), self.options["interval"]
        self._guided = composed(self.denoiser, conditions, self.weights, negative, scale, interval=interval)
