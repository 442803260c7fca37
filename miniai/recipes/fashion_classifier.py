"""`miniai train fashion-classifier`: a residual network that tells Fashion-MNIST's ten classes apart.

Its features are also what FID is measured on in the recipes that paint clothes.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.images import save_png
from miniai.diffusion.pictures import as_pictures
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.recipes.fashion import CONFIG, is_trained, load_both, load_model, save_model, start_run
from miniai.recipes.sheets import labelled_grid
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import initial_weights, run_stage
from miniai.train.augment import Augment, Augmentation, RandomCrop, RandomErase, RandomFlip
from miniai.train.callback import Callback
from miniai.train.data import TensorDataset
from miniai.train.distributed import is_first
from miniai.train.fashion_mnist import CLASSES, LabelledImages
from miniai.train.inference import as_it_is, flipped
from miniai.train.mixup import MixUp
from miniai.train.muon import Muon

BATCH = 500  # pictures at a time where nothing is learned


@dataclass(frozen=True)
class Strength:
    """How much pictures are changed in trainings of `from_epochs` epochs and more. `crop`: pixels that they are moved
    by, at most, each way; `erase`: the edge of the patches that are erased, as a share of the picture's, `patches` of
    them at most (0: none); `flip`: the share of pictures that are mirrored; `mix`: the alpha of MixUp (0: none)."""

    from_epochs: int | float
    crop: int
    erase: int | float
    patches: int
    flip: int | float = 0.5
    mix: int | float = 0.0

    def augmentations(self) -> list[Augmentation]:
        """What is done to each picture, in turn."""
        erase = [RandomErase(self.erase, self.patches)] if self.patches > 0 else []
        return [RandomCrop(self.crop), RandomFlip(self.flip), *erase]

    def callbacks(self, n_classes: int) -> list[Callback]:
        """The same as callbacks of a Learner, and MixUp, for all of the training but the last fifth."""
        mix = [MixUp(self.mix, n_classes, until=0.8)] if self.mix > 0 else []
        return [Augment(*self.augmentations()), *mix]


@dataclass(frozen=True)
class FashionClassifierConfig:
    """The whole recipe, for any number of epochs: the more there are, the more the pictures are changed.

    Kernels learn by Muon, which `kernel_rate` and `kernel_momentum` are for; `stage.learning_rate` is AdamW's, for
    the first convolution, the norms and the last layer. `strengths`: by their `from_epochs`; `label_smoothing`: the
    share of each target that is spread over all classes (Szegedy et al. 2016, section 7); `seed` of weights, order and
    augmentation."""

    model: ResNetConfig = field(
        default_factory=lambda: ResNetConfig(block_out_channels=(48, 128, 256), stem_channels=24, dropout=0.0)
    )
    stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=1.0, batch_size=256, learning_rate=1e-2, weight_decay=0.0, warmup=0.15, decay_from=0.15, ema=0.98
        )
    )
    kernel_rate: int | float = 0.1
    kernel_momentum: int | float = 0.6
    strengths: tuple[Strength, ...] = (
        Strength(from_epochs=0, crop=1, erase=0.25, patches=0),
        Strength(from_epochs=10, crop=1, erase=0.25, patches=1),
        Strength(from_epochs=35, crop=1, erase=0.25, patches=2),
    )
    label_smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        starts = [one.from_epochs for one in self.strengths]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"from_epochs of strengths must begin at 0 and rise, not {starts}")

    def strength(self, epochs: int | float) -> Strength:
        """The last of `strengths` that a training of so many epochs reaches."""
        return [one for one in self.strengths if one.from_epochs <= epochs][-1]

    def optimizer(self, model: nn.Module, stage: StageConfig) -> torch.optim.Optimizer:
        """Muon for all 3×3 kernels (a norm follows each) but the first, which sees nine numbers only; AdamW for the
        rest."""
        kernels = [weight for weight in model.parameters() if weight.ndim == 4 and weight.shape[-1] > 1][1:]
        chosen = {id(weight) for weight in kernels}
        others = [weight for weight in model.parameters() if id(weight) not in chosen]
        rates = {"lr": self.kernel_rate, "momentum": self.kernel_momentum}
        adamw = {"lr": stage.learning_rate, "betas": stage.betas, "weight_decay": stage.weight_decay}
        return Muon([{"params": kernels, "orthogonal": True, **rates}, {"params": others, **adamw}])


NETWORKS = {
    "pooled": FashionClassifierConfig(),
    # A quarter to a third more channels and 1.6 times the weights, at three quarters of the pace.
    "wide": FashionClassifierConfig(
        model=ResNetConfig(block_out_channels=(64, 160, 320), stem_channels=24, dropout=0.0)
    ),
    # The course's judge of painted clothes: six levels, the last of 512 features at one place of a padded picture, and
    # labels as they are. Labels that are smoothed would draw each class together into a point (Mueller et al. 2019),
    # and a Frechet distance on features without spread counts faults that nobody sees.
    "six-level": FashionClassifierConfig(
        model=ResNetConfig(block_out_channels=(16, 32, 64, 128, 256, 512), dropout=0.0), label_smoothing=0.0
    ),
}


def network_config(name: str) -> FashionClassifierConfig:
    """The recipe of one of NETWORKS. Raises UserError for another name."""
    if name not in NETWORKS:
        raise UserError(f"--network {name}: there are {', '.join(NETWORKS)}")
    return NETWORKS[name]


class ClassifierObjective:
    """Cross-entropy of the logits for (pictures, labels), and the share of pictures named right. Labels are the
    classes' numbers, or each class's share."""

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(
        self,
        model: nn.Module,
        batch: tuple[Float[Tensor, "b 1 h w"], Int64[Tensor, " b"] | Float[Tensor, "b n_classes"]],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        images, labels = batch
        logits = model(images.contiguous(memory_format=torch.channels_last)).float()
        most = labels.argmax(1) if labels.ndim == 2 else labels
        right = (logits.argmax(1) == most).float().mean()
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), "accuracy": right}


def train_fashion_classifier(
    out: Path,
    *,
    data: Path | None = None,
    epochs: int | float = 5,
    resume: bool = False,
    device: str = "auto",
    config: FashionClassifierConfig | None = None,
) -> dict[str, Any]:
    """Train in `out` and return what `out/results.json` then says: accuracy on the test pictures, as they are and by
    the mean over each and its mirror image; and a sheet of its mistakes.

    Raises UserError if the data is not there or `out` is in use.
    """
    config = config or FashionClassifierConfig()
    train, test = load_both(data)
    place = pick_device(device)
    run = start_run("classifier", out, config, epochs, len(train), config.stage.batch_size, place, resume)
    strength = config.strength(epochs)
    if is_first():
        print(f"strength, of {epochs:g} epochs: {strength}", file=sys.stderr)
    with initial_weights(config.seed):
        model = ResNet(config.model)
    if is_trained(run):
        load_model(model, out, place)
    else:
        pictures = train.scaled()
        changes = strength.callbacks(config.model.n_classes)
        objective = ClassifierObjective(config.label_smoothing)
        items = TensorDataset((pictures, train.labels))
        run_stage(
            run, config.stage, model, items, objective, config.seed, callbacks=changes, optimizer=config.optimizer
        )
        measure_norms(model, pictures[:: max(1, len(pictures) // 8192)], place)
        save_model(model, out)
    said = log_probabilities(model, test.scaled(), place)
    results = {"epochs": epochs, **run.record(), **accuracy(said, test.labels)}
    if is_first():
        save_png(out / "mistakes.png", mistakes(said[0], test))
        write_json(out / "results.json", results)
    return results


@torch.no_grad()
def measure_norms(model: nn.Module, images: Float[Tensor, "n 1 h w"], device: torch.device) -> None:
    """Set the means and variances that batch norms use afterwards to those under the averaged weights, on `images` as
    they are (Izmailov et al. 2018, section 3.2)."""
    batches = [part.to(device) for part in images.split(BATCH) if len(part) > 1]
    torch.optim.swa_utils.update_bn(batches, model)
    model.eval()


@torch.no_grad()
def log_probabilities(
    model: nn.Module, images: Float[Tensor, "n 1 h w"], device: torch.device
) -> Float[Tensor, "2 n n_classes"]:
    """What a trained network says of each picture, and of its mirror image, on the CPU."""
    views = []
    for view in (as_it_is, flipped):
        views.append(torch.cat([model(view(part.to(device))).log_softmax(1).cpu() for part in images.split(BATCH)]))
    return torch.stack(views)


def accuracy(said: Float[Tensor, "2 n n_classes"], labels: Int64[Tensor, " n"]) -> dict[str, float]:
    """The share that is named right: as the pictures are, and by the mean over each and its mirror image."""
    plain, both = ((one.argmax(1) == labels).double().mean().item() for one in (said[0], said.mean(dim=0)))
    return {"accuracy": plain, "accuracy_with_mirror_images": both}


def mistakes(said: Float[Tensor, "n n_classes"], test: LabelledImages, n: int = 40) -> Image.Image:
    """The pictures of `test` that log-probabilities name wrong, the surest first: below each, what it is taken for and
    what it is. Where there are fewer than `n`, those named right with the least confidence follow."""
    sure, named = said.exp().max(dim=1)
    order = torch.where(named == test.labels, -sure, sure).argsort(descending=True)[:n]
    pictures = as_pictures(test.scaled()[order])
    names = []
    for i in order.tolist():
        truth = "" if named[i] == test.labels[i] else f" ({CLASSES[test.labels[i]]})"
        names.append(f"{CLASSES[named[i]]}, {100 * sure[i]:.0f} %{truth}")
    return labelled_grid(list(zip(pictures, names, strict=True)), 8, "taken for … (but it is …)", zoom=3)


def load_classifier(folder: Path, device: torch.device) -> ResNet:
    """A trained classifier, also of a run whose config has other fields for its training.

    Raises UserError if the folder holds none, or not yet."""
    path = folder / CONFIG
    values = read_json(path)
    if not isinstance(values, dict) or "model" not in values:
        raise UserError(f"{path} describes no classifier: name a folder of `miniai train fashion-classifier`")
    return load_model(ResNet(ResNetConfig.from_dict(values["model"], f"{path}: model")), folder, device)
