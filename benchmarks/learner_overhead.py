"""What the Learner's loop and its usual callbacks cost beside the same steps written out, in processor time.

python benchmarks/learner_overhead.py
"""

import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from miniai.recipes.model_card import machine
from miniai.train.callbacks import Device, GradientClip, Precision
from miniai.train.checkpoint import Checkpoint
from miniai.train.data import Loader
from miniai.train.ema import EMA
from miniai.train.guards import Interrupt, NaNGuard
from miniai.train.learner import Learner
from miniai.train.progress import Progress, Recorder
from miniai.train.schedule import Budget, Schedule, warmup_constant_cosine


def added_seconds(folder: str) -> float:
    """CPU seconds that the loop and its usual callbacks add to a step."""
    torch.set_num_threads(1)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(200, 2)

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return model(batch).square().mean()

    callbacks = [
        Device("cpu"),
        Precision(),
        NaNGuard(),
        GradientClip(),
        Schedule(warmup_constant_cosine()),
        EMA(),
        Recorder(Path(folder) / "log.jsonl"),
        Progress(),
        Checkpoint(Path(folder) / "checkpoints"),
        Budget(steps=10**6),
        Interrupt(),
    ]
    learner = Learner(model, Loader(x, 2, seed=0), objective, optimizer, callbacks=callbacks)

    def looped() -> None:
        learner.fit(learner.epoch + 1)

    def bare() -> None:
        for i in range(100):
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(model, x[2 * i : 2 * i + 2], torch.Generator())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def seconds_per_step(work: Callable[[], None]) -> float:
        started = time.process_time()  # other processes on the machine do not count
        work()
        return (time.process_time() - started) / 100

    looped()  # the first checkpoint and all imports
    return min(seconds_per_step(looped) for _ in range(5)) - min(seconds_per_step(bare) for _ in range(5))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seconds = added_seconds(folder)
        print(f"`python benchmarks/learner_overhead.py`, {date.today()}, {machine()}: {1e3 * seconds:.2f} ms a step")
