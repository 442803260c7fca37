"""Damage of any kind, anywhere in a checkpoint: it is read, or it is a UserError of one line, and nothing else."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ldm_oracle import ONE, as_ldm, make
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.base.weights import write_weights
from miniai.sd.folder import Components, read_folder
from miniai.sd.single_file import read_single_file

CPU = torch.device("cpu")
FILES = (
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    *("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"),
    *(f"{part}/config.json" for part in ("text_encoder", "unet", "vae")),
    "text_encoder/model.safetensors",
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
)
# (place, byte) pairs: places count from the start of what is to be damaged.
CHANGES = st.lists(
    st.tuples(st.integers(0, 6000), st.sampled_from(b'0179{}[]",:-.ae \x00\xff')), min_size=1, max_size=4
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, with the tokenizer's folder beside it."""
    folder = tmp_path_factory.mktemp("single")
    write_weights(folder / "model.safetensors", as_ldm(make(ONE, folder / "tokenizer")))
    return folder


def damaged(content: bytes, changes: list[tuple[int, int]], kept: int | None, start: int = 0) -> bytes:
    mutated = bytearray(content)
    for place, value in changes:
        mutated[start + place % (len(mutated) - start)] = value
    return bytes(mutated if kept is None else mutated[:kept])


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
@given(name=st.sampled_from(FILES), changes=CHANGES, kept=st.none() | st.integers(0, 9000))
def test_a_mutated_folder_reads_or_is_a_user_error_and_nothing_else(
    folder: Path, name: str, changes: list[tuple[int, int]], kept: int | None
) -> None:
    content = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(damaged(content, changes, kept))
        with suppress(UserError):
            assert isinstance(read_folder(folder, torch.float32, CPU), Components)
    finally:
        (folder / name).write_bytes(content)


@settings(max_examples=15, deadline=None, suppress_health_check=QUIET)
@given(changes=CHANGES, in_header=st.booleans(), kept=st.none() | st.integers(0, 60_000))
def test_a_mutated_single_file_reads_or_is_a_user_error_and_nothing_else(
    single: Path, changes: list[tuple[int, int]], in_header: bool, kept: int | None
) -> None:
    content = (single / "model.safetensors").read_bytes()
    (header_bytes,) = struct.unpack("<Q", content[:8])
    changed = damaged(content, changes, kept, 8 if in_header else 8 + header_bytes)
    (single / "mutated.safetensors").write_bytes(changed)
    with suppress(UserError):
        parts = read_single_file(single / "mutated.safetensors", torch.float32, CPU, single / "tokenizer")
        assert isinstance(parts, Components)
