"""Weights read and pictures written by own code, against the safetensors library and Pillow."""

import json
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scratch_oracle import assert_same, draw, ours

from miniai.base.images import to_pil
from miniai.scratch.creation import zeros
from miniai.scratch.png import encode_png, write_png
from miniai.scratch.safetensors import read_safetensors

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]


def test_every_kind_of_number_is_read_exactly(tmp_path: Path) -> None:
    tensors = {str(kind): (10 * draw((2, 3), i)).to(kind) for i, kind in enumerate([*KINDS, torch.uint8, torch.bool])}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    found = read_safetensors(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, x in tensors.items():
        wanted = x.double() if x.is_floating_point() else x if x.dtype == torch.bool else x.long()
        assert_same(found[name], wanted, 0)


def packed(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FAULTS = {
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "is a git-LFS pointer"),
    "a web page": (b"<!DOCTYPE html>", "is a web page"),
    "nothing": (b"", "is truncated at 0 bytes"),
    "a pickle": (b"\x80\x02}q\x00(X\x05", "is not a safetensors file"),
    "half a header": (packed({"w": ENTRY})[:20], "is truncated inside its header"),
    "half the numbers": (packed({"w": ENTRY}, bytes(7)), "is truncated: w ends at byte 8 of 7"),
    "a list": (packed([1]), "bad header"),
    "no JSON": (packed(b"{{"), "bad header"),
    "no shape": (packed({"w": {"dtype": "F32"}}), "bad header"),
    "two of a name": (packed(b'{"w": {}, "w": {}}'), "bad header"),
    "a size below 0": (packed({"w": {**ENTRY, "shape": [-1, -2]}}, bytes(8)), "bad header"),
    "a size that is not whole": (packed({"w": {**ENTRY, "shape": [2.0]}}, bytes(8)), "bad header"),
    "an end before its beginning": (packed({"w": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)), "does not fit its -8"),
    "no end": (packed({"w": {**ENTRY, "data_offsets": [0]}}, bytes(8)), "bad header"),
    "another size": (packed({"w": {**ENTRY, "shape": [3]}}, bytes(8)), r"w of shape \[3\] does not fit its 8 bytes"),
    "another kind": (packed({"w": {**ENTRY, "dtype": "F8_E4M3"}}, bytes(8)), "w holds F8_E4M3 numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_what_it_should_be_is_named_with_its_fault(tmp_path: Path, fault: str) -> None:
    raw, message = FAULTS[fault]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"weights.safetensors.*{message}"):
        read_safetensors(path)


def test_a_picture_is_what_pillow_reads_and_the_upper_floors_write(tmp_path: Path) -> None:
    x = draw((3, 5, 7))
    write_png(tmp_path / "x.png", ours(x), {"parameters": "a red apple, 苹果"})
    with Image.open(tmp_path / "x.png") as picture:
        picture.load()
        assert picture.mode == "RGB"
        assert picture.text == {"parameters": "a red apple, 苹果"}
        assert picture.tobytes() == to_pil(x[None].float())[0].tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_grey_pictures_are_grey(tmp_path: Path) -> None:
    write_png(tmp_path / "x.png", zeros(1, 2, 3))
    with Image.open(tmp_path / "x.png") as picture:
        assert (picture.mode, picture.size, picture.tobytes()) == ("L", (3, 2), bytes([128] * 6))


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (3, 0, 4)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a picture is \(3, h, w\) or \(1, h, w\)"):
        encode_png(zeros(*shape))


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError, match="x.png"):
        write_png(tmp_path / "x.png", zeros(1, 1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
