"""What a person sees of a training while it runs, and what is left of it afterwards."""

import io
import json
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.base.plots import Plot, curves
from miniai.train.callback import Callback
from miniai.train.data import batch_size_of
from miniai.train.learner import Learner
from miniai.train.schedule import find_budget, fraction_done


class Recorder(Callback):
    """Keeps loss, other scalars and learning rate of every `every`-th step, and the validation's means.

    `history` maps a name to (steps, values). With `path`, each entry is also one JSON line there, at once; a resume
    cuts the file back to where its checkpoint stood, so that in the end it is the same, byte for byte, as without the
    break.
    `loss_smooth` is the average of the losses so far, weighted down by `beta` per step (Adam's, with its correction).

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> recorder = Recorder("log.jsonl", every=2)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[recorder])
    >>> learner.fit(1)
    >>> recorder.history["loss"][0], sorted(recorder.history)
    ([2, 4], ['loss', 'loss_smooth', 'lr'])
    >>> picture = recorder.plot("loss.png")
    """

    order = 60
    main_process_only = True

    def __init__(self, path: str | os.PathLike[str] | None = None, every: int = 10, beta: float = 0.98) -> None:
        self.path = None if path is None else Path(path)
        self.every, self.beta = every, beta
        self.history: dict[str, tuple[list[int], list[float]]] = {}
        self._average: Tensor | None = None  # on the loss's device: reading it would wait for the GPU
        self._weight = 0.0
        self._n_bytes = 0
        self._file: io.FileIO | None = None

    def before_fit(self, learner: Learner) -> None:
        if self.path is None or self._file is not None:
            return
        make_folder(self.path.parent)
        try:
            self._file = open(self.path, "r+b" if self._n_bytes else "wb", buffering=0)  # noqa: SIM115
            n_bytes = self._file.seek(0, os.SEEK_END)
            self._file.truncate(self._n_bytes)
            self._file.seek(self._n_bytes)
        except OSError as error:
            raise UserError(f"cannot continue the log {self.path}: {(error.strerror or str(error)).lower()}") from error
        if n_bytes < self._n_bytes:
            raise UserError(f"the log {self.path} is shorter than its checkpoint says: put it back, or start anew")

    def after_step(self, learner: Learner) -> None:
        loss = learner.loss.detach().float()
        average = torch.zeros_like(loss) if self._average is None else self._average.to(loss.device)
        self._average = torch.lerp(loss, average, self.beta)
        self._weight = self.beta * self._weight + 1 - self.beta
        if learner.step % self.every == 0:
            rate = learner.optimizer.param_groups[0]["lr"]
            scalars = {name: value.item() for name, value in learner.scalars.items()}
            self.add(learner, scalars | {"loss_smooth": self.smooth_loss(), "lr": float(rate)})

    def after_validate(self, learner: Learner) -> None:
        self.add(learner, {f"valid_{name}": value for name, value in learner.valid_scalars.items()})

    def cleanup(self, learner: Learner) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def smooth_loss(self) -> float:
        """The smoothed loss; NaN before the first step."""
        return float("nan") if self._average is None else self._average.item() / self._weight

    def add(self, learner: Learner, values: dict[str, float]) -> None:
        """Record `values` at the learner's step."""
        for name, value in values.items():
            steps, series = self.history.setdefault(name, ([], []))
            steps.append(learner.step)
            series.append(value)
        if self._file is not None:
            line = json.dumps({"step": learner.step, "epoch": learner.epoch} | values).encode() + b"\n"
            try:
                n_written = 0
                while n_written < len(line):  # as a disk fills up, it takes a part first, and only then refuses
                    n_written += self._file.write(line[n_written:]) or 0
            except OSError as error:
                raise UserError(f"cannot write the log {self.path}: {error.strerror}") from error
            self._n_bytes += len(line)

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        names: Sequence[str] = ("loss", "loss_smooth", "valid_loss"),
        skip: int = 0,
        log_y: bool = False,
    ) -> Plot:
        """Draw the named series that there are, over steps, into a PNG, and inline in a notebook.

        The steps up to `skip` are left out: the first losses are often so high that nothing else can be seen.
        """
        lines = {}
        for name in names:
            steps, values = self.history.get(name, ([], []))
            first = bisect_right(steps, skip)
            if steps[first:]:
                lines[name] = (steps[first:], values[first:])
        return curves(path, lines, xlabel="step", ylabel=names[0], log_y=log_y)

    def plot_rates(self, path: str | os.PathLike[str] | None = None) -> Plot:
        """Draw the learning rate over steps."""
        return self.plot(path, ("lr",))

    def state_dict(self) -> dict[str, Any]:
        if self._file is not None:
            os.fsync(self._file.fileno())  # what the checkpoint counts on must be there after a power cut
        history = {
            name: {"steps": torch.tensor(steps), "values": torch.tensor(values, dtype=torch.float64)}
            for name, (steps, values) in self.history.items()
        }
        return {"history": history, "average": self._average, "weight": self._weight, "n_bytes": self._n_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {
            name: (series["steps"].tolist(), series["values"].tolist()) for name, series in state["history"].items()
        }
        self._average, self._weight, self._n_bytes = state["average"], state["weight"], state["n_bytes"]


class Progress(Callback):
    """A bar with loss, images per second and the time left; a plain line each half minute where there is no terminal.

    The time left is the Budget's, else that of `n_epochs`. The loss is read from its device only when it is shown.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[Progress()])
    >>> learner.fit(1)
    """

    order = 70
    main_process_only = True

    def __init__(
        self, every_seconds: int | float = 0.5, every_seconds_in_a_file: int | float = 30, label: str = ""
    ) -> None:
        self.label = label
        self.every_seconds, self.every_seconds_in_a_file = every_seconds, every_seconds_in_a_file
        self._bar: tqdm | None = None
        self._loss = float("nan")
        self._n_images = 0

    def before_fit(self, learner: Learner) -> None:
        now = time.monotonic()
        self._first = self._last = (now, fraction_done(learner))
        self._n_images = 0
        self._interval = self.every_seconds if sys.stderr.isatty() else self.every_seconds_in_a_file
        if sys.stderr.isatty():
            self._bar = tqdm(total=100, desc=self.label or None, bar_format="{desc}{percentage:5.1f}% {bar} {postfix}")

    def after_batch(self, learner: Learner) -> None:
        if not learner.training:
            return
        self._n_images += batch_size_of(learner.batch)
        if time.monotonic() - self._last[0] >= self._interval:
            self.show(learner)

    def cleanup(self, learner: Learner) -> None:
        if self._n_images:
            self.show(learner)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, learner: Learner) -> None:
        """Show where the training stands, now."""
        now, fraction = time.monotonic(), fraction_done(learner)
        rate = self._n_images / max(1e-9, now - self._last[0])
        self._last, self._n_images = (now, fraction), 0
        text = f"step {learner.step} · loss {learner.loss.item():.4f} · {rate:.1f} images/s"
        if (left := self._seconds_left(learner, now, fraction)) is not None:
            text += f" · {_clock(left)} left"
        if "loss" in learner.valid_scalars:
            text += f" · valid {learner.valid_scalars['loss']:.4f}"
        if self._bar is None:
            print(f"{self.label} {text}".strip(), file=sys.stderr, flush=True)
        else:
            self._bar.n = round(100 * fraction, 1)
            self._bar.set_postfix_str(text)

    def _seconds_left(self, learner: Learner, now: float, fraction: float) -> float | None:
        budget = find_budget(learner)
        by_time = None
        if budget is not None and budget.minutes is not None:
            by_time = max(0.0, 60 * budget.minutes - budget.seconds())
        if fraction <= self._first[1]:
            return by_time
        by_pace = (1 - fraction) * (now - self._first[0]) / (fraction - self._first[1])
        return by_pace if by_time is None else min(by_pace, by_time)


def _clock(seconds: int | float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
