"""`miniai train sweep`: one small network on Fashion-MNIST, trained with every combination of batch size, learning
rate, first weights and optimizer; a table of what came of each, and plots.

The network has no norms, which would hide what first weights do.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import atomic_file, read_json, write_json
from miniai.base.plots import curves
from miniai.base.seeds import make_generator
from miniai.nn.general_relu import GeneralReLU
from miniai.nn.init import init_glorot, init_kaiming, lsuv
from miniai.recipes.fashion import check_above_0, keep_config, load_both
from miniai.recipes.fashion_classifier import BATCH, ClassifierObjective
from miniai.recipes.training import StageInterrupted, initial_weights
from miniai.train.callback import Callback, CancelFitException
from miniai.train.callbacks import Device
from miniai.train.checkpoint import Checkpoint
from miniai.train.checkpoint import resume as go_on
from miniai.train.data import Loader
from miniai.train.fashion_mnist import LabelledImages
from miniai.train.guards import Interrupt
from miniai.train.learner import Learner
from miniai.train.progress import Progress, Recorder
from miniai.train.schedule import Budget, Schedule, warmup_constant_cosine

Weights = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Weights, float], torch.optim.Optimizer]] = {
    "sgd": lambda weights, rate: torch.optim.SGD(weights, rate),
    "momentum": lambda weights, rate: torch.optim.SGD(weights, rate, momentum=0.9),
    "rmsprop": lambda weights, rate: torch.optim.RMSprop(weights, rate),
    "adam": lambda weights, rate: torch.optim.Adam(weights, rate),
    "adamw": lambda weights, rate: torch.optim.AdamW(weights, rate),
}
INITS = ("torch", "glorot", "kaiming", "lsuv")
MOST_TRAININGS = 200
LSUV_PICTURES = 256
COLUMNS = ("optimizer", "learning rate", "batch size", "first weights", "accuracy", "loss", "seconds")


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    batch_size: int
    learning_rate: int | float
    init: str
    optimizer: str

    @property
    def name(self) -> str:
        return f"{self.optimizer}, rate {self.learning_rate:g}, batch {self.batch_size}, {self.init}"

    @property
    def folder(self) -> str:
        return f"{self.optimizer}-rate{self.learning_rate:g}-batch{self.batch_size}-{self.init}"


@dataclass(frozen=True)
class SweepConfig:
    """The whole sweep. `limit` is the number of training pictures, at most (None: all); `seed` that of weights and
    order, the same in every training. Raises UserError for a value that cannot be trained with."""

    batch_sizes: tuple[int, ...]
    learning_rates: tuple[int | float, ...]
    inits: tuple[str, ...]
    optimizers: tuple[str, ...]
    epochs: int | float = 1
    limit: int | None = None
    channels: tuple[int, ...] = (16, 32, 64, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        check_above_0("--epochs", self.epochs)
        for option, given, known in (
            ("--inits", self.inits, INITS),
            ("--optimizers", self.optimizers, tuple(OPTIMIZERS)),
        ):
            for name in given:
                if name not in known:
                    raise UserError(f"{option}: there is no {name!r}, there are {', '.join(known)}")
        for option, numbers in (("--batch-sizes", self.batch_sizes), ("--learning-rates", self.learning_rates)):
            for number in numbers:
                if not (math.isfinite(number) and number > 0):
                    raise UserError(f"{option} {number} is not possible: give numbers above 0")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit} is not possible: give a number above 0")
        if not 1 <= len(self.trials()) <= MOST_TRAININGS:
            raise UserError(f"these are {len(self.trials())} trainings: list what makes 1 to {MOST_TRAININGS} of them")

    def trials(self) -> list[Trial]:
        """Every combination, each once."""
        lists = (self.batch_sizes, self.learning_rates, self.inits, self.optimizers)
        return list(dict.fromkeys(Trial(*values) for values in itertools.product(*lists)))


class StopWhenLost(Callback):
    """A training whose loss is no number any more has shown what it can do; the sweep goes on with the next."""

    def __init__(self) -> None:
        self.lost = False

    def after_loss(self, learner: Learner) -> None:
        if learner.training and not bool(learner.loss.isfinite()):
            self.lost = True
            raise CancelFitException("the loss is no number any more")


def run_sweep(
    out: Path, config: SweepConfig, *, data: Path | None = None, resume: bool = False, device: str = "auto"
) -> str:
    """Train every combination in a folder of its own in `out`; returns the table, as `out/table.md` then has it.

    Finished trainings are kept by a resume, and one that was broken off goes on. Raises UserError if the data is not
    there, or `out` is in use.
    """
    train, test = load_both(data)
    place = pick_device(device)
    keep_config(out, config, resume)
    n_items = min(len(train), config.limit or len(train))
    spread = torch.linspace(0, len(train) - 1, n_items).long()
    few = LabelledImages(train.images[spread], train.labels[spread], train.source)
    found = [run_trial(trial, config, out / trial.folder, few, test, place) for trial in config.trials()]
    found.sort(key=lambda result: -result["accuracy"])
    text = table(found)
    with atomic_file(out / "table.md") as file:
        file.write(text.encode())
    plot(out, config, found)
    return text


def run_trial(
    trial: Trial,
    config: SweepConfig,
    folder: Path,
    train: LabelledImages,
    test: LabelledImages,
    device: torch.device,
) -> dict[str, Any]:
    """Train once, or go on, and return what `folder/result.json` then says: `accuracy` and `loss` on the test pictures
    (0 and None where the loss came to be no number), `seconds`, and the `curve` of the smoothed loss over pictures."""
    path = folder / "result.json"
    if path.is_file():
        return read_json(path)
    pictures = train.scaled()
    model = first_network(trial.init, config, pictures[:LSUV_PICTURES])
    batch_size = min(trial.batch_size, len(train))
    recorder, interrupt, lost = Recorder(folder / "log.jsonl", every=5), Interrupt(), StopWhenLost()
    budget = Budget(steps=max(1, round(config.epochs * (len(train) // batch_size))))
    learner = Learner(
        model,
        Loader((pictures, train.labels), batch_size, seed=config.seed),
        ClassifierObjective(0.0),
        OPTIMIZERS[trial.optimizer](model.parameters(), float(trial.learning_rate)),
        valid=Loader((test.scaled(), test.labels), min(BATCH, len(test)), seed=0, shuffle=False, drop_last=False),
        callbacks=[
            Device(device),
            lost,
            Schedule(warmup_constant_cosine(0.05, 0.3)),
            recorder,
            Progress(label=trial.name),
            Checkpoint(folder / "checkpoints", every_minutes=3),
            budget,
            interrupt,
        ],
        seed=config.seed,
    )
    go_on(learner, folder / "checkpoints")
    learner.fit()
    if interrupt.received is not None:
        raise StageInterrupted(f"the sweep stopped in {trial.name}: go on with --resume")
    reached: Mapping[str, float] = {} if lost.lost else learner.validate()
    steps, losses = recorder.history.get("loss_smooth", ([], []))
    result = {
        **asdict(trial),
        "accuracy": reached.get("accuracy", 0.0),
        "loss": reached.get("loss"),
        "seconds": round(budget.seconds(), 1),
        "curve": [[step * batch_size for step in steps], losses],
    }
    write_json(path, result)
    return result


def first_network(init: str, config: SweepConfig, pictures: Float[Tensor, "b 1 h w"]) -> nn.Module:
    """Convolutions that halve height and width, with rectifiers of mean 0 between them, and a linear layer; `pictures`
    are those that LSUV looks at."""
    relu, channels = GeneralReLU(leak=0.1, subtract=0.4), (1, *config.channels)
    side = math.ceil(pictures.shape[-1] / 2 ** len(config.channels))
    layers: list[nn.Module] = []
    with initial_weights(config.seed):
        for c_in, c_out in itertools.pairwise(channels):
            layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), GeneralReLU(leak=0.1, subtract=0.4)]
        layers += [nn.Flatten(), nn.Linear(channels[-1] * side**2, 10)]
    model = nn.Sequential(*layers)
    generator = make_generator(config.seed)
    if init == "glorot":
        init_glorot(model, generator)
    elif init != "torch":
        init_kaiming(model, generator, relu=relu)
    if init == "lsuv":
        rectified = [(layers[i], layers[i + 1]) for i in range(0, 2 * len(config.channels), 2)]
        lsuv(model, pictures, pairs=[*rectified, (layers[-1], layers[-1])])
    return model


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, in the order given."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | ---: | ---: | --- | ---: | ---: | ---: |"]
    for one in results:
        loss = "no number" if one["loss"] is None else f"{one['loss']:.3f}"
        settings = (one["optimizer"], f"{one['learning_rate']:g}", one["batch_size"], one["init"])
        cells = (*settings, f"{100 * one['accuracy']:.1f} %", loss, one["seconds"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def plot(out: Path, config: SweepConfig, results: list[dict[str, Any]]) -> None:
    """`losses.png`: the loss of every training over the pictures seen; `accuracy.png`, where there are several learning
    rates, or else batch sizes: the accuracy over them, a line for all that is otherwise alike."""
    by_trial = {_trial(one): one for one in results}
    losses = {trial.name: tuple(one["curve"]) for trial, one in by_trial.items() if one["curve"][0]}
    if losses:
        curves(out / "losses.png", losses, xlabel="pictures", ylabel="loss", log_y=True)
    over = next((name for name in ("learning_rate", "batch_size") if len({one[name] for one in results}) > 1), None)
    if over is None:
        return
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for trial, one in sorted(by_trial.items(), key=lambda pair: getattr(pair[0], over)):
        rest = {name: value for name, value in asdict(trial).items() if name != over}
        xs, ys = lines.setdefault(", ".join(f"{value}" for value in rest.values()), ([], []))
        xs.append(getattr(trial, over))
        ys.append(100 * one["accuracy"])
    curves(out / "accuracy.png", lines, xlabel=over.replace("_", " "), ylabel="accuracy, %", log_x=True)


def _trial(result: Mapping[str, Any]) -> Trial:
    return Trial(*(result[name] for name in ("batch_size", "learning_rate", "init", "optimizer")))
