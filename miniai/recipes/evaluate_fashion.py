"""`miniai evaluate fashion`: how good painted clothes are, by the features of a classifier trained on real ones.

The figure is FID of 2,048 painted pictures against the 10,000 test pictures, beside that of 2,048 real training
pictures against the same: another classifier gives another scale, so only their ratio means anything.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, write_json
from miniai.base.images import save_png
from miniai.diffusion.sampling import find_sampler, n_calls
from miniai.evaluate.cache import FeatureKey, cached_features, fingerprint
from miniai.evaluate.fid import fid
from miniai.nn.resnet import ResNet
from miniai.recipes.fashion import PADDING, as_sheet, load_both
from miniai.recipes.fashion_classifier import BATCH, load_classifier
from miniai.recipes.fashion_diffusion_config import N_CLASSES
from miniai.recipes.fashion_latent import load_painter
from miniai.recipes.fashion_painting import GUIDE_SCALE, load_guide
from miniai.train.fashion_mnist import LabelledImages

FEATURES = "features"  # folder beside the classifier's weights


class Judge:
    """A classifier, and how it sees the real pictures, which is kept beside its weights.

    Raises UserError if the folder holds no finished training, or the data is not there.
    """

    def __init__(self, folder: Path, data: Path | None, device: torch.device) -> None:
        self.network, self.device = load_classifier(folder, device), device
        self.train, self.test = load_both(data)
        self._folder, self._name = folder / FEATURES, fingerprint(self.network)

    def fid(self, painted: Float[Tensor, "n 1 h w"]) -> dict[str, float]:
        """`fid` of painted pictures against the test pictures, `fid_of_real` of as many training pictures, `ratio`."""
        real = self.of_real(self.test)
        spread = torch.linspace(0, len(self.train) - 1, min(len(painted), len(self.train))).long()
        some = LabelledImages(self.train.images[spread], self.train.labels[spread], self.train.source)
        of_painted = fid(features(self.network, painted, self.device), real)
        of_real = fid(self.of_real(some), real)
        return {"fid": of_painted, "fid_of_real": of_real, "ratio": of_painted / of_real}

    def of_real(self, pictures: LabelledImages) -> Float[Tensor, "n d"]:
        """Features of real pictures: computed once, and then read."""
        key = FeatureKey(fingerprint(pictures.images), f"padded by {PADDING}, in [-1, 1]", self._name)
        return cached_features(self._folder, key, lambda: features(self.network, pictures.scaled(PADDING), self.device))

    def read_as(self, painted: Float[Tensor, "n 1 h w"], labels: Int64[Tensor, " n"]) -> float:
        """The share of pictures that it takes to be of the class that was asked for."""
        return float((named(self.network, painted, self.device) == labels).float().mean())


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
    guidance_interval: tuple[float, float] | None = None,
    guide: Path | None = None,
    guide_scale: int | float | None = None,
    churn: int | float = 0.0,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Paint `n` pictures with the network in the folder `model` and return what `out/evaluation.json` then says; `out`
    (default: `model`) also gets a sheet of them. `guide` is the folder of a shorter training of the same recipe.

    Raises UserError if a folder holds no finished training, the data is not there, the sampler has no churn, or `guide`
    is of another recipe.
    """
    place = pick_device(device)
    paint, config = load_painter(model, place)
    judge = Judge(classifier, data, place)
    labels = torch.arange(n) % N_CLASSES
    options: dict[str, Any] = {"sampler": sampler, "n_steps": steps, "guidance_scale": guidance_scale}
    chosen = {name: getattr(config, name) if value is None else value for name, value in options.items()}
    if guide is None and guide_scale is not None:
        raise UserError("--guide-scale says how far to keep from --guide: name a folder there")
    if guide is not None and config.kind == "latent":
        raise UserError("--guide is for networks of pixels: those of latents have an autoencoder of their own each")
    options |= {"guidance_interval": guidance_interval, "churn": churn}
    guide_scale = GUIDE_SCALE if guide is not None and guide_scale is None else guide_scale
    beside = {} if guide is None else {"guide": load_guide(guide, config, place), "guide_scale": guide_scale}
    folder = out or model
    make_folder(folder)
    painted = paint(labels, seed=seed, **options, **beside)
    results: dict[str, Any] = {
        "kind": config.kind,
        "n": n,
        **chosen,
        "guidance_interval": guidance_interval,
        "guide": None if guide is None else str(guide),
        "guide_scale": guide_scale,
        "calls": n_calls(find_sampler(chosen["sampler"]), chosen["n_steps"]),
        "churn": churn,
        "seed": seed,
        **judge.fid(painted),
    }
    if config.knows_classes:
        results["read_as_asked"] = judge.read_as(painted, labels)
    save_png(folder / "painted.png", as_sheet(painted[:200], n_columns=20))
    write_json(folder / "evaluation.json", results)
    return results


@torch.no_grad()
def features(network: ResNet, images: Float[Tensor, "n 1 h w"], device: torch.device) -> Float[Tensor, "n d"]:
    """What the classifier's last layer sees of each picture."""
    return torch.cat([network.features(part.to(device)).cpu() for part in images.split(BATCH)])


@torch.no_grad()
def named(network: ResNet, images: Float[Tensor, "n 1 h w"], device: torch.device) -> Int64[Tensor, " n"]:
    """The class that the classifier takes each picture to be of; it was trained without the padding."""
    bare = images[:, :, PADDING:-PADDING, PADDING:-PADDING]
    return torch.cat([network(part.to(device)).argmax(1).cpu() for part in bare.split(BATCH)])
