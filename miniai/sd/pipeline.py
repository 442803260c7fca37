"""Text to image, whole: the prompt through tokenizer and text encoder, noise through a sampler on the guided U-Net,
latents through the decoder (Rombach et al. 2022)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.images import to_pil
from miniai.base.memory import give_back_memory, give_back_unwritten
from miniai.diffusion.denoiser import NetworkDenoiser
from miniai.diffusion.inverse import PictureLoss, loss_guided
from miniai.diffusion.ladder import StepList
from miniai.diffusion.samplers import Denoiser
from miniai.diffusion.sampling import find_sampler, fresh_noise, sample, sampler_from_file, schedule_config
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.painting import painting
from miniai.sd.fast import ReusedDeepFeatures
from miniai.sd.folder import SCHEDULER
from miniai.sd.guidance import Guidance
from miniai.sd.image_inputs import ImageInput, read_source, skipped_steps
from miniai.sd.image_outputs import OutputType, StableDiffusionOutput, check_output_type, convert
from miniai.sd.mask_crop import MaskCrop
from miniai.sd.prompt_parts import check_parts, split_parts
from miniai.sd.prompts import LongPrompts, PromptReader, PromptSyntax
from miniai.sd.request_checks import (
    check_shares,
    check_whole,
    guidance_strength,
    noise_interval,
    spread_generators,
)
from miniai.sd.start import check_masked, latent_shape, make_start
from miniai.sd.step_callback import (
    Interrupted,
    OldCallback,
    StepCallback,
    after_each_step,
    check_tensor_names,
    with_old_callback,
)
from miniai.sd.stored import Stored
from miniai.sd.textual_inversion import TextualInversionNames


class StableDiffusionPipeline(Stored, TextualInversionNames):
    """The call that paints with the parts of a Stable Diffusion model; `Stored` says what these are, and where from."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
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
        image: ImageInput | None = None,
        strength: int | float | None = None,
        mask_image: ImageInput | None = None,
        padding_mask_crop: int | None = None,
        masked_image_latents: Tensor | None = None,
        guidance_rescale: int | float = 0.0,
        eta: int | float = 0.0,
        prompt_embeds: Float[Tensor, "p n d"] | None = None,
        negative_prompt_embeds: Float[Tensor, "p n d"] | None = None,
        clip_skip: int | None = None,
        prompt_syntax: PromptSyntax = "plain",
        long_prompts: LongPrompts = "cut",
        guidance_interval: tuple[int | float, int | float] | None = None,
        guidance_loss: PictureLoss | None = None,
        guidance_loss_scale: int | float = 1.0,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: OldCallback | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        timesteps: StepList | None = None,
        sigmas: StepList | None = None,
        return_dict: bool = True,
    ) -> StableDiffusionOutput:
        """Paint `num_images_per_prompt` pictures of each prompt.

        - negative_prompt: what the pictures should not be; one for all prompts, or one each. None is the empty text.
        - height, width: in pixels, multiples of `vae.config.factor`; None is the size of `image`, or, without one or
          with a mask, the size that the model was trained on, to which both are then resized, as in Diffusers.
        - guidance_scale: how strongly the prompt rules; 1 or less paints without guidance, in half the time.
        - guidance_rescale: 0 to 1, how far guidance is kept from raising the contrast, see `rescale_guided`.
        - sampler: a name that `find_sampler` knows; None is the one that the model's scheduler_config.json names.
        - eta: how much fresh noise DDIM takes at each step, 0 to 1; other samplers pass it over.
        - generator: one per picture, or one that all pictures draw from in turn; on the CPU. None draws a fresh seed.
        - latents: the start noise, of unit variance, (n_images, c, h / factor, w / factor), instead of the generators'.
        - image: one picture to start from, or one for each prompt or picture, see `ImageInput`; or their latents.
        - strength: 0 to 1, the share of the steps that is taken, from a picture with as much noise as belongs there.
          None is 0.8; with a mask 1, which starts from noise alone.
        - mask_image: white where something new is painted, black where the picture stays; as large as `image`.
        - padding_mask_crop: cut out what lies around the mask, with so many pixels more, paint it at `height` by
          `width`, and put it back: see `MaskCrop`. masked_image_latents: what an inpainting model is shown of the
          picture, in the place of `image` without what the mask has: its latents, (n, c, height / factor, width /
          factor), scaled as the U-Net sees them, or the picture, (n, 3, height, width), in [-1, 1].
        - prompt_embeds, negative_prompt_embeds: (n_prompts, tokens, width), from elsewhere, instead of texts.
        - clip_skip, prompt_syntax, long_prompts: see `PromptReader`; "a1111" also knows "a cat AND a hat :0.5", see
          `miniai.sd.prompt_parts`.
        - guidance_interval: the noise levels (low, high], as sigma, between which guidance acts; elsewhere a step takes
          half the time. None is everywhere. See `guided`.
        - guidance_loss: of pictures (n_images, 3, height, width) in about [-1, 1], a number each that is to be small,
          with a gradient; `guidance_loss_scale` is how strongly it counts, see `loss_guided`.
        - cache_interval, cache_branch_id: how many steps in a row share the U-Net's deep features, which is faster and
          less exact, and how many layers are not deep. See `ReusedDeepFeatures`.
        - callback_on_step_end: see `StepCallback`; it may change "latents", and end early: by raising `StopSampling`
          with the estimate of its step, by setting `_interrupt`, as in Diffusers, with the latents.
        - callback, callback_steps: what Diffusers had before that, called as (step, timestep, latents) every so many
          steps; for programs that still use it.
        - cross_attention_kwargs: {"scale": 0.5} takes half of the strength of each LoRA that is active.
        - timesteps, sigmas: lists of where the steps lie, in place of `num_inference_steps`: see `Sampler.ladder`.
        - return_dict: for programs written for Diffusers; what is returned can be unpacked as a tuple either way.

        Raises UserError for a request that cannot be met.
        """
        # 1. The text, as one vector per token: for each picture what it should be, and what it should not
        scale = guidance_strength(guidance_scale)
        check_shares(guidance_rescale=guidance_rescale, eta=eta)
        check_whole(num_inference_steps=num_inference_steps, num_images_per_prompt=num_images_per_prompt)
        check_output_type(output_type)
        interval = noise_interval(guidance_interval)
        network = self.unet if cache_interval == 1 else ReusedDeepFeatures(self.unet, cache_interval, cache_branch_id)
        check_tensor_names(callback_on_step_end_tensor_inputs)
        heard = with_old_callback(callback_on_step_end, callback, callback_steps)
        self._scale_lora(cross_attention_kwargs)
        reader = PromptReader(self.tokenizer, self.text_encoder, clip_skip, prompt_syntax, long_prompts)
        parts = split_parts(prompt) if prompt_syntax == "a1111" and prompt_embeds is None else None
        check_parts(parts, scale, guidance_rescale)
        if parts is not None:
            texts = reader.read_parts(parts, negative_prompt, negative_prompt_embeds)
        else:
            alone = reader.read(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, guidance=scale > 1)
            texts = alone[0][None], alone[1]
        condition, *further = (self.for_each_picture(text, num_images_per_prompt) for text in texts[0])
        unconditional = self.for_each_picture(texts[1], num_images_per_prompt)
        weights = None if parts is None else parts.weights.repeat_interleave(num_images_per_prompt, 0)

        # 2. A picture to start from, if there is one; the size; and a generator for each picture
        vae, n_images = self.vae.config, len(condition)
        own_side = self.unet.config.sample_size * vae.factor
        crop = None
        if padding_mask_crop is not None:
            _, _, *sides = latent_shape(self.unet, self.vae, n_images, height, width)
            height, width = (side * vae.factor for side in sides)
            crop = MaskCrop.around(image, mask_image, (height, width), padding_mask_crop, output_type)
            image, mask_image = crop.parts()
        source = read_source(image, mask_image, (height, width), vae.factor, vae.latent_channels, own_side)
        shape = latent_shape(self.unet, self.vae, n_images, *(source.size if source else (height, width)))
        check_masked(masked_image_latents, source, shape)
        generators = spread_generators(generator, n_images)

        # 3. The noise levels that the sampler will visit
        method = sampler_from_file(self.scheduler_config, SCHEDULER) if sampler is None else find_sampler(sampler)
        schedule = NoiseSchedule(schedule_config(self.scheduler_config, method, SCHEDULER))
        ladder = method.ladder(schedule, num_inference_steps, timesteps, sigmas)
        n_skipped = skipped_steps(ladder.n_steps, strength, source.mask is not None) if source else 0
        doubles = method.name == "pndm" and n_skipped > 1  # Diffusers' list has PNDM's second timestep twice
        ladder = ladder.after(n_skipped - doubles) if n_skipped else ladder

        # 4. The noise to start from, and the picture's latents
        start = make_start(
            *(self.vae, self.unet, source, shape, generators, latents, masked_image_latents),
            n_each=num_images_per_prompt,
            noise_alone=n_skipped == 0,
        )

        # 5. A denoiser from the U-Net; from that one that follows the prompt, and leaves alone what is to stay
        kind = schedule.config.prediction_type
        denoiser = NetworkDenoiser(start.network(network), schedule, ladder, self.dtype)
        options: dict[str, Any] = {"rescale": guidance_rescale, "rescale_as": kind, "interval": interval}
        options |= {"further": further, "weights": weights}
        prompted: Denoiser = (guidance := Guidance(denoiser, condition, unconditional, scale, **options))
        if guidance_loss is not None:
            own = guidance_loss
            prompted = loss_guided(prompted, lambda x0: own(self.decode(x0)), scale=guidance_loss_scale)
        after_step = after_each_step(self, heard, callback_on_step_end_tensor_inputs, method, ladder, guidance)
        if start.region:
            prompted, after_step = start.region.around(prompted, after_step, ladder)

        # 6. Step by step, noise becomes latents
        own_options: dict[str, dict[str, Any]] = {"ddim": {"eta": eta}, "pndm": {"second_step_unasked": doubles}}
        self._interrupt = False
        try:
            with painting(self.unet):
                painted = sample(
                    *(method, prompted, ladder, start.noise),
                    x0=start.x0,
                    noise=fresh_noise(shape, generators, start.noise),
                    callback=after_step,
                    clip=schedule.config.clip_sample_range if schedule.config.clip_sample else None,
                    prediction_type=kind,
                    **own_options.get(method.name, {}),
                )
        except Interrupted as stop:
            painted = stop.latents
        finally:
            self._scale_lora(None)

        # 7. Latents become pictures
        if output_type == "latent":
            return StableDiffusionOutput(painted)
        give_back_memory()
        give_back_unwritten(self.text_encoder)  # decoding takes the most memory, and needs none of it
        images = self.decode(painted)
        flags = None if self.safety_flags is None else self.safety_flags(to_pil(images))
        converted = convert(images, output_type)
        return StableDiffusionOutput(converted if crop is None else [crop.put_back(one) for one in converted], flags)

    def for_each_picture(self, vectors: Float[Tensor, "p n d"], n_each: int) -> Float[Tensor, "b n d"]:
        """The vectors of each prompt, once for each of its `n_each` pictures, as the U-Net reads them."""
        if n_each < 1:
            raise UserError("there is nothing to paint: ask for at least one picture")
        return vectors.to(self.device, self.dtype).repeat_interleave(n_each, dim=0)

    def encode_text(self, texts: list[str]) -> Float[Tensor, "b n d"]:
        """One vector for each token of each text."""
        return PromptReader(self.tokenizer, self.text_encoder).encode(texts).to(self.dtype)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Latents, scaled as the U-Net sees them, to pictures, float32 in about [-1, 1]."""
        with painting(self.vae.decoder):
            images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.dtype)).float()
        if not images.isfinite().all():
            half = self.dtype == torch.float16
            remedy = "use float32 or bfloat16" if half else "look for a prompt's weight or a guidance that is too large"
            raise UserError(f"the picture came out as not-a-number in {self.dtype}: {remedy}")
        return images


# One class paints from text, from pictures and within masks: these are its names in Diffusers.
StableDiffusionImg2ImgPipeline = StableDiffusionPipeline
StableDiffusionInpaintPipeline = StableDiffusionPipeline
