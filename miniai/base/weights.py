"""Weights in files: read with every doubt an error, written whole or not at all, loaded strictly."""

import ctypes
import json
import math
import mmap
import os
import struct
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from miniai.base.errors import UserError
from miniai.base.files import atomic_file

# The safetensors format's own names: https://github.com/huggingface/safetensors#format
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# In torch.nn.init and among the methods of tensors
_INITIALISERS = {
    *("normal_", "uniform_", "trunc_normal_", "constant_", "ones_", "zeros_", "fill_", "zero_"),
    *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_"),
}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, mapped from the file rather than copied. Each takes memory only
    from when it is read until it is let go of, whatever becomes of the others.

    Raises UserError if the file is missing, unreadable, truncated, a git-LFS pointer, a web page, a pickle, has two
    tensors of one name, or is otherwise not safetensors. Nothing in the file is ever executed.
    """
    header = _check_header(path)
    try:
        with safetensors.safe_open(path, framework="pt") as checked, open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            start = 8 + struct.unpack("<Q", memory[:8])[0]
            return {name: _mapped(memory, start, header[name], checked, name) for name in checked.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{path} is not a valid safetensors file ({error}): get the file again") from error


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """By its suffix, or, whatever it is called, by how it begins: the length of a JSON object, and its brace."""
    if str(path).lower().endswith(".safetensors"):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < os.path.getsize(path)


def _mapped(memory: mmap.mmap, start: int, entry: dict[str, Any], checked: Any, name: str) -> Tensor:
    """One tensor of a file that is mapped whole; pages that belong to it alone go back when it is let go of."""
    dtype = _DTYPES_BY_NAME.get(entry["dtype"])
    begin, end = (start + offset for offset in entry["data_offsets"])
    if dtype is None or begin == end or begin % dtype.itemsize:
        return checked.get_tensor(name)
    numbers = (ctypes.c_char * (end - begin)).from_buffer(memory, begin)
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and hasattr(memory, "madvise"):
        weakref.finalize(numbers, memory.madvise, mmap.MADV_DONTNEED, first, last - first).atexit = False
    return torch.frombuffer(numbers, dtype=dtype, count=math.prod(entry["shape"])).view(entry["shape"])


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The free text entries of a safetensors file's header. Raises UserError as `read_weights` does."""
    return _check_header(path).get("__metadata__", {})


def read_pickled_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint (.bin, .pt, .ckpt), on the CPU, mapped from the file where its form allows.

    Where a training state holds them under `state_dict`, only they are returned. Raises UserError as `read_pickled`
    does, and if the file holds anything else.
    """
    content = read_pickled(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {name: value for name, value in content["state_dict"].items() if isinstance(value, Tensor)}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} is not a dictionary of tensors: get the weights as safetensors")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"{path} holds {others[0]}, which is no tensor: get the weights as safetensors")
    return content


def read_pickled(path: str | os.PathLike[str]) -> Any:
    """What a file of `torch.save` holds: tensors, and plain values around them.

    Only these are unpickled, by torch's own restricted reader; a file that needs more is refused unread.
    Raises UserError if the file is missing, damaged, a git-LFS pointer, a web page, or holds anything else.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise UserError(f"{path} needs torch 2.10, whose restricted reader is safe: this is {torch.__version__}")
    try:
        with open(path, "rb") as file:
            _refuse_what_is_no_weights(path, file.read(512))
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path, or get the file again") from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).lower()
        if any(phrase in reason for phrase in ("unsupported global", "unsupported class", "unrecognized function")):
            cause = "it holds more than tensors, which could run code: get the weights as safetensors"
        else:
            cause = "it is damaged or no PyTorch checkpoint: get the file again"
        raise UserError(f"cannot read {path}: {cause}") from error


def _check_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the header and find what is wrong with a file in words that say what to do about it."""
    try:
        n_bytes = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(512)
            _refuse_other_formats(path, start)
            n_header_bytes = struct.unpack("<Q", start[:8])[0]
            if n_header_bytes > MAX_HEADER_BYTES:
                raise UserError(f"{path} is not a safetensors file: get the weights in that format")
            if 8 + n_header_bytes > n_bytes:
                raise UserError(f"{path} is truncated inside its header: download or copy the file again")
            file.seek(8)
            text = file.read(n_header_bytes)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path, or get the file again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}; check the path") from error
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        n_promised_bytes = 8 + n_header_bytes + max(ends, default=0)
    except KeyError as error:
        raise UserError(f"{path} has two entries named {error}, or one cut short: get the file again") from error
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path} is not a safetensors file (bad header): get the weights in that format") from error
    if n_bytes < n_promised_bytes:
        raise UserError(
            f"{path} is truncated ({n_bytes:,} of {n_promised_bytes:,} bytes): download or copy the file again"
        )
    return header


def _refuse_what_is_no_weights(path: str | os.PathLike[str], start: bytes) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a git-LFS pointer, not the weights: run 'git lfs pull' in its repository")
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not weights: the download failed, get the file itself")


def _refuse_other_formats(path: str | os.PathLike[str], start: bytes) -> None:
    _refuse_what_is_no_weights(path, start)
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")) and start[8:9] != b"{":
        raise UserError(f"{path} is a pickled checkpoint, not safetensors: get the weights in that format")
    if len(start) < 8:
        raise UserError(f"{path} is truncated ({len(start)} bytes): download or copy the file again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON readers keep the last of two equal keys without a word; here the second is an error."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


def write_weights(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write `tensors` as a safetensors file, atomically, one tensor in memory at a time.

    The header says `format: pt`, which transformers insists on, beside the free texts of `metadata`.
    """
    # The largest items first keeps every tensor aligned to its own item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | (metadata or {})}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            data = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(data.view(torch.uint8).numpy().data)


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy `tensors` into `module`, converted to the module's own dtype and device; nothing changes on an error.

    Raises UserError as `check_weights` does.
    """
    check_weights(module, tensors, where)
    with torch.no_grad():
        for name, target in module.state_dict(keep_vars=True).items():
            target.copy_(tensors[name])


def check_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str, against: str = "its config.json"
) -> None:
    """Do `tensors` fit `module` (which may be on the meta device), each and all?

    Raises UserError, naming `where` (the file) and the tensor, if one is missing, left over, of another shape, or of
    another kind (whole numbers for a fraction); `against` is what the module was built from.
    """
    own = module.state_dict(keep_vars=True)
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    model = type(module).__name__
    if missing:
        raise UserError(f"{where} lacks {_first(missing)}, which {model} needs: the file does not fit {against}")
    if extra:
        raise UserError(f"{where} has {_first(extra)}, which {model} lacks: the file does not fit {against}")
    for name, target in own.items():
        given = tensors[name]
        if given.shape != target.shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(given.shape)}, but {model} needs {tuple(target.shape)}: "
                f"the file does not fit {against}"
            )
        if given.is_floating_point() != target.is_floating_point():
            raise UserError(f"{where}: {name} is of type {given.dtype}, but {model} needs {target.dtype}")


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built in here have shapes but neither memory nor values, until `give_weights` gives them both.

    Initialisers are passed over, which also keeps torch from loading its compiler to run them on nothing (seconds).
    """
    with torch.device("meta"), _PassOverInitialisers():
        yield


def give_weights(
    module: nn.Module,
    tensors: dict[str, Tensor],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
    against: str = "its config.json",
) -> None:
    """Fill a module built `without_memory`: tensors that need no conversion become its own without a copy.

    `dtype` is that of its fractions; whole numbers stay. `tensors` is used up: each leaves it when it is converted, so
    that only one at a time is there in two forms. Raises UserError as `check_weights` does, before that.
    """
    check_weights(module, tensors, where, against)
    values: dict[str, Tensor] = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        values[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
    module.load_state_dict(values, strict=True, assign=True)


class _PassOverInitialisers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
