"""46. Text to image, whole: the prompt through tokenizer and text encoder, noise through a sampler on the guided U-Net,
latents through the decoder (Rombach et al. 2022).

The same numbered steps as in sd/pipeline.py, and from the same seed the same picture.
"""

import math
from collections.abc import Callable
from pathlib import Path

from miniai.scratch.autoencoder import Decoder
from miniai.scratch.branches import Branches, TwoProcesses
from miniai.scratch.clip import CLIPTextModel
from miniai.scratch.folder import read_json
from miniai.scratch.ladder import ScheduleConfig, make_ladder
from miniai.scratch.mersenne import randn
from miniai.scratch.sampler import dpmpp_2m, guided
from miniai.scratch.tensor import Tensor
from miniai.scratch.tokenizer import CLIPTokenizer

STEPS, GUIDANCE_SCALE = 20, 2.5  # what a picture is painted with where nothing else is asked for


class StableDiffusionPipeline:
    """The parts of a Stable Diffusion model, and the call that paints with them."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: Branches,
        decoder: Decoder,
        schedule: ScheduleConfig,
    ) -> None:
        self.tokenizer, self.text_encoder, self.unet = tokenizer, text_encoder, unet
        self.decoder, self.schedule = decoder, schedule

    @classmethod
    def from_pretrained(cls, folder: Path, n_processes: int = 1) -> "StableDiffusionPipeline":
        """Reads a model folder in the Diffusers layout. Raises ValueError or OSError, naming the file, for anything
        missing, damaged, not supported or not fitting."""
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} has no model_index.json: give the folder of a model in the Diffusers layout")
        index = read_json(folder / "model_index.json")
        if index.get("_class_name") != "StableDiffusionPipeline":
            raise ValueError(f"{folder}: {index.get('_class_name')} is not supported here, StableDiffusionPipeline is")
        pipe = cls(
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
            unet=(TwoProcesses if n_processes > 1 else Branches)(folder / "unet"),
            decoder=Decoder.from_pretrained(folder / "vae"),
            schedule=ScheduleConfig.from_pretrained(folder / "scheduler"),
        )
        pipe.check_fit(folder)
        return pipe

    def check_fit(self, folder: Path) -> None:
        """Each part may be whole by itself and still not belong to the others."""
        text, unet, vae = self.text_encoder.config, self.unet.config, self.decoder.config
        claims = [
            (len(self.tokenizer) <= text.vocab_size, "the tokenizer has more tokens than the text encoder"),
            (self.tokenizer.model_max_length <= text.max_position_embeddings, "the tokenizer's window is too long"),
            (unet.cross_attention_dim == text.hidden_size, "the unet reads text of another width than is written"),
            (unet.in_channels == unet.out_channels == vae.latent_channels, "unet and vae differ in channels"),
        ]
        for holds, how in claims:
            if not holds:
                raise ValueError(f"{folder}: the parts do not belong together ({how}): get the folder again")

    def __call__(
        self,
        prompt: str,
        negative_prompt: str = "",
        num_inference_steps: int = STEPS,
        guidance_scale: int | float = GUIDANCE_SCALE,
        seed: int = 0,
        callback: Callable[[int], None] = lambda step: None,
    ) -> Tensor:
        """One picture, (3, h, w), in about [-1, 1].

        - guidance_scale: how strongly the prompt rules; 1 or less paints without guidance, in half the time.
        - seed: as `torch.Generator().manual_seed(seed)`.
        - callback: called with the number of each step that is done.

        A prompt that is longer than the tokenizer's window is cut. Raises ValueError for a request that cannot be met.
        """
        # 1. The noise levels that the sampler will visit
        ladder = make_ladder(self.schedule, num_inference_steps)

        # 2. The text, as one vector per token
        condition, negative = (self.text_encoder(self.tokenizer(text)) for text in (prompt, negative_prompt))

        # 3. The noise to start from, drawn channel by channel as in PyTorch
        side, channels = self.unet.config.sample_size, self.unet.config.in_channels
        start_noise = randn((channels, side, side), seed).permute(1, 2, 0).contiguous()

        # 4. A denoiser that follows the prompt
        scale = max(1.0, float(guidance_scale))
        denoiser = guided(self.unet, ladder, self.schedule.prediction_type, condition, negative, scale)

        # 5. Step by step, noise becomes latents
        latents = dpmpp_2m(denoiser, start_noise * ladder.start_scale, ladder.sigmas, callback)

        # 6. Latents become a picture
        image = self.decoder(latents * (1 / self.decoder.config.scaling_factor)).permute(2, 0, 1)
        if not all(map(math.isfinite, image.flat())):
            raise ValueError("the picture came out as not-a-number: get the model again")
        return image
