"""Weights files: safetensors is the oracle, and every kind of damage has its own words."""

import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapped_file import read_all, resident
from torch import nn

from miniai.base.errors import UserError
from miniai.base.weights import (
    DTYPE_NAMES,
    give_weights,
    load_weights,
    read_metadata,
    read_pickled_weights,
    read_weights,
    without_memory,
    write_weights,
)


def make_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 5, generator=generator) * 9).abs().to(dtype) for dtype in DTYPE_NAMES}
    return tensors | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 6, generator=generator).T,
    }


def raw_file(path: Path, header: str, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + data)
    return path


def test_what_we_write_safetensors_reads(tmp_path: Path) -> None:
    tensors = make_tensors()
    write_weights(tmp_path / "a.safetensors", tensors, {"note": "né"})
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype is tensor.dtype
        assert torch.equal(read[name], tensor)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "né"}


def test_what_safetensors_writes_we_read(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in make_tensors().items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"note": "n"})
    read = read_weights(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read_metadata(tmp_path / "a.safetensors") == {"note": "n"}


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    write_weights(tmp_path / "a.safetensors", {"all": shared, "part": shared[2:4]})
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["part"], torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("n_kept", [0, 4, 8, 20, 300, -1])
def test_a_truncated_file_is_said_to_be_truncated(tmp_path: Path, n_kept: int) -> None:
    path = tmp_path / "a.safetensors"
    write_weights(path, make_tensors())
    path.write_bytes(path.read_bytes()[:n_kept])
    with pytest.raises(UserError, match=r"a\.safetensors is truncated"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\n  <html lang=en>", "web page"),
        (b"<?xml version='1.0'?><Error/>", "web page"),
        (pickle.dumps({"a": 1}) + b" " * 99, "pickled"),
        (b'{"a": 1}' + b" " * 999, "not a safetensors file"),
        (b"\x00" * 99, "not a safetensors file"),
        (b"\xff" * 99, "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_called_what_it_is(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_weights(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torch_checkpoint_is_refused_unopened(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.bin")
    assert zipfile.is_zipfile(tmp_path / "a.bin")
    with pytest.raises(UserError, match="pickled"):
        read_weights(tmp_path / "a.bin")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_of_a_torch_checkpoint_are_read(tmp_path: Path, zipped: bool) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in make_tensors().items()}
    training = {"state_dict": tensors | {"note": 3}, "global_step": 9}
    for content in (tensors, training):
        torch.save(content, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
        read = read_pickled_weights(tmp_path / "a.bin")
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


class Burglar:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("stolen",)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Burglar()}, "a.ckpt")
    with pytest.raises(UserError, match="a.ckpt: it holds more than tensors, which could run code"):
        read_pickled_weights("a.ckpt")
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (torch.zeros(3), "not a dictionary of tensors"),
        ({3: torch.zeros(3)}, "not a dictionary of tensors"),
        ({"a": torch.zeros(3), "epoch": 3, "loss": 0.1}, "holds epoch, which is no tensor"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"", "damaged or no PyTorch checkpoint"),
        (b"nonsense", "damaged or no PyTorch checkpoint"),
        (None, "is missing"),
    ],
)
def test_what_is_no_torch_checkpoint_is_a_user_error(tmp_path: Path, content: object, complaint: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "a.bin").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "a.bin")
    with pytest.raises(UserError, match=complaint) as caught:
        read_pickled_weights(tmp_path / "a.bin")
    assert "a.bin" in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    kept=st.integers(0, 2000),
    zipped=st.booleans(),
)
def test_a_mutated_torch_checkpoint_reads_or_is_a_user_error_and_nothing_else(
    tmp_path: Path, changes: list[tuple[int, int]], kept: int, zipped: bool
) -> None:
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "whole", _use_new_zipfile_serialization=zipped)
    content = bytearray((tmp_path / "whole").read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (tmp_path / "a.bin").write_bytes(content[: max(kept, 1)])
    with suppress(UserError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_pickled_weights(tmp_path / "a.bin").values())


def test_two_tensors_of_one_name_are_an_error(tmp_path: Path) -> None:
    one = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    other = '{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'
    path = raw_file(tmp_path / "a.safetensors", f'{{"w":{one},"w":{other}}}', b"\0" * 8)
    with pytest.raises(UserError, match="two entries named 'w'"):
        read_weights(path)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        '{"w": 3}',
        '{"w": {"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        '{"w": {"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        '{"w": {"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        '{"w": {"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        '{"w": {"dtype":"F32","shape":[1],"data_offsets":["a","b"]}}',
        '{"w": {"dtype":"F32","shape":[1]}}',
        '{"__metadata__": 3}',
    ],
)
def test_a_nonsensical_header_is_a_user_error(tmp_path: Path, header: str) -> None:
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read_weights(raw_file(tmp_path / "a.safetensors", header, b"\0" * 4))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_mutated_file_reads_or_is_a_user_error_and_nothing_else(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    write_weights(tmp_path / "whole", {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.int64)})
    content = bytearray((tmp_path / "whole").read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (tmp_path / "a.safetensors").write_bytes(content)
    with suppress(UserError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(tmp_path / "a.safetensors").values())


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.safetensors is missing"):
        read_weights(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="cannot read"):
        read_weights(tmp_path)


def test_an_error_while_writing_leaves_the_old_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_weights(path, {"a": torch.ones(2)})
    on_nowhere = torch.ones(3, device="meta")  # has no bytes to write
    with pytest.raises(RuntimeError):
        write_weights(path, {"a": torch.zeros(2), "b": on_nowhere})
    assert torch.equal(read_weights(path)["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def make_module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_loading_copies_every_value_in_the_modules_own_dtype() -> None:
    source, target = make_module(), make_module().to(torch.bfloat16)
    load_weights(target, source.state_dict(), "a.safetensors")
    for name, value in target.state_dict().items():
        assert value.dtype is (torch.int64 if name.endswith("num_batches_tracked") else torch.bfloat16)
        assert torch.equal(value, source.state_dict()[name].to(value.dtype))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"0.bias": None}, "lacks 0.bias"),
        ({"0.bias": None, "0.weight": None}, "lacks 0.bias and 1 more tensor"),
        ({"2.weight": torch.zeros(1)}, "has 2.weight"),
        ({"0.weight": torch.zeros(4, 2)}, r"0.weight has shape \(4, 2\), but Sequential needs \(4, 3\)"),
        ({"0.weight": torch.zeros(4, 3, dtype=torch.int8)}, "0.weight is of type torch.int8"),
    ],
)
def test_weights_that_do_not_fit_name_the_tensor_and_change_nothing(
    change: dict[str, torch.Tensor | None], complaint: str
) -> None:
    module = make_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {name: value + 1 for name, value in before.items()} | change
    with pytest.raises(UserError, match=complaint) as caught:
        load_weights(module, {name: value for name, value in tensors.items() if value is not None}, "u.safetensors")
    assert str(caught.value).startswith("u.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_module_without_memory_is_checked_and_filled_like_any_other() -> None:
    source = make_module()
    with without_memory():
        target = make_module()
        huge = nn.Linear(2**20, 2**20)
    assert huge.weight.is_meta
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="u.safetensors lacks 0.bias"):
        give_weights(
            target, {k: v for k, v in source.state_dict().items() if k != "0.bias"}, "u.safetensors", torch.float16, cpu
        )
    given = source.state_dict()
    give_weights(target, given, "u.safetensors", torch.float16, cpu)
    assert not given  # used up, so that no tensor stays in two forms
    for name, value in target.state_dict().items():
        assert value.dtype is (torch.int64 if name.endswith("num_batches_tracked") else torch.float16)
        assert torch.equal(value, source.state_dict()[name].to(value.dtype))
    assert all(parameter.requires_grad for parameter in target.parameters())
    assert cast(nn.Linear, make_module()[0]).weight.abs().sum() > 0  # outside, initialisers work as ever


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux how much memory is taken")
def test_a_tensor_that_is_let_go_of_gives_its_memory_back_and_leaves_the_others_alone(tmp_path: Path) -> None:
    n_bytes, path = 40_000_000, tmp_path / "w.safetensors"
    write_weights(path, {name: torch.full((n_bytes // 4,), 3.0) for name in "abc"})
    tensors = read_weights(path)
    assert resident(path) < n_bytes / 2
    tensors["b"].mul_(2)
    read_all(path, *tensors.values())
    del tensors["a"], tensors["c"]
    assert resident(path) < 1.5 * n_bytes
    assert bool((tensors["b"] == 6).all())
    again = read_weights(tmp_path / "w.safetensors")
    assert bool((again["b"] == 3).all())
