"""`miniai evaluate fashion`: how good painted clothes are, by the features of a classifier trained on real ones.

The figure is FID of 2,048 painted pictures against the 10,000 test pictures, beside that of 2,048 real training
pictures against the same: another classifier gives another scale, so only their ratio means anything.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.device import pick_device
from miniai.base.files import write_json
from miniai.base.images import save_png
from miniai.evaluate.fid import fid
from miniai.nn.resnet import ResNet
from miniai.recipes.fashion import PADDING, as_sheet, load_both
from miniai.recipes.fashion_classifier import BATCH, load_classifier
from miniai.recipes.fashion_diffusion import N_CLASSES
from miniai.recipes.fashion_latent import load_painter


def evaluate_fashion(
    model: Path,
    classifier: Path,
    *,
    data: Path | None = None,
    out: Path | None = None,
    n: int = 2048,
    sampler: str | None = None,
    steps: int | None = None,
    guidance_scale: int | float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Paint `n` pictures with the network in the folder `model` and return what `out/evaluation.json` then says; `out`
    (default: `model`) also gets a sheet of them.

    Raises UserError if a folder holds no finished training, or the data is not there.
    """
    place = pick_device(device)
    paint, config = load_painter(model, place)
    judge = load_classifier(classifier, place)
    train, test = load_both(data)
    labels = torch.arange(n) % N_CLASSES
    options: dict[str, Any] = {"sampler": sampler, "n_steps": steps, "guidance_scale": guidance_scale}
    painted = paint(labels, seed=seed, **options)
    real = features(judge, test.scaled(PADDING), place)
    spread = torch.linspace(0, len(train) - 1, min(n, len(train))).long()
    of_painted = fid(features(judge, painted, place), real)
    of_real = fid(features(judge, train.scaled(PADDING)[spread], place), real)
    results: dict[str, Any] = {
        "kind": config.kind,
        "n": n,
        **{name: getattr(config, name) if value is None else value for name, value in options.items()},
        "seed": seed,
        "fid": of_painted,
        "fid_of_real": of_real,
        "ratio": of_painted / of_real,
    }
    if config.knows_classes:
        results["read_as_asked"] = float((named(judge, painted, place) == labels).float().mean())
    folder = out or model
    folder.mkdir(parents=True, exist_ok=True)
    save_png(folder / "painted.png", as_sheet(painted[:200], n_columns=20))
    write_json(folder / "evaluation.json", results)
    return results


@torch.no_grad()
def features(judge: ResNet, images: Float[Tensor, "n 1 h w"], device: torch.device) -> Float[Tensor, "n d"]:
    """What the classifier's last layer sees of each picture."""
    return torch.cat([judge.features(part.to(device)).cpu() for part in images.split(BATCH)])


@torch.no_grad()
def named(judge: ResNet, images: Float[Tensor, "n 1 h w"], device: torch.device) -> Tensor:
    """The class that the classifier takes each picture to be of; it was trained without the padding."""
    bare = images[:, :, PADDING:-PADDING, PADDING:-PADDING]
    return torch.cat([judge(part.to(device)).argmax(1).cpu() for part in bare.split(BATCH)])
