"""A model's folder in the layout of Diffusers: read with every doubt an error, written so that Diffusers loads it.

model_index.json   which class each part is of
tokenizer/         vocab.json, merges.txt, tokenizer_config.json
text_encoder/      config.json, model.safetensors
unet/, vae/        config.json, diffusion_pytorch_model.safetensors; for other names see `miniai.sd.weight_files`
scheduler/         scheduler_config.json
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from miniai.base.configs import config_to_dict
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.weights import give_weights, without_memory
from miniai.diffusion.sampling import SAMPLERS, schedule_config
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.sd.tensor_names import text_encoder_names, vae_names
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.sd.weight_files import PARTS, check_variant, has_variant, read_part, read_size, write_part

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"

PIPELINE_CLASS, INPAINT_CLASS = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
PIPELINE_CLASSES = (PIPELINE_CLASS, INPAINT_CLASS, "StableDiffusionImg2ImgPipeline")
# Part -> the classes that miniai can stand in for. Any scheduler will do: only its noise schedule is read.
PART_CLASSES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
# How the classes of other families begin: none of them would paint here.
OTHER_FAMILIES = {"StableDiffusionXL": "SDXL", "StableDiffusion3": "Stable Diffusion 3", "Flux": "Flux"}
DIFFUSERS_VERSION = "0.35.0"  # the oldest release that the tests have loaded our folders with

SUPPORTED = "miniai runs Stable Diffusion 1.x and 2.x"

Module = TypeVar("Module", bound=nn.Module)
Names = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Components:
    """The parts of a Stable Diffusion model. `scheduler_config` is the content of scheduler_config.json."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]


def read_folder(
    folder: str | os.PathLike[str],
    dtype: torch.dtype,
    device: torch.device,
    variant: str | None = None,
    safetensors_only: bool = False,
    given: Mapping[str, Any] | None = None,
) -> Components:
    """Read a model folder; its weights come in `dtype` on `device`, in `eval` mode. Parts that are `given`, by their
    names, are not read.

    `variant` ("fp16") is preferred where a part has it, and one at least must. Parts that miniai has no use for, such
    as a safety checker, are left alone.
    Raises UserError, naming file, cause and remedy, for anything missing, damaged, of another class or not fitting.
    """
    folder = Path(folder)
    _check_index(folder)
    if variant is not None and not has_variant(folder, variant):
        raise UserError(f"{folder} has no weights of variant {variant!r}: leave the variant out")

    given = given or {}

    def read_module(weights: str, build: Callable[[dict[str, Any], str], Module], rename: Names = dict) -> Module:
        part, stem = folder / Path(weights).parent, Path(weights).stem
        if part.name in given:
            return given[part.name]
        module = _build(part / "config.json", build)
        return _fill(module, lambda: read_part(part, stem, variant, safetensors_only), rename, dtype, device)

    components = Components(
        tokenizer=given.get("tokenizer") or CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=read_module(
            TEXT_WEIGHTS, lambda *c: CLIPTextModel(CLIPTextConfig.from_dict(*c)), text_encoder_names
        ),
        unet=read_module(UNET_WEIGHTS, lambda *c: UNet2DConditionModel(UNetConfig.from_dict(*c))),
        vae=read_module(VAE_WEIGHTS, lambda *c: AutoencoderKL(VAEConfig.from_dict(*c)), vae_names),
        scheduler_config=read_scheduler(folder / SCHEDULER),
    )
    check_fit(str(folder), components)
    return components


def read_vae_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> AutoencoderKL:
    """An autoencoder alone, from the folder with its config.json."""
    module = _build(folder / "config.json", lambda *c: AutoencoderKL(VAEConfig.from_dict(*c)))
    return _fill(module, lambda: read_part(folder, Path(VAE_WEIGHTS).stem, None, False), vae_names, dtype, device)


def write_folder(
    folder: str | os.PathLike[str],
    components: Components,
    variant: str | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a model folder that `read_folder` and `diffusers.StableDiffusionPipeline.from_pretrained` load.

    - variant: a name such as "fp16", which the weights' files then bear; dtypes are as they are.
    - max_shard_size: weights of more bytes, a number or a text such as "5GB", go into several files.

    Each file appears whole or not at all, and model_index.json last: without it the folder is seen to be incomplete. An
    older one is removed first.
    """
    folder = Path(folder)
    check_variant(variant)
    shard_bytes = None if max_shard_size is None else read_size(max_shard_size)
    parts = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    for part in parts:
        make_folder(folder / part)
    (folder / INDEX).unlink(missing_ok=True)
    components.tokenizer.save_pretrained(folder / "tokenizer")
    text_notes = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    modules: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("text_encoder", components.text_encoder, text_notes),
        ("unet", components.unet, _class_note("UNet2DConditionModel")),
        ("vae", components.vae, _class_note("AutoencoderKL")),
    )
    for part, module, notes in modules:
        write_json(folder / part / "config.json", notes | config_to_dict(module.config))
        write_part(folder / part, PARTS[part], module.state_dict(), variant, shard_bytes)
    # Diffusers notes in memory, and not in files, which values are a class's defaults.
    scheduler = {k: v for k, v in components.scheduler_config.items() if k != "_use_default_values"}
    write_json(folder / SCHEDULER, scheduler)
    write_json(folder / INDEX, _index(components))


def _check_index(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder of a model, or read the file with from_single_file")
    if not folder.is_dir():
        what = "file" if folder.suffix in (".safetensors", ".ckpt", ".pt", ".bin") else "folder"
        raise UserError(
            f"there is no {what} {folder}: check the path, or the hub id (owner/name), or train a model: "
            "'miniai train text-to-image'"
        )
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {INDEX}: it is not a model folder in the Diffusers layout, or not complete")
    index = _read_object(folder / INDEX)
    found = index.get("_class_name")
    for start, family in OTHER_FAMILIES.items():
        if str(found).startswith(start):
            raise UserError(f"{folder / INDEX} says {found}, a model of the {family} family: {SUPPORTED}")
    if found not in PIPELINE_CLASSES:
        raise UserError(f"{folder / INDEX} says {found}: {SUPPORTED}, class {PIPELINE_CLASS}")
    for part, classes in PART_CLASSES.items():
        entry = index.get(part)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if name not in classes:
            raise UserError(f"{folder / INDEX} says that {part} is a {name}: miniai reads {' or '.join(classes)}")


def _build(config_path: Path, build: Callable[[dict[str, Any], str], Module]) -> Module:
    """A part as its config.json says, without memory."""
    values = _read_object(config_path)
    try:
        with without_memory():
            return build(values, str(config_path))
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{config_path} describes a model that cannot be built ({reason}): correct it") from error


def _fill(
    module: Module,
    read: Callable[[], tuple[dict[str, Tensor], str]],
    rename: Names,
    dtype: torch.dtype,
    device: torch.device,
) -> Module:
    """`read` and not what it returns: nobody else then holds a tensor that is converted."""
    tensors, where = read()
    tensors = rename(tensors)
    give_weights(module, tensors, where, dtype, device)
    return module.eval()


def read_scheduler(path: Path) -> dict[str, Any]:
    """The raw content, since each sampler has its own defaults for missing keys; checked with those of one of them."""
    values = _read_object(path)
    schedule_config(values, SAMPLERS["ddim"], str(path))
    return values


def _read_object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; get the file again")
    return values


def check_fit(where: str, parts: Components) -> None:
    """Each part may be whole by itself and still not belong to the others: then raise UserError, naming `where`."""
    text, unet, vae = parts.text_encoder.config, parts.unet.config, parts.vae.config
    n_tokens, window = len(parts.tokenizer), parts.tokenizer.model_max_length
    channels, latent = (unet.in_channels, unet.out_channels), vae.latent_channels
    claims = [
        (n_tokens <= text.vocab_size, f"the tokenizer has {n_tokens} tokens, the text encoder {text.vocab_size}"),
        (
            window <= text.max_position_embeddings,
            f"the tokenizer's window is {window} tokens, the text encoder's {text.max_position_embeddings}",
        ),
        (
            unet.cross_attention_dim == text.hidden_size,
            f"the unet reads text of width {unet.cross_attention_dim}, the text encoder writes {text.hidden_size}",
        ),
        (
            channels in ((latent, latent), (2 * latent + 1, latent)),  # the second: inpainting models
            f"the unet has {channels[0]} channels in and {channels[1]} out, the vae's latents {latent}",
        ),
    ]
    for holds, how in claims:
        if not holds:
            raise UserError(f"{where}: the parts do not belong together ({how}): get it again")


def _class_note(name: str) -> dict[str, Any]:
    return {"_class_name": name, "_diffusers_version": DIFFUSERS_VERSION}


def _index(parts: Components) -> dict[str, Any]:
    inpaints = parts.unet.config.in_channels > parts.vae.config.latent_channels
    return _class_note(INPAINT_CLASS if inpaints else PIPELINE_CLASS) | {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", parts.scheduler_config.get("_class_name", "DDIMScheduler")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
