"""How a pipeline is read from folders and single files, and written."""

import os
from typing import Any, TypeVar

import torch

from miniai.base.errors import UserError
from miniai.diffusion.schedule import PredictionType
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.diffusers_names import DiffusersNames
from miniai.sd.folder import Components, read_folder, write_folder
from miniai.sd.given_parts import given_parts
from miniai.sd.hub import find_model
from miniai.sd.lora import LoraNames
from miniai.sd.placement import Placement, check_place
from miniai.sd.safety import SafetyFlags, has_safety_checker, read_safety_checker
from miniai.sd.single_file import read_single_file
from miniai.sd.tokenizer import CLIPTokenizer

Pipeline = TypeVar("Pipeline", bound="Stored")


class Stored(Placement, LoraNames, DiffusersNames):
    """The parts of a Stable Diffusion model, as they are read and written.

    `scheduler_config` is the content of scheduler_config.json: the noise schedule that the U-Net was trained on, what
    it predicts, and the sampler it is painted with unless another is asked for. In its place `scheduler` may be given,
    another pipeline's or one of Diffusers', as `StableDiffusionImg2ImgPipeline(**pipe.components)` does; what follows
    is there for such calls.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler_config: dict[str, Any] | None = None,
        safety_flags: SafetyFlags | None = None,
        *,
        scheduler: Any = None,
        safety_checker: SafetyFlags | None = None,
        feature_extractor: None = None,
        requires_safety_checker: bool = False,
    ) -> None:
        if (scheduler_config is None) == (scheduler is None):
            raise ValueError("a pipeline needs either scheduler_config or scheduler")
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.unet = unet
        self.vae = vae
        self.scheduler_config = scheduler_config or {}
        if scheduler is not None:
            self.scheduler = scheduler
        self.safety_flags = safety_flags or safety_checker

    @classmethod
    def from_pretrained(
        cls: type[Pipeline],
        folder: str | os.PathLike[str],
        torch_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        tokenizer: Any = None,
        text_encoder: Any = None,
        unet: Any = None,
        vae: Any = None,
        scheduler: Any = None,
        variant: str | None = None,
        revision: str = "main",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = True,
        use_safetensors: bool | None = None,
        safety_checker: bool | None = True,
        requires_safety_checker: bool = False,
        token: str | bool | None = None,
        feature_extractor: None = None,
        low_cpu_mem_usage: bool = True,
    ) -> Pipeline:
        """Read a model folder in the Diffusers layout, by its path or by its hub id in the local cache.

        - tokenizer, text_encoder, unet, vae: ours, or those of Diffusers and transformers, in the place of the folder's
          own, which then may be missing; see `given_parts`.
        - scheduler: one of Diffusers', which names the sampler in the place of the folder's scheduler_config.json.
        - variant: "fp16" reads half the bytes, where the folder has them.
        - revision, cache_dir, local_files_only, token: see `find_model`; local_files_only=False lets the model be
          downloaded.
        - use_safetensors: True refuses pickled weights; otherwise their tensors are read, and nothing is executed.
        - safety_checker: the folder's own, if it has one, says of each picture, in `nsfw_content_detected`, whether it
          would blank it; none is changed. None or False leaves it unread.
        - the others are there for programs written for Diffusers: memory is always used sparingly.

        Raises UserError as `find_model`, `read_folder` and `check_place` do.
        """
        check_place(device, torch_dtype)
        options = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        place = torch.device(device)
        given = given_parts(tokenizer, text_encoder, unet, vae, torch_dtype, place)
        found = find_model(folder, variant=variant, without=given, **options)  # type: ignore[arg-type]
        parts = read_folder(found, torch_dtype, place, variant, bool(use_safetensors), given)
        flags = None
        if safety_checker and has_safety_checker(found):
            flags = read_safety_checker(found, torch_dtype, torch.device(device), variant)
        pipe = cls(parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, parts.scheduler_config, flags)
        if scheduler is not None:
            pipe.scheduler = scheduler
        return pipe.packed()

    @classmethod
    def from_single_file(
        cls: type[Pipeline],
        file: str | os.PathLike[str],
        torch_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        tokenizer: CLIPTokenizer | str | os.PathLike[str] | None = None,
        vae: AutoencoderKL | str | os.PathLike[str] | None = None,
        prediction_type: PredictionType | None = None,
        config: str | os.PathLike[str] | None = None,
        local_files_only: bool = True,
        use_safetensors: bool | None = None,
        safety_checker: None = None,
    ) -> Pipeline:
        """Read a .safetensors or .ckpt file of Stable Diffusion 1.x or 2.x, offline.

        `miniai.sd.deduced_configs` says what is deduced and how; arguments and errors are those of `read_single_file`.
        What follows `config` is there for programs written for Diffusers: nothing is fetched, the name of the file says
        how it is read, and it has no safety checker.
        """
        check_place(device, torch_dtype)
        parts = read_single_file(file, torch_dtype, torch.device(device), tokenizer, vae, prediction_type, config)
        return cls(parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, parts.scheduler_config).packed()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write a model folder that `from_pretrained` loads, here and in Diffusers: safetensors, dtypes as they are;
        `variant` and `max_shard_size` as in `write_folder`.

        Raises UserError for another format, and if it cannot be written.
        """
        if not safe_serialization:
            raise UserError("only safetensors are written here: leave out safe_serialization=False")
        self._scale_lora(None)
        parts = Components(self.tokenizer, self.text_encoder, self.unet, self.vae, self.scheduler_config)
        write_folder(folder, parts, variant, max_shard_size)
