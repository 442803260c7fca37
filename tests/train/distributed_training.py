"""A training that one process or several run together, each writing down what it saw."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.train.augment import Augment, RandomCrop
from miniai.train.callback import Callback, CancelFitException
from miniai.train.callbacks import GradientClip
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader
from miniai.train.distributed import Accelerate
from miniai.train.ema import EMA
from miniai.train.learner import Learner
from miniai.train.progress import Recorder
from miniai.train.schedule import Schedule
from miniai.train.train_learner import TrainLearner


class Seen(Callback):
    """The items of each batch, the losses, and a number from the objective's own generator."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.items: list[list[int]] = []
        self.losses: list[float] = []
        self.noise: list[float] = []
        self.n_saves = 0
        self.stop_at = stop_at

    def after_step(self, learner: Learner) -> None:
        self.items.append(learner.batch[2].tolist())
        self.losses.append(learner.loss.item())
        self.noise.append(torch.rand(1, generator=learner.generator()).item())

    def before_save(self, learner: Learner) -> None:
        self.n_saves += 1

    def after_batch(self, learner: Learner) -> None:
        if learner.training and learner.step == self.stop_at:
            raise CancelFitException("enough")


def train(folder: Path, n_epochs: int, stop_at: int | None = None, batch_size: int = 4) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # each process starts elsewhere: DDP makes them equal
    accelerate = Accelerate(cpu=True)
    if accelerate.accelerator.is_main_process:
        torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    pictures = torch.rand(22, 1, 4, 4, generator=make_generator(1)) * 2 - 1
    data = (pictures, torch.arange(22) % 3, torch.arange(22))
    seen = Seen(stop_at)
    recorder = Recorder(folder / "log.jsonl", every=1)
    callbacks = [accelerate, seen, recorder, EMA(0.9), GradientClip(0.5), Augment(RandomCrop(1))]
    callbacks += [Schedule(lambda fraction: 1 - fraction / 2), Checkpoint(folder / "checkpoints", every_minutes=None)]
    learner = TrainLearner(
        model,
        Loader(data, batch_size, seed=3),
        lambda prediction, target, index: F.cross_entropy(prediction, target),
        torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        callbacks=callbacks,
        valid=Loader(data, 5, seed=3, shuffle=False, drop_last=False),
    )
    resume(learner, folder / "checkpoints")
    learner.fit(n_epochs)
    return {
        "items": seen.items,
        "losses": seen.losses,
        "noise": seen.noise,
        "saves": seen.n_saves,
        "valid": learner.valid_scalars,
        "step": learner.step,
        "stop_reason": learner.stop_reason,
        "recorded": recorder.history.get("loss", [[], []])[0],
        "weights": torch.cat([weight.detach().flatten() for weight in model.parameters()]).tolist(),
    }


def run(
    rank: int, world_size: int, folder: str, name: str, n_epochs: int, stop_at: list[int | None], batch_size: int
) -> None:
    """As one of `world_size` processes; a launcher would set the same variables."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({key: str(value) for key, value in variables.items()}, GLOO_SOCKET_IFNAME="lo")
    meeting = f"file://{folder}/{name}.meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    try:
        found = train(Path(folder) / "run", n_epochs, stop_at[rank], batch_size)
    except UserError as error:
        found = {"error": str(error)}
    (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
