"""Where the weights of one part of a model folder stand: one file or several with an index, safetensors or pickled.

diffusion_pytorch_model.safetensors             one file; text encoders say "model" or, pickled, "pytorch_model"
diffusion_pytorch_model.safetensors.index.json  {"weight_map": {tensor: file}} for several
diffusion_pytorch_model.fp16.safetensors        a variant: the same weights, here in half precision
diffusion_pytorch_model.bin                     a pickle, read for its tensors alone
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.base.weights import is_safetensors, read_pickled_weights, read_weights

# The networks of a model, and the name that their weights bear as safetensors.
PARTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_BESIDE = re.compile(r"model_index\.json|(text_encoder|unet|vae|scheduler|tokenizer)/[^/]+\.(json|txt)")


def read_part(folder: Path, stem: str, variant: str | None, safetensors_only: bool) -> tuple[dict[str, Tensor], str]:
    """The tensors of the part in `folder`, and the file they come from; `stem` is the name that safetensors bear there.

    A part that lacks the `variant` is read without it, as Diffusers does. Raises UserError if there are none, or a file
    is damaged.
    """
    for path in _candidates(folder, stem, variant, safetensors_only):
        if path.is_file():
            return (_read_sharded(path) if path.suffix == ".json" else read_file(path)), str(path)
    wanted = folder / f"{stem}.safetensors"
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".safetensors", ".msgpack"))
    if not others:
        raise UserError(f"{wanted} is missing: check the path, or get the file again")
    name = others[0]
    parts = name.split(".")
    remedy = f"ask for variant '{parts[1]}'" if len(parts) == 3 else "save the model as safetensors"
    raise UserError(f"{wanted} is missing (there is {name}): {remedy}")


def has_variant(folder: Path, variant: str) -> bool:
    """Whether the weights of any part of the model in `folder` have a file of that variant."""
    return any(f".{variant}." in path.name for path in folder.glob("*/*"))


def files_to_fetch(names: Collection[str], variant: str | None) -> list[str]:
    """Of the `names` of all the files of a model, those that `read_part` would read of each of its networks, and what
    is no weights: not every form that the same weights are there in."""
    wanted = [name for name in names if _BESIDE.fullmatch(name) and ".index." not in name]
    for part, stem in PARTS.items():
        candidates = (path.as_posix() for path in _candidates(Path(part), stem, variant, False))
        first = next((name for name in candidates if name in names), None)
        if first is not None:
            wanted.append(first)
        if first is not None and first.endswith(".json"):  # of several files
            name, _, marks = first.removesuffix(".json").rpartition(".index")
            name, _, suffix = name.rpartition(".")
            wanted += [one for one in names if re.fullmatch(rf"{name}{marks}-\d+-of-\d+\.{suffix}", one)]
    return wanted


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by whatever name, or of a PyTorch checkpoint."""
    return read_weights(path) if is_safetensors(path) else read_pickled_weights(path)


def _candidates(folder: Path, stem: str, variant: str | None, safetensors_only: bool) -> list[Path]:
    """Every name the weights may have, the preferred ones first."""
    forms = [(stem, "safetensors")]
    if not safetensors_only:
        forms.append(("pytorch_model" if stem == "model" else stem, "bin"))
    names: list[str] = []
    for mark in [f".{variant}", ""] if variant else [""]:
        for name, suffix in forms:
            names += [f"{name}{mark}.{suffix}", f"{name}.{suffix}.index{mark}.json"]
    return [folder / name for name in names]


def _read_sharded(index_path: Path) -> dict[str, Tensor]:
    """The tensors that the index names, each from the file it names."""
    content: Any = read_json(index_path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index_path}: expected a weight_map, tensor to file; get the file again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise UserError(f"{index_path} points out of its folder, to {name!r}: get the file again")
        found = read_file(index_path.parent / name)
        missing = sorted(key for key, file in weight_map.items() if file == name and key not in found)
        if missing:
            raise UserError(f"{index_path.parent / name} lacks {missing[0]}, which its index promises: get it again")
        tensors |= {key: found[key] for key, file in weight_map.items() if file == name}
    return tensors
