"""Inpainting with any model: the part that is to stay is put back at each step, noised to the step's own level.

Source: Avrahami et al., "Blended Latent Diffusion" (2023), algorithm 1; as Diffusers' StableDiffusionInpaintPipeline.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from miniai.diffusion.ladder import Ladder
from miniai.diffusion.parametrisation import like_images
from miniai.diffusion.samplers import Callback, Denoiser


@dataclass(frozen=True)
class KnownRegion:
    """Clean latents of which a part stays.

    - mask: 1 where something new is painted, 0 where the known latents stay.
    - known: clean latents, as the U-Net sees them.
    - noise: of unit variance, the same at all steps.

    >>> import torch
    >>> known, mask = torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    >>> mask[..., 2:] = 1  # the right half is painted
    >>> x = KnownRegion(mask, known, torch.randn(1, 2, 4, 4)).restore(torch.full((1, 2, 4, 4), 5.0), 0.0)
    >>> x[0, 0, 0]
    tensor([1., 1., 5., 5.])
    """

    mask: Float[Tensor, "b 1 h w"]
    known: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]

    def restore(self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"] | float) -> Float[Tensor, "b c h w"]:
        """x = x0 + sigma * eps with its known part put back at that level."""
        level = like_images(sigma, x) if isinstance(sigma, Tensor) else sigma
        return self.mask * x + (1 - self.mask) * (self.known + level * self.noise)

    def around(self, denoiser: Denoiser, callback: Callback, ladder: Ladder) -> tuple[Denoiser, Callback]:
        """Both of them for a sampler that keeps the known part.

        The denoiser sees it in its place between steps too (in Heun's second call), and estimates it as it is. At the
        first level x stays what it is: pure noise, where nothing of the picture is to shine through.

        After each step it is put back, without noise after the last, before `callback` sees x. What `callback` changes
        then, in the known part as well, the denoiser sees as it was left.
        """
        left: Tensor | None = None

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            as_it_is = x is left or not float(sigma[0]) < float(ladder.sigmas[0]) * (1 - 1e-6)
            return self.restore(denoiser(x if as_it_is else self.restore(x, sigma), sigma), 0.0)

        def after_step(i: int, x: Tensor, sigma: float, x0: Tensor) -> Tensor:
            nonlocal left
            last = i == ladder.n_steps - 1
            # A sampler that ends above sigma 0 has its last x scaled by `end_scale`, which the known part is not.
            x = self.mask * x + (1 - self.mask) * self.known / ladder.end_scale if last else self.restore(x, sigma)
            changed = callback(i, x, sigma, x0)
            left = x if changed is None else changed
            return left

        return denoise, after_step
