"""`miniai train fashion-distil`: a network that paints clothes in many steps teaches one that paints them in a few.

Meng et al. 2023: where the teacher knows classes, a student first learns to say in one call what guidance says in two,
for any scale that it is told; then each student learns to do in one step what its teacher does in two (Salimans & Ho
2022), and becomes the teacher of the next. Each of these phases is a training in a subfolder of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from miniai.base.configs import config_to_dict
from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.images import save_png
from miniai.diffusion.continuous import KarrasTime
from miniai.diffusion.continuous_objectives import EDMDenoiser
from miniai.diffusion.distillation import (
    GuidanceObjective,
    GuidedCondition,
    ProgressiveObjective,
    draw_scales,
    halved,
    told_scale,
)
from miniai.evaluate.cache import fingerprint
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion import (
    CONFIG,
    PADDING,
    as_sheet,
    check_above_0,
    is_trained,
    keep_config,
    load_both,
    load_model,
    save_model,
)
from miniai.recipes.fashion_diffusion_config import N_CLASSES, SIGMA_MAX, SIGMA_MIN, FashionDiffusionConfig
from miniai.recipes.fashion_painting import load_fashion_diffusion, paint, to_patches
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import StageRun, run_stage
from miniai.train.data import TensorDataset
from miniai.train.distributed import is_first

PLAN = "distil.json"
GUIDANCE = (1.0, 3.0)  # where a teacher knows classes
MOST_STEPS = 1024
Objective = Callable[[Any, tuple[Tensor, Tensor], torch.Generator], Tensor]


@dataclass(frozen=True)
class FashionDistilConfig:
    """The whole recipe. `teacher` is the teacher's own, and `weights` the fingerprint of its weights; a scale within
    `guidance_range` is told as an embedding `scale_dim` wide; `stage` is how each phase is optimised."""

    teacher: FashionDiffusionConfig
    weights: str
    from_steps: int = 32
    to_steps: int = 4
    epochs_per_halving: int | float = 2
    guidance_epochs: int | float = 4
    guidance_range: tuple[float, float] | None = None
    scale_dim: int = 64
    stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=1.0, batch_size=128, learning_rate=2e-3, warmup=0.03, decay_from=0.1, ema=0.995, optimizer="muon"
        )
    )


@dataclass(frozen=True)
class Phase:
    """One student: the name of its folder, its recipe, and the ladder whose every second step it will take; None for
    the student of guidance, which learns at all sigmas."""

    name: str
    student: FashionDiffusionConfig
    teacher_sigmas: Tensor | None


def distil_fashion(
    teacher: Path,
    out: Path,
    *,
    from_steps: int = 32,
    to_steps: int = 4,
    epochs_per_halving: int | float = 2,
    guidance_epochs: int | float = 4,
    guidance_range: tuple[float, float] | None = None,
    data: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    stage: StageConfig | None = None,
) -> Path:
    """Distil the training in the folder `teacher` to `to_steps` steps: `out` then paints as it does, in fewer calls.
    Every phase leaves weights and config, log, loss curve and samples in a folder in `out`, and paints by itself, too.

    - from_steps, to_steps: of Euler's method; the first is the second times a power of 2.
    - epochs_per_halving, guidance_epochs: passes over the training pictures in each phase; to listen to a number that
      it has never been told takes a student longer than to take longer steps.
    - guidance_range: the lowest and the highest scale of guidance (None: `GUIDANCE`), where the teacher knows classes.

    Raises UserError if the numbers do not fit, the teacher is of another kind or not finished, the data is not there,
    or `out` is in use.
    """
    check_above_0("--epochs-per-halving", epochs_per_halving)
    check_above_0("--guidance-epochs", guidance_epochs)
    check_steps(from_steps, to_steps)
    place = pick_device(device)
    network, taught = load_teacher(teacher, place)
    numbers = FashionDistilConfig(
        *(taught, fingerprint(network), from_steps, to_steps, epochs_per_halving, guidance_epochs),
        guidance_range=check_guidance(taught, guidance_range),
    )
    config = numbers if stage is None else replace(numbers, stage=stage)
    if (out / CONFIG).exists() and not (out / PLAN).is_file():
        raise UserError(f"{out} holds another training: choose another folder")
    train, _ = load_both(data)
    keep_config(out, config, resume, PLAN)
    students = phases(config)
    if is_first():
        write_json(out / CONFIG, config_to_dict(students[-1].student))
    items = TensorDataset((to_patches(train.scaled(PADDING), taught.patch_size), train.labels))
    n_batches = len(train) // min(config.stage.batch_size, len(train))
    for phase in students:
        epochs = guidance_epochs if phase.teacher_sigmas is None else epochs_per_halving
        n_steps = max(1, round(epochs * n_batches))
        run = StageRun(f"{phase.name} student", out / phase.name, place, None, n_steps)
        network, taught = run_phase(run, phase, network, taught, config, items), phase.student
    save_model(network, out)
    return out


def check_steps(from_steps: int, to_steps: int) -> None:
    """Raises UserError unless halving leads from the first to the second."""
    halvings = math.log2(from_steps / to_steps) if from_steps > 0 and to_steps > 0 else 0.0
    if halvings < 1 or halvings != int(halvings) or from_steps > MOST_STEPS:
        raise UserError(
            f"--from-steps {from_steps} and --to-steps {to_steps}: the first must be the second times 2, 4, 8 or so, "
            f"and at most {MOST_STEPS}"
        )


def check_guidance(teacher: FashionDiffusionConfig, asked: tuple[float, float] | None) -> tuple[float, float] | None:
    """The scales to distil. Raises UserError for such that cannot be, or without any classes to guide towards."""
    if not teacher.knows_classes:
        if asked is not None:
            raise UserError("--guidance-min and --guidance-max are for a teacher that knows classes: leave them out")
        return None
    low, high = asked or GUIDANCE
    if not 0 <= low <= high <= 100:
        raise UserError(
            f"--guidance-min {low:g} and --guidance-max {high:g}: give 0 to 100, the first not above the other"
        )
    return float(low), float(high)


def load_teacher(folder: Path, device: torch.device) -> tuple[UNet2DModel, FashionDiffusionConfig]:
    """A network that can teach, and its recipe. Raises UserError for any other, or an unfinished one."""
    kind = read_json(folder / CONFIG)
    if not isinstance(kind, dict) or kind.get("kind") not in ("edm", "conditional"):
        raise UserError(
            f"{folder} is not a training of fashion-edm or fashion-conditional, which alone can be distilled"
        )
    network, config = load_fashion_diffusion(folder, device)
    if config.ladder or config.guidance_range is not None:
        raise UserError(f"{folder} is distilled already: give the network that was its teacher")
    return network, config


def phases(config: FashionDistilConfig) -> list[Phase]:
    """Guidance first, if any; then each halving. A student's rungs are every second one of its teacher's."""
    student = config.teacher
    found: list[Phase] = []
    if config.guidance_range is not None:
        low, high = config.guidance_range
        student = replace(
            student,
            model=replace(student.model, time_cond_proj_dim=config.scale_dim),
            guidance_range=config.guidance_range,
            guidance_scale=min(max(student.guidance_scale, low), high),
        )
        found.append(Phase("guidance", student, None))
    sigmas, n_steps = config.teacher.edm_sigmas(config.from_steps), config.from_steps
    while n_steps > config.to_steps:
        n_steps //= 2
        own = halved(sigmas)
        student = replace(student, sampler="euler", n_steps=n_steps, ladder=tuple(own.tolist()))
        found.append(Phase(f"{n_steps}-steps", student, sigmas))
        sigmas = own
    return found


def run_phase(
    run: StageRun,
    phase: Phase,
    teacher: UNet2DModel,
    taught: FashionDiffusionConfig,
    config: FashionDistilConfig,
    items: TensorDataset,
) -> UNet2DModel:
    """The student of `phase`, trained from a copy of its teacher, or read where it is finished."""
    if is_trained(run):
        return load_model(UNet2DModel(phase.student.model), run.folder, run.device)
    student = copy_of(teacher, phase.student)

    def show(path: Path) -> None:
        make_folder(path.parent)
        save_png(path, as_sheet(paint(student, phase.student, torch.arange(20) % N_CLASSES, seed=0)))

    if is_first():
        make_folder(run.folder)
        write_json(run.folder / CONFIG, config_to_dict(phase.student))
    objective = DistilObjective(phase, teacher, taught)
    run_stage(run, config.stage, student, items, objective, taught.seed, sample=show)
    save_model(student, run.folder)
    return student


def copy_of(teacher: UNet2DModel, student: FashionDiffusionConfig) -> UNet2DModel:
    """A network for the recipe `student` that says what the teacher says, whatever scale it is told."""
    network = UNet2DModel(student.model)
    network.load_state_dict(network.state_dict() | teacher.state_dict())  # what the teacher lacks begins at zero
    return network


class DistilObjective:
    """What a phase's student learns from (pictures, classes)."""

    def __init__(self, phase: Phase, teacher: UNet2DModel, taught: FashionDiffusionConfig) -> None:
        self.student = phase.student
        denoiser = EDMDenoiser(scaled(teacher, taught), taught.sigma_data)
        if phase.teacher_sigmas is None:
            assert self.student.guidance_range is not None
            self.objective: Objective = GuidanceObjective(
                denoiser,
                torch.tensor(N_CLASSES),
                self.student.guidance_range,
                KarrasTime(SIGMA_MIN, SIGMA_MAX),
                taught.sigma_data,
            )
        else:
            # Unlike in `paint`, estimates are not clipped: where nearly no noise is left, whether a black pixel is at
            # the bound or a hair beyond it is all that F would be about, and students learn better without that.
            self.objective = ProgressiveObjective(denoiser, phase.teacher_sigmas, taught.sigma_data)

    def __call__(
        self, model: nn.Module, batch: tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        images, condition = batch[0].contiguous(memory_format=torch.channels_last), self.condition(batch[1], generator)
        return self.objective(scaled(model, self.student), (images, condition), generator)

    def condition(self, labels: Int64[Tensor, " b"], generator: torch.Generator) -> Any:
        """None without guidance; with it the classes and, in the halvings, a scale for each picture."""
        if self.student.guidance_range is None:
            return None
        if not self.student.ladder:
            return labels
        return GuidedCondition(
            labels, draw_scales(len(labels), *self.student.guidance_range, generator).to(labels.device)
        )


def scaled(model: nn.Module, config: FashionDiffusionConfig) -> Any:
    """`model` as objectives ask it: told the scale of the guidance if it is made for that."""
    dim = config.model.time_cond_proj_dim
    return model if dim is None else told_scale(model, dim)
