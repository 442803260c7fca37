"""What programs written for Diffusers' pipelines ask of ours beside painting."""

from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.freeu import FreeU
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.prompts import PromptReader
from miniai.sd.safety import SafetyFlags
from miniai.sd.tokenizer import CLIPTokenizer

Pipeline = TypeVar("Pipeline", bound="DiffusersNames")


class SchedulerConfig(dict[str, Any]):
    """The content of scheduler_config.json; its keys are attributes, too: `pipe.scheduler.config.prediction_type`."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"scheduler_config.json has no {name}")
        return self[name]


@dataclass(frozen=True)
class SchedulerFile:
    """What Diffusers' scheduler classes ask of another: `EulerDiscreteScheduler.from_config(pipe.scheduler.config)`."""

    config: SchedulerConfig


class DiffusersNames:
    """Methods and properties of Diffusers' pipelines, over the parts that ours has."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    safety_flags: SafetyFlags | None
    _interrupt = False  # a callback that sets it ends the run after its step, see `miniai.sd.step_callback`
    _guidance_scale = 1.0  # a callback that sets it changes the strength of the steps to come
    _num_timesteps = 0

    @property
    def guidance_scale(self) -> float:
        """How strongly the prompt rules in the run that is under way, 1 for no guidance."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether it is guided now."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """How many steps it has."""
        return self._num_timesteps

    @property
    def scheduler(self) -> SchedulerFile:
        """For programs written for Diffusers: they may put one of its schedulers here, which then names the sampler."""
        return SchedulerFile(SchedulerConfig(self.scheduler_config))

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        config = dict(scheduler.config)
        named = isinstance(scheduler, SchedulerFile)
        self.scheduler_config = config if named else config | {"_class_name": type(scheduler).__name__}

    def encode_prompt(
        self,
        prompt: str | list[str],
        device: str | torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        *,
        clip_skip: int | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"] | None]:
        """(prompt_embeds, negative_prompt_embeds), one for each picture, for a call of the pipeline; without guidance
        the second is None. `device` is where they go; None is where the text encoder is."""
        reader = PromptReader(self.tokenizer, self.text_encoder, clip_skip)
        with torch.no_grad():
            both = reader.read(prompt, negative_prompt, None, None, guidance=do_classifier_free_guidance)
        condition, negative = (
            text.to(device or text.device).repeat_interleave(num_images_per_prompt, 0) for text in both
        )
        return condition, negative if do_classifier_free_guidance else None

    def set_progress_bar_config(self, **options: Any) -> None:
        """For programs written for Diffusers: nothing is shown here, `callback_on_step_end` sees every step."""

    @property
    def components(self) -> dict[str, Any]:
        """The parts, by Diffusers' names: another pipeline of the same parts is `Pipeline(**pipe.components)`."""
        names = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
        parts = {name: getattr(self, name) for name in names}
        return parts | {"safety_checker": self.safety_flags, "feature_extractor": None}

    @classmethod
    def from_pipe(cls: type[Pipeline], pipeline: "DiffusersNames") -> Pipeline:
        """A pipeline of the same parts."""
        return cls(**pipeline.components)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """For programs written for Diffusers: attention never holds all its weights at once here."""

    def disable_attention_slicing(self) -> None:
        """Likewise."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Likewise."""

    def enable_freeu(self, s1: int | float, s2: int | float, b1: int | float, b2: int | float) -> None:
        """Weigh what meets on the U-Net's way up, see `FreeU`: at its two deepest levels the features by `b1` and `b2`,
        the low frequencies of the maps beside them by `s1` and `s2`. Diffusers' pages give 0.9, 0.2, 1.5, 1.6 for
        Stable Diffusion 1.5, and 0.9, 0.2, 1.4, 1.6 for 2.1.

        Raises UserError for a weight that is not above 0.
        """
        for name, weight in {"s1": s1, "s2": s2, "b1": b1, "b2": b2}.items():
            if not isinstance(weight, Real) or not 0 < weight < float("inf"):
                raise UserError(f"{name} {weight} is not possible: give a number above 0, 1 to change nothing")
        self.unet.set_freeu(FreeU(b1, s1), FreeU(b2, s2))

    def disable_freeu(self) -> None:
        self.unet.set_freeu()

    def enable_vae_slicing(self) -> None:
        """Decode and encode one picture at a time: several then take no more memory than one."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode and encode pictures larger than those trained on in tiles: any size then takes the memory of one."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()
