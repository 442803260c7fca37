"""One random model in Diffusers' three pipelines and in ours, and pictures and masks for them."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from sd_oracle import make_diffusers_pipeline, relative_error

from miniai.diffusion.sampling import SAMPLERS
from miniai.sd.pipeline import StableDiffusionPipeline


class Models:
    """One random model: in Diffusers' three pipelines, and here."""

    def __init__(self, folder: Path, flavour: str) -> None:
        pipe = make_diffusers_pipeline(folder / "tokenizer", flavour)
        pipe.save_pretrained(folder / "model")
        self.ours = StableDiffusionPipeline.from_pretrained(folder / "model")
        self.from_text = pipe
        # Diffusers asks for `text_model`, which transformers 5 left out between the model and its parts.
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
        self.from_image, self.inpaint = (
            cls(**pipe.components, requires_safety_checker=False)
            for cls in (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline)
        )
        self.schedule = diffusers.DDIMScheduler.from_pretrained(folder / "model", subfolder="scheduler").config

    def theirs(self, kind: str, sampler: str = "ddim", **request: Any) -> torch.Tensor:
        pipe = getattr(self, kind)
        own = {"pndm": {"skip_prk_steps": True}, "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}
        scheduler = getattr(diffusers, SAMPLERS[sampler].diffusers_class)
        pipe.scheduler = scheduler.from_config(self.schedule, **own.get(sampler, {}))
        pipe.set_progress_bar_config(disable=True)
        return pipe(**{"output_type": "latent", "num_inference_steps": 5} | request).images

    def paint(self, **request: Any) -> torch.Tensor:
        return self.ours(**{"output_type": "latent", "num_inference_steps": 5, "sampler": "ddim"} | request).images

    def assert_equal(self, kind: str, sampler: str = "ddim", seeds: tuple[int, ...] = (3,), **request: Any) -> None:
        """Both paint the same latents, each with generators of its own."""
        made = []
        for call in (self.theirs, lambda _, sampler, **request: self.paint(sampler=sampler, **request)):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            made.append(call(kind, sampler, generator=generators if len(seeds) > 1 else generators[0], **request))
        assert made[0].std() > 0.1
        assert relative_error(made[1], made[0]) < 1e-4


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def mask(width: int = 16, height: int = 16) -> Image.Image:
    levels = np.zeros((height, width), dtype=np.uint8)
    levels[3:12, 5:] = 255
    levels[0, 0] = 128  # grey counts as white from the middle on
    return Image.fromarray(levels)
