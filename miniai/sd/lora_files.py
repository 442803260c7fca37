"""LoRA files as they are in use: the names of kohya-ss' scripts (which A1111 reads), of PEFT, and of Diffusers' years.

kohya       lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha; also in LDM's names
            (lora_unet_input_blocks_1_1_proj_in); lora_te_text_model_encoder_layers_0_mlp_fc1
PEFT        unet.down_blocks.0.attentions.0.proj_in.lora_A.weight, .lora_B.weight; text_encoder.text_model…; the whole
            may begin with base_model.model.
Diffusers   unet.….attn1.to_q.lora.down.weight; unet.….attn1.processor.to_q_lora.down.weight;
            text_encoder.….q_proj.lora_linear_layer.down.weight, .to_q_lora.down.weight
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.base.weights import is_safetensors, read_metadata, write_weights
from miniai.nn.clip import CLIPTextModel
from miniai.nn.low_rank import LowRank
from miniai.nn.packed import read_weight
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.hub import find_model
from miniai.sd.ldm_names import ldm_names_of_unet
from miniai.sd.weight_files import read_file

UNET, TEXT = "unet", "text_encoder"
PARTS = (UNET, TEXT)
_KOHYA = {UNET: "lora_unet_", TEXT: "lora_te_"}
# What a folder's file is called, the likeliest first: by Diffusers, by PEFT.
_NAMES = ("pytorch_lora_weights", "adapter_model")
_FILES = ("*.safetensors", "*.bin", "*.pt", "adapter_config.json")  # of a model on the hub
_ROLES = {
    r"\.lora_down\.weight": "down",
    r"\.lora_up\.weight": "up",
    r"\.lora_mid\.weight": "mid",
    r"\.alpha": "alpha",
    r"\.lora_A(?:\.default)?\.weight": "down",
    r"\.lora_B(?:\.default)?\.weight": "up",
    r"(?:_lora|\.lora|\.lora_linear_layer)\.down\.weight": "down",
    r"(?:_lora|\.lora|\.lora_linear_layer)\.up\.weight": "up",
}
_ROLE = re.compile("(.*?)(?:" + "|".join(f"({suffix})" for suffix in _ROLES) + ")")
# Other ways to change weights, and other models, by what gives them away in a tensor's name.
_OTHERS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    ".hada_": "a LoHa",
    ".lokr_": "a LoKr",
    ".oft_": "an OFT",
    ".diff": "a full difference",
    "lora_te2_": "for SDXL",
    "text_encoder_2.": "for SDXL",
    "double_blocks": "for Flux",
    "transformer.single_": "for Flux",
    "joint_blocks": "for Stable Diffusion 3",
}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class LoraFile:
    """Tensors as they are named, the file they come from, and what it says of alpha beside them."""

    tensors: Mapping[str, Tensor]
    where: str
    stem: str | None = None
    notes: Mapping[str, Any] | None = None  # PEFT's config, for each part behind its name and a dot


def find_lora(
    source: str | os.PathLike[str] | Mapping[str, Tensor], weight_name: str | None = None, **hub: Any
) -> LoraFile:
    """Read a file, a folder with one, or a hub id in the local cache; or take tensors that are there already.

    `weight_name` says which file of a folder; `hub` is what `find_model` takes. Raises UserError if there is none, if a
    folder has several and none has a name that says it is the one, or if it is damaged.
    """
    if isinstance(source, Mapping):
        return LoraFile(source, "the given tensors")
    path = find_model(source, files=[weight_name] if weight_name else _FILES, **hub)
    if path.is_dir():
        path = path / weight_name if weight_name is not None else _only_file(path)
    if not path.is_file():
        raise UserError(f"there is no LoRA {path}: check the path")
    return LoraFile(read_file(path), str(path), path.stem, _notes(path))


def read_lora(file: LoraFile, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> dict[str, dict[str, LowRank]]:
    """Which layers of each of PARTS a file changes, and how.

    Raises UserError, naming file and tensor, for one that is of another kind or model, not whole, or not finite.
    """
    layers = layer_names(unet, text_encoder)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in file.tensors.items():
        path, role = _parse(name, file.where)
        place = layers.get(_canonical(path))
        if place is None:
            raise UserError(f"{file.where} changes {path}, which this model lacks: it is for another model")
        found.setdefault(place, {})[role] = tensor
    if not found:
        raise UserError(f"{file.where} is empty: get the file again")
    changes: dict[str, dict[str, LowRank]] = {}
    for (part, layer), tensors in found.items():
        network = unet if part == UNET else text_encoder
        weight = read_weight(network.get_submodule(layer))
        changes.setdefault(part, {})[layer] = _change(file, f"{part}.{layer}", tensors, weight)
    return changes


def layer_names(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> dict[str, tuple[str, str]]:
    """Every name that a layer goes by -> (part, its name there)."""
    names: dict[str, tuple[str, str]] = {}
    for name in _layers(unet):
        ldm = ldm_names_of_unet(name, unet.config.layers_per_block)
        flat = {f"{_KOHYA[UNET]}{one.replace('.', '_')}" for one in (name, *ldm)}
        names |= dict.fromkeys({name, f"{UNET}.{name}", *flat}, (UNET, name))
    for name in _layers(text_encoder):
        for own in (name, name.removeprefix("text_model.")):  # transformers 5 leaves it out
            flat = {f"{start}{own.replace('.', '_')}" for start in (_KOHYA[TEXT], "lora_te1_")}
            names |= dict.fromkeys({own, f"{TEXT}.{own}", *flat}, (TEXT, name))
    return names


def _layers(network: nn.Module) -> list[str]:
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _parse(name: str, where: str) -> tuple[str, str]:
    """(what is changed, the tensor's role in it)."""
    for mark, kind in _OTHERS.items():
        if mark in name:
            raise UserError(f"{where} is {kind} ({name}): miniai reads LoRA and LoCon for Stable Diffusion 1.x and 2.x")
    match = _ROLE.fullmatch(name)
    if match is None:
        raise UserError(f"{where} has {name}, which is no part of a LoRA: get another file")
    role = next(role for role, group in zip(_ROLES.values(), match.groups()[1:], strict=True) if group)
    return match[1], role


def _canonical(path: str) -> str:
    """A path by the name that the layer has today, but for its part and for kohya's underscores."""
    path = path.removeprefix("base_model.model.").replace(".processor.", ".")
    if old := re.fullmatch(r"(.*\.self_attn\.)(to_q|to_k|to_v|to_out)", path):
        return old[1] + _OLD_TEXT[old[2]]
    return f"{path}.0" if path.endswith(".to_out") else path


def _change(file: LoraFile, layer: str, tensors: Mapping[str, Tensor], weight: Tensor) -> LowRank:
    missing = [role for role in ("down", "up") if role not in tensors]
    if missing:
        raise UserError(f"{file.where} lacks the {missing[0]} matrix of {layer}: get the file again")
    change = LowRank(tensors["down"], tensors["up"], mid=tensors.get("mid"))
    if not all(tensor.is_floating_point() for role, tensor in tensors.items() if role != "alpha"):
        raise UserError(f"{file.where} holds other than fractions ({layer}): get the file again")
    if not change.fits(weight):
        sizes = f"{tuple(change.up.shape)} and {tuple(change.down.shape)}"
        raise UserError(
            f"{file.where} changes {layer} by {sizes}, whose weight has shape {tuple(weight.shape)}: it is for another "
            "model"
        )
    if "alpha" in tensors and tensors["alpha"].numel() != 1:
        raise UserError(f"{file.where}: alpha of {layer} is no single number: get the file again")
    scale = tensors["alpha"].item() / change.rank if "alpha" in tensors else _noted_scale(file, layer, change.rank)
    if not all(tensor.float().isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{file.where} holds numbers that are not finite ({layer}): get the file again")
    return replace(change, scale=float(scale))


def _noted_scale(file: LoraFile, layer: str, rank: int) -> float:
    """What PEFT's config says; without one, 1."""
    part, name = layer.split(".", 1)
    notes = {key.removeprefix(f"{part}."): value for key, value in (file.notes or {}).items()
             if key.startswith(f"{part}.")}  # fmt: skip
    if notes.get("use_dora"):
        raise UserError(f"{file.where} is a DoRA: miniai reads LoRA and LoCon")
    try:
        alpha = notes.get("lora_alpha", rank)
        for pattern, own in (notes.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", name):
                alpha = own
                break
        scale = alpha / (rank**0.5 if notes.get("use_rslora") else rank)
        if not math.isfinite(scale):
            raise ValueError(f"alpha {alpha}")
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"{file.where}: what it says of alpha cannot be read ({error}): get the file again") from error
    return scale


def _notes(path: Path) -> dict[str, Any]:
    """PEFT's config, which Diffusers writes into the file's header, and PEFT itself beside the file."""
    beside = path.parent / "adapter_config.json"
    if path.stem == "adapter_model" and beside.is_file():
        config = read_json(beside)
        return {f"{part}.{key}": value for part in PARTS for key, value in _object(config, beside).items()}
    if not is_safetensors(path):
        return {}
    try:
        return _object(json.loads(read_metadata(path).get("lora_adapter_metadata", "{}")), path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its lora_adapter_metadata is no JSON: get the file again") from error


def _object(values: Any, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object of PEFT's settings; get the file again")
    return values


def _only_file(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt"))
    for name in _NAMES:
        for path in files[::-1]:  # safetensors rather than pickles
            if path.stem == name:
                return path
    if len(files) == 1:
        return files[0]
    some = "no file of weights" if not files else f"{len(files)} files of weights"
    raise UserError(f"{folder} has {some}: name the LoRA's file")


def write_lora(path: str | os.PathLike[str], changes: Mapping[str, Mapping[str, LowRank]]) -> None:
    """Write the changes of each of PARTS in the names of kohya-ss' scripts, which Diffusers and other programs read."""
    tensors: dict[str, Tensor] = {}
    for part, of_part in changes.items():
        for layer, change in of_part.items():
            name = f"{_KOHYA[part]}{layer.replace('.', '_')}"
            up = change.up[:, :, None, None] if change.down.ndim == 4 and change.up.ndim == 2 else change.up
            tensors[f"{name}.lora_down.weight"] = change.down.contiguous()
            tensors[f"{name}.lora_up.weight"] = up.contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(change.scale * change.rank)
            if change.mid is not None:
                tensors[f"{name}.lora_mid.weight"] = change.mid.contiguous()
    write_weights(path, tensors)
