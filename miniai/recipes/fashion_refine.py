"""`miniai train fashion-refine`: a network that paints clothes learns on from how its own differ from real ones.

Direct discriminative optimization (Zheng et al. 2025), in rounds: the network paints some thousand pictures, then
learns to find real ones likelier and its own less likely than it did, and is the painter of the next round. Each round
is a training in a subfolder of its own, which paints by itself, too.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from miniai.base.configs import config_to_dict
from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.images import save_png
from miniai.base.weights import read_weights, write_weights
from miniai.diffusion.discriminative import DiscriminativeObjective
from miniai.diffusion.sampling import find_sampler
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
from miniai.recipes.fashion_diffusion import FashionObjective
from miniai.recipes.fashion_diffusion_config import KINDS, N_CLASSES, FashionDiffusionConfig
from miniai.recipes.fashion_painting import load_fashion_diffusion, paint, to_patches
from miniai.recipes.generate_request import MAX_STEPS, check_ranges
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import StageRun, run_stage
from miniai.train.data import TensorDataset
from miniai.train.distributed import n_launched

PLAN, PAINTED = "refine.json", "painted.safetensors"
SEEDS_OF_A_ROUND = 10_000_000  # apart, and from those of an evaluation
SEEDS_OF_A_REFINEMENT = 1_000_000_000  # apart, by `FashionRefineConfig.seed`


@dataclass(frozen=True)
class FashionRefineConfig:
    """The whole recipe. In each of `rounds` the network paints `pictures` by `sampler` in `n_steps` steps (None: as its
    own recipe says), without guidance, and learns from them for `steps` batches, each of `stage.batch_size` real ones
    and as many of its own, with `beta` and `alpha` as in `DiscriminativeObjective`. The rate of round k is a k-th of
    that of `stage`: the less is left to learn, the sooner a step goes too far. A network that is refined again should
    have another `seed`, so that it paints from other noise than before."""

    rounds: int = 2
    pictures: int = 4000
    steps: int = 80
    sampler: str | None = None
    n_steps: int | None = None
    beta: int | float = 0.05
    alpha: int | float = 1.0
    seed: int = 0
    stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=1.0,
            batch_size=64,
            learning_rate=1e-4,
            weight_decay=0.0,
            warmup=0.07,
            decay_from=0.07,
            ema=0.98,
            clip_norm=1e9,
            optimizer="muon",
        )
    )


@dataclass(frozen=True)
class RefinePlan:
    """What a folder keeps: the numbers, the painter's own recipe, and the fingerprint of its weights."""

    numbers: FashionRefineConfig
    painter: FashionDiffusionConfig
    weights: str


def refine_fashion(
    painter: Path,
    out: Path,
    *,
    config: FashionRefineConfig | None = None,
    data: Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Refine the training in the folder `painter`; `out` then paints as any other. Every round leaves the pictures that
    it learned from, weights and config, log, loss curve and samples in a folder in `out`.

    Raises UserError if a number is not possible, the painter is of latents, distilled or not finished, the data is not
    there, or `out` is in use.
    """
    if n_launched() > 1:
        raise UserError("fashion-refine runs in one process: leave the launcher out")
    config = config or FashionRefineConfig()
    check_numbers(config)
    place = pick_device(device)
    network, own = load_refinable(painter, place)
    if (out / CONFIG).exists() and not (out / PLAN).is_file():
        raise UserError(f"{out} holds another training: choose another folder")
    train, _ = load_both(data)
    keep_config(out, RefinePlan(config, own, fingerprint(network)), resume, PLAN)
    refined = replace(own, init=str(painter))
    write_json(out / CONFIG, config_to_dict(refined))
    items = TensorDataset((to_patches(train.scaled(PADDING), own.patch_size), train.labels))
    for number in range(1, config.rounds + 1):
        run = StageRun(f"round {number}", out / f"round-{number}", place, None, config.steps)
        network = run_round(run, number, network, refined, config, items)
    save_model(network, out)
    return out


def load_refinable(folder: Path, device: torch.device) -> tuple[UNet2DModel, FashionDiffusionConfig]:
    """A network that can be refined, and its recipe. Raises UserError for any other, or an unfinished one."""
    kept = read_json(folder / CONFIG)
    if not isinstance(kept, dict) or kept.get("kind") not in KINDS:
        raise UserError(f"{folder} is not a training of fashion-{', fashion-'.join(KINDS)}")
    network, config = load_fashion_diffusion(folder, device)
    if config.ladder or config.guidance_range is not None:
        raise UserError(f"{folder} is distilled: refine the network that was its teacher, and distil that")
    return network, config


def check_numbers(config: FashionRefineConfig) -> None:
    """Raises UserError for numbers with which nothing can be learned, and for an unknown sampler."""
    check_ranges(
        ("--rounds", config.rounds, 1, 100, "rounds"),
        ("--pictures", config.pictures, 1, SEEDS_OF_A_ROUND, "pictures"),
        ("--steps", config.steps, 1, 1_000_000, "steps"),
        ("--sampler-steps", config.n_steps, 1, MAX_STEPS, "steps"),
        ("--seed", config.seed, 0, 1_000_000, ""),
    )
    for option in ("beta", "alpha"):
        check_above_0(f"--{option}", getattr(config, option))
    check_above_0("--learning-rate", config.stage.learning_rate)
    if config.sampler is not None:
        find_sampler(config.sampler)


def run_round(
    run: StageRun,
    number: int,
    painter: UNet2DModel,
    own: FashionDiffusionConfig,
    config: FashionRefineConfig,
    items: TensorDataset,
) -> UNet2DModel:
    """The network after another round, trained from a copy of `painter`, or read where it is finished."""
    network = UNet2DModel(own.model)
    if is_trained(run):
        return load_model(network, run.folder, run.device)
    network.load_state_dict(painter.state_dict())
    make_folder(run.folder)
    write_json(run.folder / CONFIG, config_to_dict(own))
    labels = torch.arange(config.pictures) % N_CLASSES
    first = number * SEEDS_OF_A_ROUND + config.seed * SEEDS_OF_A_REFINEMENT
    ways = {"sampler": config.sampler, "n_steps": config.n_steps, "seed": first}
    painted = own_pictures(run.folder / PAINTED, painter, own, labels, **ways)

    def show(path: Path) -> None:
        make_folder(path.parent)
        few = min(config.n_steps or own.n_steps, 50)
        save_png(path, as_sheet(paint(network, own, labels[:20], seed=0, sampler=config.sampler, n_steps=few)))

    scaled = to_patches(painted.float() / 127.5 - 1, own.patch_size)
    objective = RefineObjective(config, own, painter.eval().requires_grad_(False), scaled.to(run.device), labels)
    stage = replace(config.stage, learning_rate=config.stage.learning_rate / number)
    run_stage(run, stage, network, items, objective, own.seed + number + 1000 * config.seed, sample=show)
    save_model(network, run.folder)
    return network


def own_pictures(
    path: Path, painter: UNet2DModel, own: FashionDiffusionConfig, labels: Int64[Tensor, " n"], **ways: Any
) -> UInt8[Tensor, "n 1 h w"]:
    """A picture by `painter` for each label, in steps of 1/255 as real ones are; kept in the file `path`."""
    if not path.is_file():
        print(f"{path.parent.name}: painting {len(labels):,} pictures", file=sys.stderr)
        painted = (paint(painter, own, labels, guidance_scale=1.0, **ways) + 1) * 127.5
        write_weights(path, {"pictures": painted.round().byte()})
    return read_weights(path)["pictures"]


class RefineObjective:
    """`DiscriminativeObjective` for (pictures, classes), beside as many of the painter's own, drawn by chance."""

    def __init__(
        self,
        config: FashionRefineConfig,
        own: FashionDiffusionConfig,
        reference: nn.Module,
        painted: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
    ) -> None:
        self.painted, self.labels = painted, labels.to(painted.device)
        self.objective = DiscriminativeObjective(FashionObjective(own), reference, config.beta, config.alpha)

    def __call__(
        self, model: nn.Module, batch: tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        n = len(batch[0])
        some = torch.randint(len(self.painted), (n,), generator=generator, device=generator.device)
        some = some.to(self.painted.device)
        return self.objective(model, (batch, (self.painted[some], self.labels[some])), generator)
