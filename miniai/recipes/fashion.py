"""What the recipes on Fashion-MNIST share: the pictures, the folder of a run, and how long an epoch is."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miniai.base.configs import config_to_dict
from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.weights import load_weights, read_weights, write_weights
from miniai.recipes.training import StageRun
from miniai.train.fashion_mnist import LabelledImages, load_fashion_mnist

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def load_both(data: Path | None) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test pictures. Raises UserError, saying how to get them, where there are none."""
    train, test = load_fashion_mnist("train", data), load_fashion_mnist("test", data)
    print(f"{len(train):,} pictures to train on, {len(test):,} to test, from {train.source}", file=sys.stderr)
    return train, test


def start_run(
    name: str, out: Path, config: Any, epochs: int | float, n_items: int, batch_size: int, device: Any, resume: bool
) -> StageRun:
    """The run in `out`, for `epochs` passes over the data; its config is printed and kept.

    Raises UserError if the folder holds a training already and `resume` is not asked for, or one of another config.
    """
    if not epochs > 0:
        raise UserError(f"--epochs {epochs} is not possible: give a number above 0")
    path, values = out / CONFIG, config_to_dict(config)
    if path.is_file():
        if not resume:
            raise UserError(f"{out} holds a training already: add --resume to go on with it, or choose another folder")
        if read_json(path) != values:
            raise UserError(f"{path} has other numbers than asked for now: choose another folder, or the same numbers")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; choose another") from error
    write_json(path, values)
    steps = max(1, round(epochs * (n_items // min(batch_size, n_items))))
    for key, value in asdict(config).items():
        print(f"{key}: {value}", file=sys.stderr)
    return StageRun(name, out, device, None, steps)


def save_model(module: nn.Module, folder: Path) -> None:
    """The weights as `folder/model.safetensors`, in float32; the config stands beside it since the start."""
    write_weights(folder / WEIGHTS, {name: value.contiguous() for name, value in module.state_dict().items()})


def load_model(module: Any, folder: Path, device: torch.device) -> Any:
    """`module` with the weights of `folder`, in eval mode. Raises UserError if they are missing or do not fit."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}: its training is not finished, go on with --resume")
    load_weights(module, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    return module.to(device).eval()
