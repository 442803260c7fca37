"""`miniai train fashion-classifier`: a residual network that tells Fashion-MNIST's ten classes apart.

Its features are also what FID is measured on in the recipes that paint clothes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from miniai.base.configs import config_from_dict
from miniai.base.device import pick_device
from miniai.base.files import read_json, write_json
from miniai.base.images import save_png
from miniai.diffusion.pictures import as_pictures
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.recipes.fashion import CONFIG, is_trained, load_both, load_model, save_model, start_run
from miniai.recipes.sheets import labelled_grid
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import initial_weights, run_stage
from miniai.train.augment import Augment, RandomCrop, RandomErase, RandomFlip
from miniai.train.data import TensorDataset
from miniai.train.distributed import is_first
from miniai.train.fashion_mnist import CLASSES, LabelledImages
from miniai.train.inference import as_it_is, flipped

BATCH = 500  # pictures at a time where nothing is learned


@dataclass(frozen=True)
class FashionClassifierConfig:
    """The whole recipe. `label_smoothing`: the share of each target that is spread over all classes (Szegedy et al.
    2016, section 7); `crop`: pixels that pictures are moved by, at most, each way; `erase`: the edge of the patches
    that are erased, as a share of the picture's; `seed` of weights, order and augmentation."""

    model: ResNetConfig = field(default_factory=ResNetConfig)
    stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=1.0, batch_size=256, learning_rate=2e-3, weight_decay=0.05, warmup=0.2, decay_from=0.2, ema=0.99
        )
    )
    label_smoothing: float = 0.1
    crop: int = 2
    erase: float = 0.2
    seed: int = 0


class ClassifierObjective:
    """Cross-entropy of the logits for (pictures, labels), and the share of pictures named right."""

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(
        self, model: nn.Module, batch: tuple[Float[Tensor, "b 1 h w"], Int64[Tensor, " b"]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        images, labels = batch
        logits = model(images.contiguous(memory_format=torch.channels_last)).float()
        right = (logits.argmax(1) == labels).float().mean()
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
    with initial_weights(config.seed):
        model = ResNet(config.model)
    if is_trained(run):
        load_model(model, out, place)
    else:
        pictures = train.scaled()
        augment = Augment(RandomCrop(config.crop), RandomFlip(), RandomErase(config.erase))
        objective = ClassifierObjective(config.label_smoothing)
        items = TensorDataset((pictures, train.labels))
        run_stage(run, config.stage, model, items, objective, config.seed, callbacks=[augment])
        measure_norms(model, pictures[:: max(1, len(pictures) // 8192)], place)
        save_model(model, out)
    results = {"epochs": epochs, **run.record(), **accuracy(model, test, place)}
    if is_first():
        save_png(out / "mistakes.png", mistakes(model, test, place))
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
def accuracy(model: nn.Module, test: LabelledImages, device: torch.device) -> dict[str, float]:
    """The share of `test` that is named right: as the pictures are, and by the mean over each and its mirror image."""
    plain, both = 0, 0
    for images, labels in zip(test.scaled().split(BATCH), test.labels.split(BATCH), strict=True):
        logits, mirrored = (model(view(images.to(device))).cpu() for view in (as_it_is, flipped))
        plain += int((logits.argmax(1) == labels).sum())
        both += int(((logits + mirrored).argmax(1) == labels).sum())
    return {"accuracy": plain / len(test), "accuracy_with_mirror_images": both / len(test)}


@torch.no_grad()
def mistakes(model: nn.Module, test: LabelledImages, device: torch.device, n: int = 40) -> Image.Image:
    """The pictures of `test` that are named wrong, the surest first: below each, what it is taken for and what it is.
    Where there are fewer than `n`, those named right with the least confidence follow."""
    parts = [model(images.to(device)).softmax(1).cpu() for images in test.scaled().split(BATCH)]
    sure, named = torch.cat(parts).max(dim=1)
    order = torch.where(named == test.labels, -sure, sure).argsort(descending=True)[:n]
    pictures = as_pictures(test.scaled()[order])
    names = []
    for i in order.tolist():
        truth = "" if named[i] == test.labels[i] else f" ({CLASSES[test.labels[i]]})"
        names.append(f"{CLASSES[named[i]]}, {100 * sure[i]:.0f} %{truth}")
    return labelled_grid(list(zip(pictures, names, strict=True)), 8, "taken for … (but it is …)", zoom=3)


def load_classifier(folder: Path, device: torch.device) -> ResNet:
    """A trained classifier. Raises UserError if the folder holds none, or not yet."""
    path = folder / CONFIG
    config = config_from_dict(FashionClassifierConfig, read_json(path), str(path))
    return load_model(ResNet(config.model), folder, device)
