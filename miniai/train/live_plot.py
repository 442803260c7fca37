"""The loss, drawn while the training runs."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from miniai.base.plots import Plot
from miniai.train.callback import Callback
from miniai.train.learner import Learner
from miniai.train.progress import Recorder


class LivePlot(Callback):
    """Draws the Recorder's curves anew every `every_seconds` and at the end: into `path`, into a notebook, or both.

    - show: what to do with each plot besides; in a notebook, `lambda plot: handle.update(plot)` with
      `handle = IPython.display.display(display_id=True)` redraws one picture in its place.

    Needs a Recorder among the callbacks. Drawing takes about a fifth of a second.

    >>> import torch
    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> callbacks = [Recorder(every=1), LivePlot("loss.png")]
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=callbacks).fit(1)
    >>> open("loss.png", "rb").read(4)[1:]
    b'PNG'
    """

    order = 75
    main_process_only = True

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        every_seconds: int | float = 10,
        names: Sequence[str] = ("loss", "loss_smooth", "valid_loss"),
        show: Callable[[Plot], Any] | None = None,
    ) -> None:
        self.path, self.every_seconds, self.names, self.show = path, every_seconds, names, show
        self._last = 0.0

    def before_fit(self, learner: Learner) -> None:
        self._recorder(learner)
        self._last = time.monotonic()

    def after_batch(self, learner: Learner) -> None:
        if learner.training and time.monotonic() - self._last >= self.every_seconds:
            self.draw(learner)

    def after_fit(self, learner: Learner) -> None:
        self.draw(learner)

    def draw(self, learner: Learner) -> None:
        """Draw now."""
        plot = self._recorder(learner).plot(self.path, self.names)
        if self.show is not None:
            self.show(plot)
        self._last = time.monotonic()

    def _recorder(self, learner: Learner) -> Recorder:
        found = next((callback for callback in learner.callbacks if isinstance(callback, Recorder)), None)
        if found is None:
            raise ValueError("a LivePlot draws what a Recorder keeps: give the Learner a Recorder too")
        return found
