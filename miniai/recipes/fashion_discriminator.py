"""`miniai train fashion-discriminator`: which painted clothes are as often among real ones, and which too often.

A network paints some thousand pictures; what classifiers do not take to be of the class asked for is left out; from
what the classifiers' last layers see of the rest and of as many real pictures, logistic regression learns how much
likelier each is among real ones. `miniai evaluate fashion --discriminator` keeps pictures with a chance in proportion
to that: discriminator rejection sampling (Azadi et al. 2019, arXiv 1810.06758).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from miniai.base.configs import config_from_dict
from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.weights import read_weights, write_weights
from miniai.diffusion.sampling import find_sampler
from miniai.evaluate.cache import fingerprint
from miniai.evaluate.density_ratio import DensityRatio, fit_density_ratio
from miniai.nn.resnet import ResNet
from miniai.recipes.fashion import CONFIG, PADDING, check_above_0, keep_config, load_both
from miniai.recipes.fashion_classifier import load_classifier
from miniai.recipes.fashion_diffusion_config import N_CLASSES
from miniai.recipes.fashion_judge import CAP, clearness, features, spread
from miniai.recipes.fashion_latent import load_painter
from miniai.recipes.generate_request import MAX_GUIDANCE_SCALE, MAX_STEPS, check_ranges
from miniai.train.distributed import n_launched

PLAN, PAINTED, WEIGHTS, RESULTS = "discriminator.json", "painted.safetensors", "ratio.safetensors", "results.json"
FIRST_SEED, SEEDS_OF_ONE = 1_000_000, 1_000_000  # between an evaluation's and a refinement's; apart, by own seed
PART = 1000  # pictures that are painted between two savings


@dataclass(frozen=True)
class FashionDiscriminatorConfig:
    """The whole recipe: `pictures` are painted by `sampler` in `n_steps` steps (None: as the painter's recipe says)
    with `guidance_scale`; those of which the classifiers are less sure than `reject_below` are left out; `ridge` as in
    `fit_density_ratio`; `seed` of the noise that they are painted from."""

    pictures: int = 18000
    sampler: str | None = None
    n_steps: int | None = None
    guidance_scale: int | float = 1.0
    reject_below: int | float = 0.5
    ridge: int | float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class DiscriminatorPlan:
    """What a folder keeps: the numbers, and the fingerprints of the painter's and the classifiers' weights."""

    numbers: FashionDiscriminatorConfig
    painter: str
    by: tuple[str, ...]


@dataclass(frozen=True)
class FashionDiscriminator:
    """How much likelier pictures are among real ones than among those of the network whose fingerprint is `painter`, by
    what `classifiers` see of them."""

    ratio: DensityRatio
    classifiers: Sequence[ResNet]
    device: torch.device
    painter: str

    def __call__(self, images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, " n"]:
        return self.ratio(seen(self.classifiers, images, self.device))


def train_fashion_discriminator(
    painter: Path,
    by: Sequence[Path],
    out: Path,
    *,
    config: FashionDiscriminatorConfig | None = None,
    data: Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Train in `out`, which keeps the painted pictures, too, and return what `out/results.json` then says: `pictures`
    painted, the share `clear` of them, and the share of these that would be `kept` at the usual cap.

    Raises UserError if a number is not possible, a folder holds no finished training, the painter is told no classes,
    a classifier is named twice, the data is not there, or `out` is in use.
    """
    if n_launched() > 1:
        raise UserError("fashion-discriminator runs in one process: leave the launcher out")
    config = config or FashionDiscriminatorConfig()
    check_numbers(config)
    place = pick_device(device)
    paint, own = load_painter(painter, place)
    if not own.knows_classes:
        raise UserError(f"{painter} is told no classes, which the classifiers could look for")
    classifiers = [load_classifier(one, place) for one in by]
    prints = tuple(fingerprint(one) for one in classifiers)
    if len(set(prints)) < len(prints):
        raise UserError("--by names a classifier twice: once is enough")
    train, _ = load_both(data)
    if (out / CONFIG).exists():
        raise UserError(f"{out} holds another training: choose another folder")
    plan = DiscriminatorPlan(config, fingerprint(paint.args[0]), prints)
    keep_config(out, plan, resume, PLAN)
    labels = torch.arange(config.pictures) % N_CLASSES
    ways = {"sampler": config.sampler, "n_steps": config.n_steps, "guidance_scale": config.guidance_scale}
    painted = paint_in_parts(out / PAINTED, paint, labels, FIRST_SEED + config.seed * SEEDS_OF_ONE, **ways)
    images = painted.float() / 127.5 - 1
    clear = clearness(classifiers, images, labels, place) >= config.reject_below
    if int(clear.sum()) < 2:
        raise UserError(f"{int(clear.sum())} of {len(labels)} painted pictures are clear: paint more, or reject less")
    real = train.scaled(PADDING)[spread(len(train), config.pictures)]
    return learn(out, classifiers, real, images, clear, config, place)


def learn(
    out: Path,
    classifiers: Sequence[ResNet],
    real: Float[Tensor, "n 1 h w"],
    painted: Float[Tensor, "m 1 h w"],
    clear: Bool[Tensor, " m"],
    config: FashionDiscriminatorConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Fit the ratio of real pictures to painted ones that are clear, and leave it in `out` with the results."""
    others = seen(classifiers, painted[clear], device)
    ratio = fit_density_ratio(seen(classifiers, real, device), others, config.ridge)
    write_weights(out / WEIGHTS, ratio.tensors())
    kept = float((ratio(others) / CAP).clamp(max=1).mean())
    results = {"pictures": len(painted), "clear": float(clear.float().mean()), "kept": kept}
    write_json(out / RESULTS, results | {"plan": read_json(out / PLAN)})
    return results


def check_numbers(config: FashionDiscriminatorConfig) -> None:
    """Raises UserError for numbers with which nothing can be learned, and for an unknown sampler."""
    check_ranges(
        ("--pictures", config.pictures, 20, SEEDS_OF_ONE, "pictures"),
        ("--sampler-steps", config.n_steps, 1, MAX_STEPS, "steps"),
        ("--guidance-scale", config.guidance_scale, 0, MAX_GUIDANCE_SCALE, ""),
        ("--reject-below", config.reject_below, 0, 1, ""),
        ("--seed", config.seed, 0, 8, ""),
    )
    check_above_0("--ridge", config.ridge)
    if config.sampler is not None:
        find_sampler(config.sampler)


def paint_in_parts(
    path: Path, paint: Any, labels: Int64[Tensor, " n"], seed: int, **ways: Any
) -> UInt8[Tensor, "n 1 h w"]:
    """A picture for each label, in steps of 1/255 as real ones are, kept in the file `path` as far as they are done."""
    parts = [read_weights(path)["pictures"]] if path.is_file() else []
    done = sum(len(part) for part in parts)
    while done < len(labels):
        print(f"painting {done:,} to {min(done + PART, len(labels)):,} of {len(labels):,} pictures", file=sys.stderr)
        some = labels[done : done + PART]
        parts.append(((paint(some, seed=seed + done, **ways) + 1) * 127.5).round().byte())
        write_weights(path, {"pictures": torch.cat(parts)})
        done += len(some)
    return torch.cat(parts)


def seen(classifiers: Sequence[ResNet], images: Float[Tensor, "n 1 h w"], device: torch.device) -> Float[Tensor, "n d"]:
    """What the last layers of all of them see of each picture, without its padding, as they were trained."""
    bare = images[:, :, PADDING:-PADDING, PADDING:-PADDING]
    return torch.cat([features(one, bare, device) for one in classifiers], 1)


def load_discriminator(folder: Path, classifiers: Sequence[ResNet], device: torch.device) -> FashionDiscriminator:
    """A finished training, to look through the same classifiers as it did, in any order.

    Raises UserError if the folder holds none, an unfinished one, or one that looked through others."""
    plan = config_from_dict(DiscriminatorPlan, read_json(folder / PLAN), str(folder / PLAN))
    named = {fingerprint(one): one for one in classifiers}
    if sorted(plan.by) != sorted(named):
        raise UserError(f"{folder} learned through other classifiers: name with --reject-by those it was trained --by")
    ratio = DensityRatio(**read_weights(folder / WEIGHTS))
    return FashionDiscriminator(ratio, [named[one] for one in plan.by], device, plan.painter)
