"""Text to image, whole: the prompt through tokenizer and text encoder, noise through a sampler on the guided U-Net,
latents through the decoder (Rombach et al. 2022)."""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from miniai.base.errors import UserError, UserNotice
from miniai.base.images import to_pil
from miniai.base.seeds import randn
from miniai.diffusion.denoiser import NetworkDenoiser, guided
from miniai.diffusion.ladder import Ladder
from miniai.diffusion.samplers import Callback, no_callback
from miniai.diffusion.sampling import Sampler, find_sampler, fresh_noise, sample, sampler_from_file, schedule_config
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.folder import SCHEDULER, Components, read_folder, write_folder
from miniai.sd.tokenizer import CLIPTokenizer

OutputType = Literal["pil", "pt", "np", "latent"]
# callback(pipeline, step, timestep, {"latents": ..., "denoised": ...}) -> a dict with other "latents", or None
StepCallback = Callable[["StableDiffusionPipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass(frozen=True)
class StableDiffusionOutput:
    """`images`: PIL pictures; or with `output_type` "pt" a tensor (b, 3, h, w), with "np" an array (b, h, w, 3), both
    float32 in [0, 1]; or with "latent" the latents (b, c, h, w), scaled as the U-Net sees them."""

    images: list[Image.Image] | Tensor | np.ndarray


class StableDiffusionPipeline:
    """The parts of a Stable Diffusion model, and the call that paints with them.

    `scheduler_config` is the content of scheduler_config.json: the noise schedule that the U-Net was trained on, what
    it predicts, and the sampler it is painted with unless another is asked for.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler_config: dict[str, Any],
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.unet = unet
        self.vae = vae
        self.scheduler_config = scheduler_config

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        torch_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "StableDiffusionPipeline":
        """Read a model folder in the Diffusers layout. Raises UserError as `read_folder` does."""
        parts = read_folder(folder, torch_dtype, torch.device(device))
        return cls(parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, parts.scheduler_config)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a model folder that `from_pretrained` loads, here and in Diffusers; weights in the dtype they have."""
        write_folder(folder, Components(self.tokenizer, self.text_encoder, self.unet, self.vae, self.scheduler_config))

    def to(self, *device_or_dtype: str | torch.device | torch.dtype) -> "StableDiffusionPipeline":
        """Move the networks to a device, or convert them to a dtype, in place."""
        for module in (self.text_encoder, self.unet, self.vae):
            for target in device_or_dtype:
                module.to(target)
        return self

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: int | float = 7.5,
        sampler: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "b c h w"] | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> StableDiffusionOutput:
        """Paint `num_images_per_prompt` pictures of each prompt.

        - negative_prompt: what the pictures should not be; one for all prompts, or one each. None is the empty text.
        - height, width: in pixels, multiples of `vae.config.factor`; None is the size that the model was trained on.
        - guidance_scale: how strongly the prompt rules; 1 or less paints without guidance, in half the time.
        - sampler: a name that `find_sampler` knows; None is the one that the model's scheduler_config.json names.
        - generator: one per picture, or one that all pictures draw from in turn; on the CPU. None draws a fresh seed.
        - latents: the start noise, of unit variance, (n_images, c, h / factor, w / factor), instead of the generators'.
        - callback_on_step_end: see `StepCallback`; it may change "latents", and raise `StopSampling` to end early.

        Raises UserError for a request that cannot be met. A prompt that is too long is cut, with a UserNotice.
        """
        # 1. What is asked for: as many prompts, negative prompts and generators as there will be pictures
        prompts, negatives = self.pair_prompts(prompt, negative_prompt, num_images_per_prompt)
        shape = self.latent_shape(len(prompts), height, width)
        generators = spread_generators(generator, len(prompts))

        # 2. The text, as one vector per token
        condition, unconditional = self.encode_text(prompts + negatives).chunk(2)

        # 3. The noise levels that the sampler will visit
        method = sampler_from_file(self.scheduler_config, SCHEDULER) if sampler is None else find_sampler(sampler)
        schedule = NoiseSchedule(schedule_config(self.scheduler_config, method, SCHEDULER))
        ladder = method.ladder(schedule, num_inference_steps)

        # 4. The noise to start from
        start_noise = self.start_noise(shape, generators, latents)

        # 5. A denoiser from the U-Net, and from that a denoiser that follows the prompt
        denoiser = NetworkDenoiser(self.unet, schedule, ladder, self.dtype)
        prompted = guided(denoiser, condition, unconditional, guidance_strength(guidance_scale))

        # 6. Step by step, noise becomes latents
        painted = sample(
            method,
            prompted,
            ladder,
            start_noise,
            noise=fresh_noise(shape, generators, start_noise),
            callback=self.step_callback(callback_on_step_end, method, ladder),
            clip=schedule.config.clip_sample_range if schedule.config.clip_sample else None,
            prediction_type=schedule.config.prediction_type,
        )

        # 7. Latents become pictures
        return StableDiffusionOutput(painted if output_type == "latent" else convert(self.decode(painted), output_type))

    def pair_prompts(
        self, prompt: str | list[str], negative_prompt: str | list[str] | None, n_each: int
    ) -> tuple[list[str], list[str]]:
        """A prompt and a negative prompt for each picture, `n_each` pictures of a prompt one after the other."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
        if not prompts or n_each < 1:
            raise UserError("there is nothing to paint: give at least one prompt and ask for at least one picture")
        if len(negatives) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(negatives)} negative prompts: give one, or one for each")
        for text in dict.fromkeys(prompts + negatives):
            beyond = self.tokenizer.cut(text)
            if beyond:
                n_tokens = self.tokenizer.model_max_length - 2
                warnings.warn(
                    f"the prompt is longer than the model's {n_tokens} tokens; cut off: '{beyond}'",
                    UserNotice,
                    stacklevel=3,
                )
        return [p for p in prompts for _ in range(n_each)], [n for n in negatives for _ in range(n_each)]

    def latent_shape(self, n_images: int, height: int | None, width: int | None) -> tuple[int, int, int, int]:
        """(n_images, channels, height, width) of the latents for pictures of `height` by `width` pixels."""
        factor = self.vae.config.factor
        sides = []
        for name, pixels in (("height", height), ("width", width)):
            pixels = self.unet.config.sample_size * factor if pixels is None else pixels
            if pixels < factor or pixels % factor:
                raise UserError(f"{name} {pixels} is not possible: this model paints multiples of {factor} pixels")
            sides.append(pixels // factor)
        return n_images, self.unet.config.in_channels, sides[0], sides[1]

    def encode_text(self, texts: list[str]) -> Float[Tensor, "b n d"]:
        """One vector for each token of each text; a text that occurs several times is encoded once."""
        unique = list(dict.fromkeys(texts))
        encoded = self.text_encoder(self.tokenizer(unique).to(self.device)).last_hidden_state.to(self.dtype)
        return encoded[[unique.index(text) for text in texts]]

    def start_noise(
        self, shape: Sequence[int], generators: list[torch.Generator], latents: Float[Tensor, "b c h w"] | None
    ) -> Float[Tensor, "b c h w"]:
        """Unit noise, float32 on the device: the caller's `latents`, or a draw from each picture's generator."""
        if latents is not None and tuple(latents.shape) != tuple(shape):
            raise UserError(f"latents have shape {tuple(latents.shape)}: this request needs {tuple(shape)}")
        noise = randn(shape, generators) if latents is None else latents
        return noise.to(self.device, torch.float32)

    def step_callback(self, callback: StepCallback | None, sampler: Sampler, ladder: Ladder) -> Callback:
        """`callback` as samplers call theirs. It sees latents in the coordinates that Diffusers shows for this sampler:
        x0 + sigma * eps for Euler and its relatives, that divided by sqrt(1 + sigma^2) for the others."""
        if callback is None:
            return no_callback

        def after_step(i: int, x: Tensor, sigma: float, x0: Tensor) -> Tensor | None:
            scale = 1 / math.hypot(1, sigma) if sampler.rule.unit_start else 1.0
            seen = {"latents": x * scale, "denoised": x0}
            answer = callback(self, i, float(ladder.timesteps[i]), dict(seen)) or {}
            changed = answer.get("latents", seen["latents"])
            return None if changed is seen["latents"] else changed.to(x) / scale

        return after_step

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Latents, scaled as the U-Net sees them, to pictures, float32 in about [-1, 1]."""
        images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.dtype)).float()
        if not images.isfinite().all():
            raise UserError(f"the picture came out as not-a-number in {self.dtype}: use float32 or bfloat16")
        return images


def guidance_strength(guidance_scale: int | float) -> float:
    """The scale as `guided` takes it: as in Diffusers, 1 or less is no guidance."""
    if not math.isfinite(guidance_scale):
        raise UserError(f"guidance scale {guidance_scale} is not possible: give a number such as 7.5")
    return max(1.0, float(guidance_scale))


def spread_generators(
    generator: torch.Generator | list[torch.Generator] | None, n_images: int
) -> list[torch.Generator]:
    """A generator for each picture: those given, or the one given for all in turn, or fresh ones from the system."""
    if generator is None:
        fresh = [torch.Generator() for _ in range(n_images)]
        for one in fresh:
            one.seed()
        return fresh
    generators = [generator] * n_images if isinstance(generator, torch.Generator) else generator
    if len(generators) != n_images:
        raise UserError(f"{len(generators)} generators for {n_images} pictures: give one, or one for each")
    if any(one.device.type != "cpu" for one in generators):
        raise UserError("noise is drawn on the CPU: make the generator with torch.Generator(), without a device")
    return generators


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
