"""Parts of a pipeline that the caller has already: ours, or made of those of Diffusers and transformers."""

import os
import tempfile
from typing import Any

import torch
from torch import nn

from miniai.base.errors import UserError
from miniai.base.weights import give_weights, without_memory
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.sd.placement import is_already
from miniai.sd.single_file import read_vae
from miniai.sd.tensor_names import text_encoder_names
from miniai.sd.tokenizer import CLIPTokenizer


def given_parts(
    tokenizer: Any, text_encoder: Any, unet: Any, vae: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Those that are not None, by their names, networks in `dtype` on `device`.

    - tokenizer: ours, a folder with its files, or one of transformers.
    - text_encoder, unet: ours, transformers' CLIPTextModel, Diffusers' UNet2DConditionModel.
    - vae: ours, the file or folder of one, or Diffusers' AutoencoderKL.

    A network of ours that is as it should be already is taken itself; any other is copied, in `eval` mode, and stays as
    it was. Raises UserError for anything else, and as reading them does.
    """
    parts: dict[str, Any] = {}
    if tokenizer is not None:
        parts["tokenizer"] = _tokenizer(tokenizer)
    if isinstance(vae, str | os.PathLike):
        vae = read_vae(vae, dtype, device)
    networks = {"text_encoder": text_encoder, "unet": unet, "vae": vae}
    return parts | {name: _network(name, one, dtype, device) for name, one in networks.items() if one is not None}


def _network(name: str, given: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    kinds: dict[str, tuple[Any, Any, str]] = {
        "text_encoder": (CLIPTextModel, CLIPTextConfig, "a CLIPTextModel"),
        "unet": (UNet2DConditionModel, UNetConfig, "a UNet2DConditionModel"),
        "vae": (AutoencoderKL, VAEConfig, "an AutoencoderKL, or the file or folder of one"),
    }
    ours, config_class, wanted = kinds[name]
    if isinstance(given, ours):
        if is_already(given, dtype) and is_already(given, device):
            return given
        config = given.config
    elif isinstance(given, nn.Module) and type(given).__name__ == ours.__name__:
        theirs: Any = given.config
        config = config_class.from_dict(theirs.to_dict() if name == "text_encoder" else dict(theirs), name)
    else:
        raise UserError(f"{name} is {type(given).__name__}: give {wanted}")
    with without_memory():
        network: nn.Module = ours(config)
    tensors = {key: tensor.detach() for key, tensor in given.state_dict().items()}
    tensors = text_encoder_names(tensors) if name == "text_encoder" else tensors
    give_weights(network, {key: tensor.clone() for key, tensor in tensors.items()}, name, dtype, device, "its config")
    return network.eval()


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
