"""`miniai train fashion-super`: clothes of 14×14 pixels made 28×28, by a U-Net that begins as a classifier.

The loss is the pixels' and what the classifier sees (Johnson et al. 2016); the classifier's part of the network is
unfrozen bit by bit, the deepest first.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.device import pick_device
from miniai.base.files import make_folder, write_json
from miniai.base.images import save_png
from miniai.base.modes import in_eval_mode
from miniai.evaluate.perceptual import layer_outputs
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.nn.super_resolution import SuperResolutionConfig, SuperResolutionUNet
from miniai.recipes.fashion import as_sheet, is_trained, load_both, load_model, save_model, start_run
from miniai.recipes.fashion_autoencoder import psnr
from miniai.recipes.fashion_classifier import BATCH, load_classifier
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import initial_weights, run_stage
from miniai.train.distributed import is_first
from miniai.train.unfreeze import GradualUnfreeze


@dataclass(frozen=True)
class FashionSuperConfig:
    """The whole recipe. `body` is the classifier's own config, put in from its folder; `perceptual` weighs the
    features' part of the loss; `unfrozen` is the share of the training after which the first part of the body learns
    and the last (0: all learn from the start)."""

    body: ResNetConfig = field(default_factory=ResNetConfig)
    cross: bool = True
    stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=1.0, batch_size=128, learning_rate=1e-3, weight_decay=0.0, warmup=0.05, decay_from=0.3, ema=0.995
        )
    )
    perceptual: int | float = 0.1
    unfrozen: tuple[int | float, int | float] = (0.1, 0.4)
    seed: int = 0


def made_small(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Pictures at half the height and width, enlarged again by plain means."""
    small = F.avg_pool2d(images, 2)
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


class SuperObjective:
    """Mean squared error of the pixels, and `perceptual` times that of the judge's features, by their own size."""

    def __init__(self, judge: ResNet, perceptual: int | float) -> None:
        self.judge, self.perceptual = judge.eval().requires_grad_(False), perceptual
        self.layers = [f"blocks.{k}" for k in range(min(2, len(judge.blocks)))]

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b 1 h w"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        painted = model(made_small(images))
        error = (painted.float() - images).square().mean()
        with torch.no_grad():
            wanted = layer_outputs(self.judge, images, self.layers)
        found = layer_outputs(self.judge, painted, self.layers)
        seen = [
            (found[name].float() - one.float()).square().mean() / one.float().square().mean()
            for name, one in wanted.items()
        ]
        features = torch.stack(seen).mean()
        return {"loss": error + self.perceptual * features, "error": error, "features": features}


def train_fashion_super(
    out: Path,
    classifier: Path,
    *,
    data: Path | None = None,
    epochs: int | float = 5,
    resume: bool = False,
    device: str = "auto",
    config: FashionSuperConfig | None = None,
) -> dict[str, Any]:
    """Train in `out` and return what `out/results.json` then says: PSNR in dB on the test pictures, of the network and
    of plain enlargement; and a sheet of both beside the real ones.

    Raises UserError if the data or the classifier is not there, or `out` is in use.
    """
    place = pick_device(device)
    judge = load_classifier(classifier, place)
    config = replace(config or FashionSuperConfig(), body=judge.config)
    train, test = load_both(data)
    run = start_run("super", out, config, epochs, len(train), config.stage.batch_size, place, resume)
    with initial_weights(config.seed):
        model = SuperResolutionUNet(SuperResolutionConfig(config.body, config.cross))
    model.begin_as(judge)

    def show(path: Path) -> None:
        make_folder(path.parent)
        real = test.scaled()[:20]
        rows = zip(*(part.split(10) for part in (made_small(real), enlarged(model, real, place), real)), strict=True)
        save_png(path, as_sheet(torch.cat([part for row in rows for part in row])))

    if is_trained(run):
        load_model(model, out, place)
    else:
        groups = model.body_groups()
        first, last = config.unfrozen
        at = [first + (last - first) * k / max(1, len(groups) - 1) for k in range(len(groups))]
        objective = SuperObjective(judge, config.perceptual)
        unfreeze = [GradualUnfreeze(groups, at)] if last > 0 else []
        run_stage(run, config.stage, model, train.scaled(), objective, config.seed, sample=show, callbacks=unfreeze)
        save_model(model, out)
    real = test.scaled()
    plain, ours = ((part - real).double().square().mean() for part in (made_small(real), enlarged(model, real, place)))
    results = {"epochs": epochs, **run.record(), "psnr": psnr(float(ours)), "psnr_of_enlarging": psnr(float(plain))}
    if is_first():
        show(out / "enlarged.png")
        write_json(out / "results.json", results)
    return results


@torch.no_grad()
def enlarged(
    model: SuperResolutionUNet, images: Float[Tensor, "n 1 h w"], device: torch.device
) -> Float[Tensor, "n 1 h w"]:
    """What the network makes of the same pictures made small, on the CPU, in [-1, 1]."""
    with in_eval_mode(model):
        parts = [model(made_small(part).to(device)).float().cpu() for part in images.split(BATCH)]
    return torch.cat(parts).clamp(-1, 1)
