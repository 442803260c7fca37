"""What the recipes on Fashion-MNIST share: the pictures, the folder of a run, and how long an epoch is."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.configs import config_from_dict, config_to_dict
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.images import grid, to_pil
from miniai.base.weights import load_weights, read_weights, write_weights
from miniai.recipes.training import StageRun, channels_last
from miniai.train.distributed import is_first, wait_for_all
from miniai.train.fashion_mnist import LabelledImages, load_fashion_mnist

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PADDING = 2  # 28×28 becomes 32×32, which halves evenly


def as_sheet(images: Float[Tensor, "n 1 h w"], n_columns: int = 10) -> Any:
    """Pictures beside one another, as a PIL image."""
    return grid(to_pil(images.expand(-1, 3, -1, -1)), n_columns, gap=1)


def load_both(data: Path | None) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test pictures. Raises UserError, saying how to get them, where there are none."""
    train, test = load_fashion_mnist("train", data), load_fashion_mnist("test", data)
    if is_first():
        print(f"{len(train):,} pictures to train on, {len(test):,} to test, from {train.source}", file=sys.stderr)
    return train, test


def start_run(
    name: str, out: Path, config: Any, epochs: int | float, n_items: int, batch_size: int, device: Any, resume: bool
) -> StageRun:
    """The run in `out`, for `epochs` passes over the data; its config is printed and kept.

    Raises UserError if the folder holds a training already and `resume` is not asked for, or one of another config, or
    a finished one of another length.
    """
    check_above_0("--epochs", epochs)
    keep_config(out, config, resume)
    steps = max(1, round(epochs * (n_items // min(batch_size, n_items))))
    run = StageRun(name, out, device, None, steps)
    if is_trained(run) and run.record()["steps"] != steps:
        raise UserError(
            f"{out} holds a finished training of {run.record()['steps']:,} steps, and --epochs {epochs} makes "
            f"{steps:,}: its rate fell to nothing, so choose another folder for a longer one"
        )
    return run


def check_above_0(option: str, number: int | float) -> None:
    """Raises UserError unless `number`, of epochs for instance, is above 0, and finite."""
    if not 0 < number < float("inf"):
        raise UserError(f"{option} {number} is not possible: give a number above 0")


def keep_config(out: Path, config: Any, resume: bool, name: str = CONFIG) -> None:
    """Print `config`, and keep it as `name` in the folder `out`, which is made.

    Of several processes the first does it. Raises UserError if the folder has a config already and `resume` is not
    asked for, or if it is another one.
    """
    if not is_first():
        return
    path, values = out / name, config_to_dict(config)
    if path.is_file():
        if not resume:
            raise UserError(f"{out} holds a training already: add --resume to go on with it, or choose another folder")
        if not _same(read_json(path), config, path):
            raise UserError(f"{path} has other numbers than asked for now: choose another folder, or the same numbers")
    make_folder(out)
    write_json(path, values)
    for key, value in asdict(config).items():
        print(f"{key}: {value}", file=sys.stderr)


def _same(kept: Any, config: Any, path: Path) -> bool:
    """Whether a kept file is this config; where it lacks a number, it was the default."""
    try:
        return config_from_dict(type(config), kept, str(path)) == config
    except UserError:  # keys of another recipe
        return False


def is_trained(run: StageRun) -> bool:
    """Whether nothing is left to train."""
    return run.kept(run.folder / WEIGHTS)


def save_model(module: nn.Module, folder: Path) -> None:
    """The weights as `folder/model.safetensors`, in float32; the config stands beside it since the start.

    Of several processes the first writes, and all go on when it has."""
    if is_first():
        write_weights(folder / WEIGHTS, {name: value.contiguous() for name, value in module.state_dict().items()})
    wait_for_all()


def load_model(module: Any, folder: Path, device: torch.device) -> Any:
    """`module` with the weights of `folder`, in eval mode and in the memory order of training. Raises UserError if they
    are missing or do not fit."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}: its training is not finished, go on with --resume")
    load_weights(module, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    return channels_last(module).to(device).eval()
