"""One file holds a whole training: killed at any moment, it goes on where its newest checkpoint stands, bit for bit."""

import json
import os
import re
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.base.weights import load_weights, read_metadata, read_weights, write_weights
from miniai.train.callback import Callback
from miniai.train.learner import Learner

_NAME = re.compile(r"step-(\d{7,})\.safetensors")
_FORMAT = "miniai training checkpoint 1"


class Checkpoint(Callback):
    """Writes `folder/step-0001234.safetensors` every so often and at the end of a fit, and keeps the newest `keep`.

    Each is written beside the others and takes its name only when it is whole and on the disk. Nothing is written
    after an error, so a training that went wrong leaves its last good checkpoint as the newest.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[Checkpoint("run")])
    >>> learner.fit(1)
    >>> [path.name for path in checkpoints("run")]
    ['step-0000004.safetensors']
    >>> resume(learner, "run"), learner.step
    (True, 4)
    """

    order = 80
    main_process_only = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every_minutes: int | float | None = 5,
        every_steps: int | None = None,
        keep: int = 2,
    ) -> None:
        if keep < 1:
            raise ValueError(f"at least 1 checkpoint must be kept, not {keep}")
        self.folder, self.keep = Path(folder), keep
        self.every_minutes, self.every_steps = every_minutes, every_steps
        self._last_time = time.monotonic()
        self._last_place: tuple[int, int, int] | None = None

    def before_fit(self, learner: Learner) -> None:
        make_folder(self.folder)
        if not os.access(self.folder, os.W_OK):
            raise UserError(f"cannot write checkpoints into {self.folder}: permission denied; choose another folder")
        if _place(learner) == (0, 0, 0) and checkpoints(self.folder):
            raise UserError(
                f"{self.folder} holds an earlier training's checkpoints: resume it, or choose another folder"
            )
        self._last_time = time.monotonic()
        self._last_place = _place(learner)

    def after_batch(self, learner: Learner) -> None:
        if not learner.training or self._last_place == _place(learner):
            return
        minutes = (time.monotonic() - self._last_time) / 60
        has_stepped = self._last_place is None or self._last_place[0] != learner.step
        if (self.every_steps and has_stepped and learner.step % self.every_steps == 0) or (
            self.every_minutes is not None and minutes >= self.every_minutes
        ):
            self.save(learner)

    def after_fit(self, learner: Learner) -> None:
        if self._last_place != _place(learner):
            self.save(learner)

    def save(self, learner: Learner) -> Path:
        """Write a checkpoint now. Raises UserError if it cannot be written; the earlier ones stay."""
        learner.event("before_save")
        path = self.folder / f"step-{learner.step:07d}.safetensors"
        save_checkpoint(learner, path)
        self._last_time, self._last_place = time.monotonic(), _place(learner)
        # Newer ones are damaged files that a resume passed over: kept, they would push out the good ones.
        found = checkpoints(self.folder)
        newer, own = found[: found.index(path)], found[found.index(path) :]
        for other in newer + own[self.keep :]:
            other.unlink(missing_ok=True)
        return path


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in `folder`, the newest (most steps) first; none if there is no such folder."""
    if not os.path.isdir(folder):
        return []
    found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def resume(learner: Learner, folder: str | os.PathLike[str]) -> bool:
    """Put `learner` where the newest checkpoint in `folder` stands that loads; False if there is none.

    The optimizer's settings (learning rate, weight decay) come from the checkpoint too. A damaged checkpoint is passed
    over with a warning. Raises UserError if all are damaged, or if one does not belong to this learner (another model,
    optimizer or seed).
    """
    found = checkpoints(folder)
    for path in found:
        try:
            state = read_checkpoint(path)
        except UserError as error:
            warnings.warn(f"the checkpoint {path.name} is passed over: {error}", stacklevel=2)
            continue
        _apply(learner, state, path)
        return True
    if found:
        raise UserError(f"no checkpoint in {folder} can be read: start in another folder, or delete them")
    return False


def save_checkpoint(learner: Learner, path: str | os.PathLike[str]) -> None:
    """Write the state of the learner, its model, optimizer and callbacks into one safetensors file, atomically."""
    state = {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "optimizer_class": type(learner.optimizer).__name__,
        # Gradients outlive a batch only where a callback accumulates them or a subclass keeps them as momentum.
        "gradients": {n: p.grad for n, p in learner.model.named_parameters() if p.grad is not None},
        "callbacks": {name: callback.state_dict() for name, callback in _stateful(learner).items()},  # type: ignore[attr-defined]
        "learner": {
            "step": learner.step,
            "epoch": learner.epoch,
            "batch_index": learner.batch_index,
            "seed": learner.seed,
            "data": _data_of(learner),
            "scalars": learner.scalars,
            "valid_scalars": learner.valid_scalars,
        },
    }
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    write_weights(path, tensors, {"miniai": _FORMAT, "state": json.dumps(tree), "crc32": _checksum(tensors)})


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state written by `save_checkpoint`. Raises UserError if the file is damaged or not a checkpoint."""
    metadata = read_metadata(path)
    if metadata.get("miniai") != _FORMAT:
        raise UserError(f"{path} is not a training checkpoint of this version: start training anew")
    tensors = {name: tensor.clone() for name, tensor in read_weights(path).items()}  # free of the file
    if metadata.get("crc32") != _checksum(tensors):
        raise UserError(f"{path} is damaged (its checksum is wrong): delete it")
    try:
        return _unpack(json.loads(metadata["state"]), tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): delete it") from error


def _apply(learner: Learner, state: dict[str, Any], path: Path) -> None:
    own = state["learner"]
    if own["seed"] != learner.seed:
        raise UserError(f"{path} was trained with seed {own['seed']}, not {learner.seed}: give that seed to resume it")
    load_weights(learner.model, state["model"], str(path))
    kind = type(learner.optimizer).__name__
    if state.get("optimizer_class", kind) != kind:  # torch would take the state, and fail at the first step
        raise UserError(f"{path} was trained by {state['optimizer_class']}, not {kind}: give that to resume it")
    _load_optimizer(learner.optimizer, state["optimizer"], path)
    for name, weight in learner.model.named_parameters():
        gradient = state["gradients"].get(name)
        weight.grad = None if gradient is None else torch.empty_like(weight).copy_(gradient)
    saved = state["callbacks"]
    stateful = _stateful(learner)
    for name in sorted(set(saved) ^ set(stateful)):
        lacking = "the checkpoint has no state for it" if name in stateful else "this training does not have it"
        warnings.warn(f"{path.name}: callback {name} is not resumed: {lacking}", stacklevel=3)
    for name, callback in stateful.items():
        if name in saved:
            callback.load_state_dict(saved[name])  # type: ignore[attr-defined]
    learner.step, learner.epoch, learner.batch_index = own["step"], own["epoch"], own["batch_index"]
    learner.scalars, learner.valid_scalars = own["scalars"], own["valid_scalars"]
    if own["data"] != _data_of(learner):
        warnings.warn(
            f"{path.name} was trained on other batches (on {own['data']}): the epoch starts again",
            stacklevel=3,
        )
        learner.batch_index = 0


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} does not fit the optimizer ({error}): resume with the same configuration") from error
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                # The file holds rows in order; fused optimizers walk the raw memory of weight and state side by side.
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _place(learner: Learner) -> tuple[int, int, int]:
    return learner.step, learner.epoch, learner.batch_index


def _data_of(learner: Learner) -> dict[str, Any]:
    """What decides which items make a batch."""
    loader = learner.train
    return {name: getattr(loader, name) for name in ("n_items", "batch_size", "seed", "shuffle", "drop_last")}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of all the bytes: a disk's wrong bit in a weight would otherwise go unseen (1 s per GB)."""
    total = 0
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous().reshape(-1)
        total = zlib.crc32(data.view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _stateful(learner: Learner) -> dict[str, Callback]:
    """The callbacks that have a state, by name; the second EMA is "EMA-2"."""
    found: dict[str, Callback] = {}
    for callback in learner.callbacks:
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            n_same = sum(other.name == callback.name for other in found.values())
            found[callback.name if n_same == 0 else f"{callback.name}-{n_same + 1}"] = callback
    return found


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with each tensor moved into `tensors` and its key in its place."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, Mapping):  # as pairs: the keys of an optimizer's state are numbers
        prefix = f"{path}." if path else ""
        return {"dict": [[key, _pack(part, f"{prefix}{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        parts = [_pack(part, f"{path}.{index}", tensors) for index, part in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold {path}, a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(part, tensors) for part in value["tuple"])
    return {key: _unpack(part, tensors) for key, part in value["dict"]}
