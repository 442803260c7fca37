"""What every stage of a training shares: its callbacks, its optimizer, and the moment it counts as finished."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miniai.base.device import training_dtype
from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.nn.learning import learning
from miniai.nn.unet import UNetConfig
from miniai.recipes.text_to_image_config import StageConfig
from miniai.train.callback import Callback
from miniai.train.callbacks import Device, Every, GradientClip, Precision
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader, near
from miniai.train.distributed import Accelerate, is_first, n_launched, wait_for_all
from miniai.train.ema import EMA
from miniai.train.guards import Interrupt, NaNGuard
from miniai.train.learner import Learner, Objective
from miniai.train.muon import Muon
from miniai.train.progress import Progress, Recorder
from miniai.train.schedule import Budget, Schedule, warmup_constant_cosine


def check_apart(data: Path, out: Path) -> None:
    """Raise UserError for a folder of results within the pictures, which would be taken for pictures afterwards."""
    if out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"--out {out} lies within --data {data}: choose a folder outside of it")


def check_sample_minutes(minutes: float) -> None:
    if not minutes > 0:
        raise UserError(f"--sample-minutes {minutes:g} is not possible: give a number above 0")


def refuse_inpainting(unet: UNetConfig, model: object) -> None:
    """Raise UserError for a U-Net that sees more than the latents that it is to paint."""
    if unet.in_channels != unet.out_channels:
        raise UserError(f"{model} is an inpainting model, of {unet.in_channels} channels: begin from one that is not")


class StageInterrupted(Exception):  # noqa: N818 (a person's wish, not an error)
    """Ctrl-C was pressed; the stage has written its checkpoint and goes on from there with --resume."""


@dataclass(frozen=True)
class StageRun:
    """Where, how and for how long a stage runs. `minutes` or `steps` bound it, whichever is given."""

    name: str
    folder: Path
    device: torch.device
    minutes: float | None
    steps: int | None
    sample_minutes: float = 4.0
    checkpoint_minutes: float = 3.0
    compiler: str | None = None  # backend of torch.compile, such as "inductor", that the stage's steps run through

    @property
    def record_path(self) -> Path:
        return self.folder / "done.json"

    @property
    def finished(self) -> bool:
        return self.record_path.is_file()

    def kept(self, result: Path) -> bool:
        """Whether nothing is left to do: the stage is finished, and what it made is in the file `result`. A run killed
        between the two writes goes on from its last checkpoint, where no step is left, and writes both."""
        return self.finished and result.is_file()

    def record(self) -> dict[str, Any]:
        """What the finished stage says of itself: steps, images, minutes, loss."""
        return read_json(self.record_path)


def run_stage(
    run: StageRun,
    config: StageConfig,
    model: nn.Module,
    data: Any,
    objective: Objective,
    seed: int,
    *,
    sample: Callable[[Path], None] | None = None,
    callbacks: Iterable[Callback] = (),
    optimizer: Callable[[nn.Module, StageConfig], torch.optim.Optimizer] | None = None,
) -> None:
    """Train `model` in place until the stage's budget is spent, from its newest checkpoint if there is one; by the
    config's optimizer, or by what `optimizer(model, config)` makes. With warm-up and a cosine's fall of the rate it is
    what is elsewhere called `fit_one_cycle`: a Learner with callbacks, and no loop of its own.

    At the end the model holds the averaged weights, and `run.record_path` says what was done. `sample(path)` draws a
    picture of the model's state, with the averaged weights in place, every `run.sample_minutes`.
    Of several processes that a launcher started (torchrun, `accelerate launch`), each takes its part of every batch,
    and the first alone writes. Raises StageInterrupted after Ctrl-C, once the checkpoint is written.
    """
    channels_last(model)
    model.to(run.device)
    if len(data) < config.batch_size and is_first():
        print(f"{run.name}: each batch is all there is, {len(data)} and not {config.batch_size}", file=sys.stderr)
    few_steps = run.steps is not None and run.steps < 100  # then each must count in the average, and show in the plot
    ema = EMA(config.ema, every=1 if few_steps else 4, each_first=40)
    recorder = Recorder(run.folder / "log.jsonl", every=1 if few_steps else 20)
    budget, interrupt = Budget(run.minutes, run.steps), Interrupt()

    def paint(learner: Learner) -> None:
        if sample is not None:
            with ema.swap(model):
                sample(run.folder / "samples" / f"step-{learner.step:07d}.png")

    learner = Learner(
        model,
        Loader(near(data, run.device), min(config.batch_size, len(data)), seed=seed),
        objective,
        (optimizer or make_optimizer)(model, config),
        callbacks=[
            Device(run.device) if n_launched() == 1 else Accelerate(cpu=run.device.type == "cpu", mixed_precision="no"),
            Precision(training_dtype(run.device)),
            NaNGuard(),
            GradientClip(config.clip_norm),
            Schedule(warmup_constant_cosine(config.warmup, config.decay_from)),
            ema,
            recorder,
            Progress(label=run.name),
            Checkpoint(run.folder / "checkpoints", every_minutes=run.checkpoint_minutes),
            Every(paint, minutes=run.sample_minutes),
            budget,
            interrupt,
            *callbacks,
        ],
        seed=seed,
    )
    resume(learner, run.folder / "checkpoints")
    with learning(model):
        learner.fit()
    another_was = run.steps is not None and learner.step < run.steps  # interrupted, of several processes
    if interrupt.received is not None or another_was:
        raise StageInterrupted(f"the {run.name} stage stopped at step {learner.step}: go on with --resume")
    if is_first():
        paint(learner)
        recorder.plot(run.folder / "loss.png")
        recorder.plot_rates(run.folder / "rates.png")
    model.load_state_dict(ema.model_state(model))
    model.eval()
    if is_first():
        write_json(
            run.record_path,
            {
                "stage": run.name,
                "steps": learner.step,
                "images": learner.step * learner.train.batch_size,
                "minutes": round(budget.seconds() / 60, 2),
                "loss": round(recorder.smooth_loss(), 5),
                "parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            },
        )
    wait_for_all()  # before anyone reads it


def check_compiler(compiler: str, device: torch.device) -> None:
    """Raise UserError if torch.compile has no compiler to work with: on a CPU it writes C++."""
    commands = (os.environ.get("CXX", ""), "g++", "clang++")
    if compiler == "inductor" and device.type == "cpu" and not any(map(shutil.which, commands)):
        raise UserError("--compile needs a C++ compiler and finds none: install g++, or leave --compile out")


def compiled(function: Callable[..., Any], compiler: str | None, device: torch.device) -> Callable[..., Any]:
    """`function` through torch.compile with that backend, on a GPU as CUDA graphs too; None: as it is."""
    if compiler is None:
        return function
    mode = "reduce-overhead" if compiler == "inductor" and device.type == "cuda" else None
    return torch.compile(function, backend=compiler, dynamic=False, mode=mode)


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Modules built inside draw their first weights from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def make_optimizer(model: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """AdamW or Muon, as the config says. Matrices and kernels decay; biases, norms and other vectors do not (as in
    Radford et al. 2021, section 2.5). Embeddings are rows of which a batch sees a few: AdamW's in either case."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = {name: weight for name, weight in trained.items() if weight.ndim >= 2}
    vectors: dict[str, Any] = {"params": [w for w in trained.values() if w.ndim < 2], "weight_decay": 0.0}
    shared: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW([{"params": list(matrices.values())}, vectors], fused=True, **shared)
    rows = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    embeddings: dict[str, Any] = {"params": [w for w in matrices.values() if id(w) in rows]}
    by_muon: dict[str, Any] = {"orthogonal": True, "keep_size": False, "momentum": 0.95, "n_iterations": 5}
    by_muon["params"] = [w for w in matrices.values() if id(w) not in rows]
    return Muon([shared | group for group in (by_muon, embeddings, vectors) if group["params"]])


def channels_last(model: nn.Module) -> nn.Module:
    """Convolution weights in the memory order that both CPU and GPU kernels are fastest with."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
