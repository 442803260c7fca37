"""When two trainings count as having ended alike: every tensor of their checkpoints, and every byte of their logs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniai.train.checkpoint import checkpoints, read_checkpoint


def assert_same_end(folder: Path, expected: Path, n_steps: int) -> None:
    """Both trained `n_steps` steps; only the wall time that they took may differ."""
    (newest, *_), (expected_newest, *_) = checkpoints(folder / "checkpoints"), checkpoints(expected / "checkpoints")
    assert newest.name == expected_newest.name == f"step-{n_steps:07d}.safetensors"
    ours, theirs = read_checkpoint(newest), read_checkpoint(expected_newest)
    for state in (ours, theirs):
        del state["callbacks"]["Budget"]  # wall time
    assert_equal(ours, theirs)
    assert len(theirs["callbacks"]["EMA"]["shadow"]) == 6
    assert any(bool(moment.any()) for entry in theirs["optimizer"]["state"].values() for moment in entry.values())
    assert (folder / "log.jsonl").read_bytes() == (expected / "log.jsonl").read_bytes()
    assert (folder / "log.jsonl").read_bytes().count(b"\n") >= n_steps // 3


def assert_equal(left: Any, right: Any) -> None:
    """The same kinds and values all the way down, tensors bit for bit."""
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right


def steps_saved(folder: Path) -> int:
    """The steps of the newest checkpoint; 0 if there is none."""
    return max((int(path.stem.removeprefix("step-")) for path in checkpoints(folder / "checkpoints")), default=0)
