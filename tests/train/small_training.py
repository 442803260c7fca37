"""A real training of a few hundred weights, with everything that has a state, that other processes run and kill."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from miniai.train.callback import Callback
from miniai.train.callbacks import Device, GradientClip, Precision
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader
from miniai.train.ema import EMA
from miniai.train.guards import Interrupt, NaNGuard
from miniai.train.learner import Learner
from miniai.train.progress import Recorder
from miniai.train.schedule import Budget, Schedule, warmup_constant_cosine


class NoisyPictures:
    """24 pictures, each with a brightness drawn anew in each epoch."""

    def __init__(self) -> None:
        self.pictures = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.pictures)

    def augmented(self, index: int, generator: torch.Generator) -> dict[str, Tensor | int]:
        return {"image": self.pictures[index] + torch.randn(1, generator=generator), "index": index}


def denoising(model: nn.Module, batch: Tensor | dict, generator: torch.Generator) -> dict[str, Tensor]:
    image = (batch if isinstance(batch, Tensor) else batch["image"]).to(memory_format=torch.channels_last)
    noise = torch.randn(image.shape, generator=generator)
    loss = (model(image + noise) - noise).square().mean()
    return {"loss": loss, "noise": noise.mean()}


class SlowDown(Callback):
    """Stretches the steps, so that a kill can meet any of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before_batch(self, learner: Learner) -> None:
        time.sleep(self.seconds)


def make_learner(folder: Path, n_steps: int, seconds_per_step: float = 0.0) -> Learner:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.2), nn.Conv2d(8, 3, 3, padding=1)
    ).to(memory_format=torch.channels_last)
    data = NoisyPictures()
    callbacks = [
        Device("cpu"),
        Precision(),
        NaNGuard(every=10),
        GradientClip(1.0),
        Schedule(warmup_constant_cosine(0.1, 0.5)),
        EMA(0.99),
        Recorder(folder / "log.jsonl", every=3),
        Checkpoint(folder / "checkpoints", every_minutes=None, every_steps=5),
        Budget(steps=n_steps),
        Interrupt(),
        SlowDown(seconds_per_step),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    train = Loader(data, 4, seed=3)
    valid = Loader(data.pictures, 5, seed=3, shuffle=False, drop_last=False)
    return Learner(model, train, denoising, optimizer, valid=valid, callbacks=callbacks, seed=7)


def run(folder: str, n_steps: int, seconds_per_step: float = 0.0) -> None:
    """Train, from the newest checkpoint in `folder` on if there is one."""
    learner = make_learner(Path(folder), n_steps, seconds_per_step)
    resume(learner, Path(folder) / "checkpoints")
    # What stands in the global generator must not matter to a resumed run.
    torch.manual_seed(int(time.time()))
    learner.fit()
