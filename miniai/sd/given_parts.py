"""Parts of a pipeline that the caller has already: ours, or made of those of Diffusers and transformers."""

import os
import tempfile
from typing import Any

import torch
from torch import nn

from miniai.base.errors import UserError
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.sd.single_file import read_vae
from miniai.sd.tensor_names import text_encoder_names
from miniai.sd.tokenizer import CLIPTokenizer


def given_parts(
    tokenizer: Any, text_encoder: Any, unet: Any, vae: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Those that are not None, by their names; networks in `dtype` on `device`, in `eval` mode. Networks of other
    libraries are copied.

    - tokenizer: ours, a folder with its files, or one of transformers.
    - text_encoder, unet: ours, transformers' CLIPTextModel, Diffusers' UNet2DConditionModel.
    - vae: ours, the file or folder of one, or Diffusers' AutoencoderKL.

    Raises UserError for anything else, and as reading them does.
    """
    parts: dict[str, Any] = {}
    if tokenizer is not None:
        parts["tokenizer"] = _tokenizer(tokenizer)
    if text_encoder is not None:
        parts["text_encoder"] = _text_encoder(text_encoder)
    if unet is not None:
        parts["unet"] = _unet(unet)
    if isinstance(vae, str | os.PathLike):
        vae = read_vae(vae, dtype, device)
    if vae is not None:
        parts["vae"] = _vae(vae)
    return {
        name: part.to(device, dtype).eval() if isinstance(part, nn.Module) else part for name, part in parts.items()
    }


def _tokenizer(given: Any) -> CLIPTokenizer:
    if isinstance(given, CLIPTokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return CLIPTokenizer.from_pretrained(given)
    if not type(given).__name__.startswith("CLIPTokenizer") or not hasattr(given, "save_pretrained"):
        raise UserError(f"tokenizer is {type(given).__name__}: give a CLIPTokenizer, or the folder of one")
    with tempfile.TemporaryDirectory() as folder:
        given.save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)


def _text_encoder(given: Any) -> CLIPTextModel:
    if isinstance(given, CLIPTextModel):
        return given
    _check_class("text_encoder", given, "CLIPTextModel")
    ours = CLIPTextModel(CLIPTextConfig.from_dict(given.config.to_dict(), "text_encoder"))
    ours.load_state_dict(text_encoder_names(given.state_dict()))
    return ours


def _unet(given: Any) -> UNet2DConditionModel:
    if isinstance(given, UNet2DConditionModel):
        return given
    _check_class("unet", given, "UNet2DConditionModel")
    ours = UNet2DConditionModel(UNetConfig.from_dict(dict(given.config), "unet"))
    ours.load_state_dict(given.state_dict())
    return ours


def _vae(given: Any) -> AutoencoderKL:
    if isinstance(given, AutoencoderKL):
        return given
    _check_class("vae", given, "AutoencoderKL", ", or the file or folder of one")
    ours = AutoencoderKL(VAEConfig.from_dict(dict(given.config), "vae"))
    ours.load_state_dict(given.state_dict())
    return ours


def _check_class(part: str, given: Any, wanted: str, otherwise: str = "") -> None:
    """Raise UserError for what is not a network of that class, whoever's."""
    if not isinstance(given, nn.Module) or type(given).__name__ != wanted:
        article = "an" if wanted[0] in "AEIOU" and not wanted.startswith("U") else "a"
        raise UserError(f"{part} is {type(given).__name__}: give {article} {wanted}{otherwise}")
