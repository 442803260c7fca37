"""Where the weights of one part of a model folder stand: one file or several with an index, safetensors or pickled.
Only safetensors are written.

diffusion_pytorch_model.safetensors             one file; text encoders say "model" or, pickled, "pytorch_model"
diffusion_pytorch_model.safetensors.index.json  {"weight_map": {tensor: file}} for several
diffusion_pytorch_model.fp16.safetensors        a variant: the same weights, here in half precision
diffusion_pytorch_model.bin                     a pickle, read for its tensors alone
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.weights import is_safetensors, read_pickled_weights, read_weights, write_weights

# The networks of a model, and the name that their weights bear as safetensors.
PARTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{mark}B": base**power
    for power, prefix in enumerate("KMGT", 1)
    for mark, base in (("", 1000), ("I", 1024))
}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})", re.IGNORECASE)
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


def write_part(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], variant: str | None = None, shard_bytes: int | None = None
) -> None:
    """Write the tensors of a part as one safetensors file or, if they are more than `shard_bytes`, as several with an
    index; then remove what stood there by this name and variant in the other form, so that it is not read instead.
    Other variants, and pickles, stay."""
    mark = f".{variant}" if variant else ""
    shards = split(tensors, shard_bytes)
    single, index = folder / f"{stem}{mark}.safetensors", folder / f"{stem}.safetensors.index{mark}.json"
    names = [f"{stem}{mark}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    a_shard = re.compile(re.escape(f"{stem}{mark}") + r"-\d{5}-of-\d{5}\.safetensors")
    before = {path for path in folder.iterdir() if a_shard.fullmatch(path.name)}
    if len(shards) == 1:
        write_weights(single, tensors)
        before.add(index)
    else:
        for name, shard in zip(names, shards, strict=True):
            write_weights(folder / name, {key: tensors[key] for key in shard})
        whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(index, {"metadata": {"total_size": whole}, "weight_map": weight_map})
        before = (before | {single}) - {folder / name for name in names}
    for path in before:
        path.unlink(missing_ok=True)


def split(tensors: Mapping[str, Tensor], shard_bytes: int | None) -> list[list[str]]:
    """Their names in order, in groups of at most so many bytes, or of one tensor.

    >>> import torch
    >>> split({"a": torch.zeros(3), "b": torch.zeros(1), "c": torch.zeros(9), "d": torch.zeros(2)}, 16)
    [['a', 'b'], ['c'], ['d']]
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        more = tensor.numel() * tensor.element_size()
        if groups[-1] and shard_bytes is not None and size + more > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
    return groups


def read_size(size: int | str) -> int:
    """A number of bytes: as it is, or as text such as "200MB" (10^6 of them) or "5GiB" (2^30).

    Raises UserError for what is none.

    >>> read_size("5GB"), read_size("1.5 KiB"), read_size(10)
    (5000000000, 1536, 10)
    """
    found = _SIZE.fullmatch(str(size))
    n_bytes = 0 if found is None else int(float(found[1]) * _UNITS[found[2].upper()])
    if n_bytes < 1:
        raise UserError(f"max_shard_size {size!r} is not possible: give a number of bytes, or a text such as '5GB'")
    return n_bytes


def check_variant(variant: str | None) -> None:
    """Raise UserError for what cannot stand between two dots of a file's name."""
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", variant):
        raise UserError(f"variant {variant!r} is not possible: give letters and digits, such as 'fp16'")


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
