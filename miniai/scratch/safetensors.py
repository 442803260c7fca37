"""31. Weights from a safetensors file: the length of a header, the header in JSON, then the numbers, little end first.

Nothing in such a file is ever executed. Numbers of every kind become float64 (int64 for whole ones).
"""

import json
import math
import struct
import sys
from array import array
from pathlib import Path
from typing import Any

from miniai.scratch.tensor import Tensor

FLOATS = {"F64": "d", "F32": "f"}  # read as they are; F16 and BF16 are widened first
INTEGERS = {"I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "b"}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of the file by its name. Raises FileNotFoundError, or ValueError naming the file and its fault."""
    with open(path, "rb") as file:
        start = file.read(8)
        refuse_other_formats(path, start)
        n_header_bytes = struct.unpack("<Q", start)[0]
        if n_header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file: get the weights in that format")
        text = file.read(n_header_bytes)
        if len(text) < n_header_bytes:
            raise ValueError(f"{path} is truncated inside its header: download or copy the file again")
        body = memoryview(file.read())
    try:
        header = json.loads(text, object_pairs_hook=without_twins)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        return {name: decoded(path, name, entry, body) for name, entry in entries}
    except (
        AttributeError,  # entries that are not what they should be
        IndexError,
        KeyError,
        TypeError,
        UnicodeDecodeError,  # no JSON at all, or one that is too deep
        json.JSONDecodeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path} is not a safetensors file (bad header): get the weights in that format") from error


def refuse_other_formats(path: str | Path, start: bytes) -> None:
    """What is often found where weights were expected."""
    if start.startswith(b"version"):
        raise ValueError(f"{path} is a git-LFS pointer, not the file itself: fetch it with 'git lfs pull'")
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} is a web page, not weights: the download led to the wrong address")
    if len(start) < 8:
        raise ValueError(f"{path} is truncated at {len(start)} bytes: download or copy the file again")


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs. A name that comes twice is an error: JSON would keep the last without a word."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise KeyError(name)
        found[name] = value
    return found


def decoded(path: str | Path, name: str, entry: dict[str, Any], body: memoryview) -> Tensor:
    """One tensor, cut out of the file's body."""
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"][0], entry["data_offsets"][1]
    for number in (begin, end, *shape):
        if type(number) is not int or number < 0:
            raise TypeError(f"{number!r} is neither a size nor a place in a file")
    if dtype not in SIZES:
        raise ValueError(f"{path}: {name} holds {dtype} numbers; {', '.join(SIZES)} can be read")
    if end > len(body):
        raise ValueError(f"{path} is truncated: {name} ends at byte {end} of {len(body)}; download or copy it again")
    if end - begin != math.prod(shape) * SIZES[dtype]:
        raise ValueError(f"{path}: {name} of shape {list(shape)} does not fit its {end - begin} bytes")
    return Tensor.of(numbers(dtype, body[begin:end]), shape)


def numbers(dtype: str, raw: memoryview) -> array:
    if dtype == "F16":
        return array("d", struct.unpack(f"<{len(raw) // 2}e", raw))
    if dtype == "BF16":  # the upper half of a float32: the lower half is zeros
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
        dtype, raw = "F32", memoryview(wide)
    found = array(FLOATS.get(dtype) or INTEGERS[dtype])
    found.frombytes(raw)
    if sys.byteorder == "big":
        found.byteswap()
    if dtype == "BOOL":
        return found
    return array("d" if dtype in FLOATS else "q", found)
