"""Numbers of a training as they come, where people look at them: a CSV file, TensorBoard, Weights & Biases.

All three log the same: every `every` steps the scalars of the step and the learning rate, and after each validation its
means, named `valid/…`. TensorBoard and W&B (extra `track`) are imported when a fit begins; both work without a network.
"""

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.train.callback import Callback
from miniai.train.learner import Learner


class Tracker(Callback, ABC):
    """What the trackers share: a subclass says how to `open`, `write` and `close`."""

    order = 65
    main_process_only = True

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.every = every
        self._is_open = False

    @abstractmethod
    def open(self, learner: Learner) -> None:
        """Begin, or go on with what was begun before a resume at `learner.step`."""

    @abstractmethod
    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log `numbers` at `step`."""

    @abstractmethod
    def close(self) -> None:
        """End; everything must be on the disk now."""

    def before_fit(self, learner: Learner) -> None:
        self.open(learner)
        self._is_open = True

    def after_step(self, learner: Learner) -> None:
        if learner.step % self.every == 0:
            numbers = {name: value.item() for name, value in learner.scalars.items()}
            self.write(learner.step, numbers | {"lr": float(learner.optimizer.param_groups[0]["lr"])})

    def after_validate(self, learner: Learner) -> None:
        if self._is_open:  # a validation outside a fit is nobody's history
            self.write(learner.step, {f"valid/{name}": value for name, value in learner.valid_scalars.items()})

    def cleanup(self, learner: Learner) -> None:
        if self._is_open:
            self._is_open = False
            self.close()


class CSVLog(Tracker):
    """One line per number: step, name, value. A resume cuts the file back to its own step, so that none stands twice.

    >>> from miniai.train.data import Loader
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> log = CSVLog("log.csv", every=2)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[log]).fit(1)
    >>> [row["step"] + " " + row["name"] for row in csv.DictReader(Path("log.csv").open())]
    ['2 loss', '2 lr', '4 loss', '4 lr']
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 10) -> None:
        super().__init__(every)
        self.path = Path(path)
        self._file: Any = None

    def open(self, learner: Learner) -> None:
        kept: list[list[str]] = []
        make_folder(self.path.parent)
        try:
            if learner.step and self.path.is_file():
                with self.path.open(newline="") as file:
                    rows = [row for row in list(csv.reader(file))[1:] if len(row) == 3 and row[0].isdigit()]
                kept = [row for row in rows if int(row[0]) <= learner.step]
            self._file = self.path.open("w", newline="", buffering=1)
            csv.writer(self._file).writerows([["step", "name", "value"], *kept])
        except OSError as error:
            raise UserError(f"cannot write the log {self.path}: {(error.strerror or str(error)).lower()}") from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        try:
            csv.writer(self._file).writerows([step, name, repr(value)] for name, value in numbers.items())
        except OSError as error:
            raise UserError(f"cannot write the log {self.path}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()
        self._file = None


class TensorBoard(Tracker):
    """Event files in `folder`, for `tensorboard --logdir folder`; a resume hides what came after its step.

    >>> from miniai.train.data import Loader
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> track = TensorBoard("events", every=2)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[track]).fit(1)
    >>> len(list(Path("events").glob("events.out.tfevents.*")))
    1
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 10) -> None:
        super().__init__(every)
        self.folder = Path(folder)
        self._writer: Any = None

    def open(self, learner: Learner) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard is not installed: pip install 'miniai[track]'") from error
        try:
            self._writer = SummaryWriter(str(self.folder), purge_step=learner.step + 1 if learner.step else None)
        except OSError as error:
            raise UserError(f"cannot write events into {self.folder}: {error.strerror or error}") from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
        self._writer = None


class WandB(Tracker):
    """A run of Weights & Biases in `folder`; offline unless `mode="online"` asks for the network.

    `wandb sync folder/wandb/offline-run-…` uploads an offline run later. `config` is what its page should say of the
    training: batch size, model, data. A resumed fit is a new run that begins at its step; give both the same `group`.
    W&B's own process writes the last of it when this one ends.

    >>> from torch import nn
    >>> from miniai.train.data import Loader
    >>> model = nn.Linear(2, 1)
    >>> tracker = WandB("runs", project="clothes", mode="disabled", every=1, config={"batch_size": 8})
    >>> data = Loader(torch.randn(32, 2), 8, seed=0)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[tracker])
    >>> learner.fit(1)  # "disabled" writes nothing; "offline", the default, writes runs/wandb
    >>> learner.step, os.listdir("runs")
    (4, [])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        project: str = "miniai",
        *,
        every: int = 10,
        mode: str = "offline",
        name: str | None = None,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(every)
        if mode not in ("offline", "online", "disabled"):
            raise ValueError(f"W&B runs offline, online or disabled, not {mode!r}")
        self.folder, self.project, self.mode = Path(folder), project, mode
        self.name_of_run, self.group, self.config = name, group, dict(config or {})
        self._run: Any = None

    def open(self, learner: Learner) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("wandb is not installed: pip install 'miniai[track]'") from error
        make_folder(self.folder)
        self._run = wandb.init(
            project=self.project,
            name=self.name_of_run,
            group=self.group,
            config=self.config | {"first_step": learner.step},
            dir=str(self.folder),
            mode=self.mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()
        self._run = None
