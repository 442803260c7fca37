"""30. Training: every batch forward, backward, one step; every epoch a test on images that were not trained on."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miniai.scratch.autograd import Variable
from miniai.scratch.data import DataLoader, ImageDataset
from miniai.scratch.losses import accuracy, cross_entropy
from miniai.scratch.models import MODELS, N_CLASSES, SIDE
from miniai.scratch.modules import Module
from miniai.scratch.optim import AdamW
from miniai.scratch.rng import Rng
from miniai.scratch.schedules import one_cycle_lr

MEAN, STD = 0.286, 0.353  # of Fashion-MNIST's training pixels
SPLITS = {"train": "train", "test": "t10k"}  # what the files of each are called


@dataclass(frozen=True)
class TrainConfig:
    """`model` is "linear", "mlp" or "cnn"; `max_lr` is the peak of one cycle."""

    model: str = "mlp"
    n_epochs: int = 1
    batch_size: int = 64
    max_lr: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if self.n_epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch size must be at least 1, got {self.n_epochs} and {self.batch_size}")
        if not 0 < self.max_lr < math.inf:
            raise ValueError(f"the learning rate must be above 0, got {self.max_lr}")


def open_split(folder: Path, split: str) -> ImageDataset:
    """The images and labels of "train" or "test", under the names that MNIST gave them, with or without .gz.

    Raises FileNotFoundError that says which files are looked for, ValueError for files that the models cannot take.
    """
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        name = f"{SPLITS[split]}-{kind}"
        paths = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not paths:
            raise FileNotFoundError(f"{folder}: no {name} or {name}.gz here; --data names the folder of the IDX files")
        found.append(paths[0])
    images, labels = found
    data = ImageDataset(images, labels, MEAN, STD)
    if not len(data):
        raise ValueError(f"{images}: the data set is empty")
    if data.size != (SIDE, SIDE):
        raise ValueError(f"{images}: the models take images of {SIDE}×{SIDE} pixels, these have {data.size}")
    if max(data.labels) >= N_CLASSES:
        raise ValueError(
            f"{labels}: the models tell {N_CLASSES} classes apart, 0 to {N_CLASSES - 1}; found label {max(data.labels)}"
        )
    return data


def evaluate(model: Module, data: DataLoader) -> float:
    """The share of images classified rightly. Remembers nothing, so it takes less memory than training."""
    model.eval()
    model.requires_grad_(False)
    right = sum(accuracy(model(Variable(images)).data, labels) * len(labels) for images, labels in data)
    model.requires_grad_(True)
    model.train()
    return right / len(data.dataset)


def train(config: TrainConfig, train_data: ImageDataset, test_data: ImageDataset, say: Callable[[str], None]) -> float:
    """Trains a model from its first weights; returns its accuracy on `test_data`. `say` shows a line of progress."""
    model = MODELS[config.model](Rng(config.seed, 0))
    batches = DataLoader(train_data, config.batch_size, seed=config.seed)
    tests = DataLoader(test_data, 500)
    optimizer = AdamW(model.parameters(), weight_decay=0.01)
    n_steps, start, smooth_loss = config.n_epochs * len(batches), time.monotonic(), 0.0
    for epoch in range(config.n_epochs):
        name = f"epoch {epoch + 1}/{config.n_epochs}"
        for i, (images, labels) in enumerate(batches.epoch(epoch)):
            step = epoch * len(batches) + i
            optimizer.lr = one_cycle_lr(step, config.max_lr, n_steps)
            optimizer.zero_grad()
            loss = cross_entropy(model(Variable(images)), labels)
            loss.backward()
            optimizer.step()
            smooth_loss += (loss.item() - smooth_loss) * max(0.02, 1 / (step + 1))  # a mean over about 50 batches
            left = (time.monotonic() - start) / (step + 1) * (n_steps - step - 1)
            say(f"\r{name}  batch {i + 1}/{len(batches)}  loss {smooth_loss:.3f}  {left:.0f} s left ")
        share = evaluate(model, tests)
        say(f"\r{name}  loss {smooth_loss:.3f}  test accuracy {100 * share:.2f} %".ljust(80) + "\n")
    return share
