"""Stable Diffusion 1.x and 2.x from one file in LDM's names (.safetensors, .ckpt): configs are deduced, see
`miniai.sd.deduced_configs`, and nothing is fetched. The tokenizer is not in such a file: it comes from elsewhere."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.weights import give_weights, is_safetensors, read_metadata, without_memory
from miniai.diffusion.schedule import PredictionType
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.added_tokens import AddedToken
from miniai.sd.deduced_configs import predicts, scheduler_config, text_config, unet_config, vae_config
from miniai.sd.folder import (
    SCHEDULER,
    SUPPORTED,
    VAE_WEIGHTS,
    Components,
    check_fit,
    read_scheduler,
    read_vae_folder,
)
from miniai.sd.hub import cached_snapshot, default_cache, find_model
from miniai.sd.ldm_names import CLIP, OPEN_CLIP, UNET, VAE, text_from_open_clip, under, unet_from_ldm, vae_from_ldm
from miniai.sd.tensor_names import text_encoder_names, vae_names
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.sd.weight_files import read_file

# Families by how the names of their tensors begin, after the prefix of the whole network.
_OTHERS = {
    "conditioner.embedders.": "SDXL",
    f"{UNET}label_emb.": "SDXL",
    f"{UNET}joint_blocks.": "Stable Diffusion 3",
    "joint_blocks.": "Stable Diffusion 3",
    f"{UNET}double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "control_model.": "ControlNet",
    "lora_unet_": "LoRA",
    "lora_te_": "LoRA",
}
# Whose tokenizer it is, if the local cache has one of them: CLIP's own, and the published Stable Diffusion folders.
_TOKENIZER_HOMES = (
    "openai/clip-vit-large-patch14",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base",
)

# Tensors that some files hold and painting does not need: of an autoencoder's training, and of CLIP's own comparison.
_TRAINING_ALONE = ("loss.", "model_ema.")
_BESIDE_PICTURES = {"text_projection.weight", "logit_scale"}

Module = TypeVar("Module", bound=nn.Module)


def read_single_file(
    path: str | os.PathLike[str],
    dtype: torch.dtype,
    device: torch.device,
    tokenizer: CLIPTokenizer | str | os.PathLike[str] | None = None,
    vae: AutoencoderKL | str | os.PathLike[str] | None = None,
    prediction_type: PredictionType | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Components:
    """Read a checkpoint; its weights come in `dtype` on `device`, in `eval` mode.

    - tokenizer: one, or the folder of one or of a model that has one; None looks through the local Hugging Face cache.
    - vae: one, or the file or folder of one, in the place of the file's own.
    - prediction_type: None is deduced, see `predicts`.
    - config: folder, or hub id in the local cache, of a model whose tokenizer and scheduler file are used, with
      everything that the other arguments leave open; its weights may be missing.

    Averaged weights (EMA) beside those that were trained are left alone, as is all else that painting does not need.
    Raises UserError for a file that is missing, damaged, of another family or not whole, and if there is no tokenizer.
    """
    path = Path(path)
    where = str(path)
    tensors = read_file(path)
    _check_family(tensors, where)
    is_2 = any(name.startswith(OPEN_CLIP) for name in tensors)
    unet = unet_from_ldm(under(UNET, tensors), where)
    text = text_from_open_clip(under(OPEN_CLIP, tensors)) if is_2 else text_encoder_names(under(CLIP, tensors))
    text = {name: tensor for name, tensor in text.items() if name not in _BESIDE_PICTURES}
    if not text:
        raise UserError(f"{where} has no text encoder ({CLIP}... or {OPEN_CLIP}...): get a file that is whole")
    notes = read_metadata(path) if is_safetensors(path) else {}
    home = None if config is None else find_model(config)
    schedule = None if home is None else read_scheduler(home / SCHEDULER)
    kind = prediction_type or (schedule or {}).get("prediction_type") or predicts(unet, is_2, tensors, notes)
    sample_size = 96 if is_2 and kind == "v_prediction" else 64
    tensors = under(VAE, tensors)  # whatever else there is goes, and each of the others when it is converted

    def make(build: Callable[[], Module], given: dict[str, Tensor]) -> Module:
        return _build(build, given, where, dtype, device)

    components = Components(
        tokenizer=find_tokenizer(home if tokenizer is None else tokenizer, pads_with_first=is_2),
        text_encoder=make(lambda: CLIPTextModel(text_config(text, "gelu" if is_2 else "quick_gelu", where)), text),
        unet=make(lambda: UNet2DConditionModel(unet_config(unet, sample_size, where)), unet),
        vae=_choose_vae(vae, tensors, where, dtype, device),
        scheduler_config={**schedule, "prediction_type": kind} if schedule else scheduler_config(kind, is_2),
    )
    check_fit(where, components)
    return components


def read_vae(path: str | os.PathLike[str], dtype: torch.dtype, device: torch.device) -> AutoencoderKL:
    """An autoencoder alone: a Diffusers folder of one or of a model, or a file in LDM's or Diffusers' names."""
    path = Path(path)
    if path.is_dir():
        inner = path / Path(VAE_WEIGHTS).parent
        return read_vae_folder(inner if inner.is_dir() else path, dtype, device)
    tensors = read_file(path)
    return _vae_from(under(VAE, tensors) or tensors, str(path), dtype, device)


def find_tokenizer(tokenizer: CLIPTokenizer | str | os.PathLike[str] | None, pads_with_first: bool) -> CLIPTokenizer:
    """The tokenizer given, or that of a folder, or one from the local cache.

    `pads_with_first`: with the vocabulary's first token, "!", as the folders of Stable Diffusion 2.x have it.
    Raises UserError if there is none.
    """
    if tokenizer is None:
        tokenizer = _cached_tokenizer()
    if not isinstance(tokenizer, CLIPTokenizer):
        folder = Path(tokenizer)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    if pads_with_first and tokenizer.vocab.get("!") == 0 and tokenizer.pad_id != 0:
        added = tokenizer.added
        added = replace(added, ids=added.ids | {"!": 0}, tokens=added.tokens | {"!": AddedToken("!")}, pad="!")
        return tokenizer.with_added(added)
    return tokenizer


def _cached_tokenizer() -> Path:
    for hub_id in _TOKENIZER_HOMES:
        snapshot = cached_snapshot(default_cache(), hub_id, "main")
        for folder in (snapshot, snapshot / "tokenizer") if snapshot else ():
            if (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file():
                return folder
    raise UserError(
        "the file has no tokenizer, and the local Hugging Face cache none of CLIP's: give tokenizer=FOLDER, with "
        "CLIP's vocab.json and merges.txt, as the folder of any Stable Diffusion model has it"
    )


def _choose_vae(
    vae: AutoencoderKL | str | os.PathLike[str] | None,
    own: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
) -> AutoencoderKL:
    if vae is not None:
        return vae.to(device, dtype).eval() if isinstance(vae, AutoencoderKL) else read_vae(vae, dtype, device)
    if not own:
        raise UserError(f"{where} has no autoencoder ({VAE}...): give one, vae=FILE or FOLDER")
    return _vae_from(own, where, dtype, device)


def _vae_from(tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype, device: torch.device) -> AutoencoderKL:
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING_ALONE)}
    renamed = vae_names(vae_from_ldm(own))
    return _build(lambda: AutoencoderKL(vae_config(renamed, where)), renamed, where, dtype, device)


def _build(
    build: Callable[[], Module], tensors: dict[str, Tensor], where: str, dtype: torch.dtype, device: torch.device
) -> Module:
    """A module of the deduced shape, filled. Shapes that fit no network at all are the file's fault."""
    try:
        with without_memory():
            module = build()
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} has tensors that fit no Stable Diffusion model ({reason}): get it again") from error
    give_weights(module, tensors, where, dtype, device, against="a Stable Diffusion model")
    return module.eval()


def _check_family(tensors: Mapping[str, Any], where: str) -> None:
    for start, family in _OTHERS.items():
        if any(name.startswith(start) for name in tensors):
            raise UserError(f"{where} is of the {family} family: {SUPPORTED}")
    if not any(name.startswith(UNET) for name in tensors):
        raise UserError(f"{where} has no U-Net in LDM's names ({UNET}...): it is no Stable Diffusion checkpoint")
