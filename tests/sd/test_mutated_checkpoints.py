"""Damage of any kind, anywhere in a checkpoint: it is read, or it is a UserError of one line, and nothing else."""

import shutil
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
from miniai.base.files import write_json
from miniai.base.weights import read_weights, write_weights
from miniai.sd.folder import UNET_WEIGHTS, Components, read_folder
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


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, its U-Net in two files with an index."""
    parted = shutil.copytree(folder, tmp_path_factory.mktemp("shards") / "model")
    whole = parted / UNET_WEIGHTS
    tensors = read_weights(whole)
    names = sorted(tensors)
    files = {name: f"{whole.stem}-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        write_weights(whole.with_name(file), {name: tensors[name] for name in names if files[name] == file})
    write_json(whole.with_name(f"{whole.name}.index.json"), {"metadata": {}, "weight_map": files})
    whole.unlink()
    return parted


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(which=st.integers(0, 2), changes=CHANGES, kept=st.none() | st.integers(0, 9000))
def test_mutated_shards_read_or_are_a_user_error_and_nothing_else(
    shards: Path, which: int, changes: list[tuple[int, int]], kept: int | None
) -> None:
    path = sorted((shards / UNET_WEIGHTS).parent.glob("diffusion_pytorch_model*"))[which]
    content = path.read_bytes()
    try:
        path.write_bytes(damaged(content, changes, kept))
        with suppress(UserError):
            assert isinstance(read_folder(shards, torch.float32, CPU), Components)
    finally:
        path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), share=st.floats(0, 1))
def test_a_mutated_pickled_file_reads_or_is_a_user_error_and_nothing_else(
    single: Path, places: list[tuple[float, int]], share: float
) -> None:
    """Anywhere in the file: its zip directory, which stands at the end, as well."""
    path = single / "mutated.ckpt"
    torch.save({"state_dict": read_weights(single / "model.safetensors")}, path)
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content if share > 0.5 else content[: int(2 * share * len(content))])
    with suppress(UserError):
        assert isinstance(read_single_file(path, torch.float32, CPU, single / "tokenizer"), Components)


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
