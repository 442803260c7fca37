"""`miniai evaluate fashion`: how good painted clothes are, by the features of a classifier trained on real ones.

The figure is FID of 2,048 painted pictures against the 10,000 test pictures, beside that of 2,048 real training
pictures against the same: another classifier gives another scale, so only their ratio means anything. Another draw of
noise gives another figure, too: the mean of several says more, and its deviation how much.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, write_json
from miniai.base.images import save_png
from miniai.diffusion.sampling import find_sampler, n_calls
from miniai.evaluate.cache import fingerprint
from miniai.recipes.fashion import as_sheet
from miniai.recipes.fashion_classifier import load_classifier
from miniai.recipes.fashion_diffusion_config import N_CLASSES, FashionDiffusionConfig
from miniai.recipes.fashion_discriminator import load_discriminator
from miniai.recipes.fashion_judge import CAP, Judge, PaintUntilKept
from miniai.recipes.fashion_latent import load_painter
from miniai.recipes.fashion_painting import GUIDE_SCALE, ladder_for, load_guide

REJECT_BELOW = 0.5  # unless another probability is asked for
TRIES = 20  # with a discriminator, which may keep one of ten


@dataclass(frozen=True)
class FashionWays:
    """How clothes are painted.

    - sampler, steps, guidance_scale: None is what the network's own recipe says.
    - guidance_interval, churn, spacing: as in `painter_of`.
    - guide, guide_scale: the folder of a shorter training of the same recipe, and how far from it.
    - reject_by, reject_below: folders of classifiers: pictures that they take to be of the class asked for with a
      smaller probability are painted again. The judge, who would see its own work, must not be among them.
    - discriminator, discriminator_cap: the folder of `fashion_discriminator`, trained by the same classifiers, and the
      ratio from which on each clear picture is kept.
    """

    sampler: str | None = None
    steps: int | None = None
    guidance_scale: int | float | None = None
    guidance_interval: tuple[float, float] | None = None
    guide: Path | None = None
    guide_scale: int | float | None = None
    churn: int | float = 0.0
    spacing: str | None = None
    reject_by: tuple[Path, ...] = ()
    reject_below: int | float | None = None
    discriminator: Path | None = None
    discriminator_cap: int | float | None = None

    def filled(self, config: FashionDiffusionConfig) -> "FashionWays":
        """With the recipe's own numbers where none is asked for. Raises UserError for what does not go together."""
        if self.guide is None and self.guide_scale is not None:
            raise UserError("--guide-scale says how far to keep from --guide: name a folder there")
        if self.guide is not None and config.kind == "latent":
            raise UserError("--guide is for networks of pixels: those of latents have an autoencoder of their own each")
        if not self.reject_by and self.reject_below is not None:
            raise UserError("--reject-below says how sure --reject-by must be: name a classifier there")
        if self.reject_by and not config.knows_classes:
            raise UserError("this network is told no classes to reject by: leave --reject-by out")
        if self.discriminator is None and self.discriminator_cap is not None:
            raise UserError("--discriminator-cap is of --discriminator's ratio: name a folder there")
        if self.discriminator is not None and not self.reject_by:
            raise UserError(
                "--discriminator looks through classifiers: name with --reject-by those it was trained --by"
            )
        usual: dict[str, Any] = {"sampler": config.sampler, "steps": config.n_steps}
        usual["guidance_scale"] = config.guidance_scale
        usual |= {} if self.guide is None else {"guide_scale": GUIDE_SCALE}
        usual |= {"reject_below": REJECT_BELOW} if self.reject_by else {}
        usual |= {"discriminator_cap": CAP} if self.discriminator is not None else {}
        filled = replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})
        ladder_for(config, find_sampler(str(filled.sampler)), int(filled.steps or 1), self.spacing)
        return filled

    def options(self, config: FashionDiffusionConfig, device: torch.device) -> dict[str, Any]:
        """What `painter_of` is to be told."""
        names = ("sampler", "guidance_scale", "guidance_interval", "churn", "spacing")
        options = {name: getattr(self, name) for name in names} | {"n_steps": self.steps}
        if self.guide is not None:
            options |= {"guide": load_guide(self.guide, config, device), "guide_scale": self.guide_scale}
        return options


def evaluate_fashion(
    model: Path,
    classifier: Path,
    ways: FashionWays | None = None,
    *,
    data: Path | None = None,
    out: Path | None = None,
    n: int = 2048,
    seed: int = 0,
    draws: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Paint `n` pictures with the network in the folder `model`, `draws` times, and return what `out/evaluation.json`
    then says: the means of the draws' figures, each draw's own, and the deviation of their ratios. `out` (default:
    `model`) also gets a sheet of the first draw.

    Raises UserError if a folder holds no finished training, the data is not there, or for `ways` that are none.
    """
    place = pick_device(device)
    painter, config = load_painter(model, place)
    ways = (ways or FashionWays()).filled(config)
    if classifier.resolve() in {one.resolve() for one in ways.reject_by}:
        raise UserError(f"{classifier} is the judge, and would see its own work: name another with --reject-by")
    judge = Judge(classifier, data, place)
    labels = torch.arange(n) % N_CLASSES
    options = ways.options(config, place)
    paint: Callable[..., Tensor] = painter
    if ways.reject_below is not None:
        paint = until_kept(painter, ways, ways.reject_below, place)
    folder = out or model
    make_folder(folder)
    each: list[dict[str, float]] = []
    for first in range(seed, seed + draws * n, n):
        painted = paint(labels, seed=first, **options)
        each.append(judge.figures(painted, labels if config.knows_classes else None))
        if first == seed:
            save_png(folder / "painted.png", as_sheet(painted[:200], n_columns=20))
    results: dict[str, Any] = {
        "kind": config.kind,
        "n": n,
        **asdict(ways),
        "guide": None if ways.guide is None else str(ways.guide),
        "reject_by": [str(one) for one in ways.reject_by],
        "discriminator": None if ways.discriminator is None else str(ways.discriminator),
        "calls": n_calls(find_sampler(ways.sampler or config.sampler), ways.steps or config.n_steps),
        "painted_for_each": paint.n_painted / (n * draws) if isinstance(paint, PaintUntilKept) else 1.0,
        "seed": seed,
        **{name: fmean(one[name] for one in each) for name in each[0]},
        **(judge.real_by_class(labels) if config.knows_classes else {}),
        "deviation_of_ratio": stdev(one["ratio"] for one in each) if draws > 1 else None,
        "draws": each,
    }
    write_json(folder / "evaluation.json", results)
    return results


def until_kept(paint: "partial[Tensor]", ways: FashionWays, below: int | float, device: torch.device) -> PaintUntilKept:
    """`paint`, but what classifiers, and the discriminator if there is one, reject is painted again."""
    by = [load_classifier(one, device) for one in ways.reject_by]
    if ways.discriminator is None:
        return PaintUntilKept(paint, by, device, below)
    discriminator = load_discriminator(ways.discriminator, by, device)
    if discriminator.painter != fingerprint(paint.args[0]):
        print(f"note: {ways.discriminator} learned from pictures of another network", file=sys.stderr)
    return PaintUntilKept(paint, by, device, below, discriminator, ways.discriminator_cap or CAP, TRIES)
