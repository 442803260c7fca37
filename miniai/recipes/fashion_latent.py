"""`miniai train fashion-latent`: clothes painted in the latents of an autoencoder trained here (Rombach et al. 2022).

First a variational autoencoder puts each picture into 8×8×4 numbers, a quarter of its pixels; then a U-Net learns to
take noise out of those, at a quarter of the multiply-adds of the recipes that paint pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from miniai.base.configs import config_from_dict
from miniai.base.device import pick_device
from miniai.base.files import make_folder, read_json
from miniai.base.images import save_png
from miniai.base.weights import read_weights, write_weights
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.unet2d import UNet2DConfig, UNet2DModel
from miniai.recipes.fashion import (
    CONFIG,
    PADDING,
    as_sheet,
    check_above_0,
    is_trained,
    load_both,
    load_model,
    save_model,
    start_run,
)
from miniai.recipes.fashion_autoencoder import (
    FashionAutoencoderConfig,
    decoded,
    encoded,
    fit_autoencoder,
    load_autoencoder,
    small_autoencoder,
)
from miniai.recipes.fashion_diffusion import FashionObjective
from miniai.recipes.fashion_diffusion_config import N_CLASSES, RECIPES, FashionDiffusionConfig
from miniai.recipes.fashion_painting import draw, load_fashion_diffusion, paint
from miniai.recipes.training import StageRun, initial_weights, run_stage
from miniai.recipes.unet_stage import init_unet
from miniai.train.data import TensorDataset
from miniai.train.distributed import is_first

AUTOENCODER, SCALE = "autoencoder", "latents.safetensors"
Painter = Callable[..., Float[Tensor, "n 1 h w"]]


def latent_unet() -> UNet2DConfig:
    """7.6 M parameters for 8×8 latents; 0.20 G multiply-adds a picture."""
    return UNet2DConfig(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(128, 192),
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        num_class_embeds=N_CLASSES + 1,
    )


@dataclass(frozen=True)
class FashionLatentConfig:
    """The whole recipe: the autoencoder, then the diffusion in its latents, of a class that one may ask for."""

    autoencoder: FashionAutoencoderConfig = field(
        default_factory=lambda: FashionAutoencoderConfig(small_autoencoder((16, 48, 96), 4), kl=2e-4)
    )
    diffusion: FashionDiffusionConfig = field(
        default_factory=lambda: replace(
            RECIPES["conditional"], kind="latent", model=latent_unet(), patch_size=1, guidance_scale=1.5
        )
    )

    def seeded(self, seed: int) -> "FashionLatentConfig":
        """The same recipe, both networks from this seed."""
        return FashionLatentConfig(replace(self.autoencoder, seed=seed), replace(self.diffusion, seed=seed))


@dataclass(frozen=True)
class LatentScale:
    """Mean and deviation of each channel of the latents, which the U-Net sees at mean 0 and deviation 1."""

    mean: Float[Tensor, " c"]
    deviation: Float[Tensor, " c"]

    @classmethod
    def of(cls, latents: Float[Tensor, "n c h w"]) -> "LatentScale":
        return cls(latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))

    def standardised(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (latents - self.mean[:, None, None]) / self.deviation[:, None, None]

    def restored(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return latents * self.deviation[:, None, None] + self.mean[:, None, None]


def train_fashion_latent(
    out: Path,
    *,
    data: Path | None = None,
    epochs: int | float = 25,
    autoencoder_epochs: int | float = 10,
    resume: bool = False,
    device: str = "auto",
    config: FashionLatentConfig | None = None,
) -> StageRun:
    """Train both networks in `out`, the first in `out/autoencoder`: weights, config, log, loss curves, samples.

    Raises UserError if the data is not there, or `out` is in use.
    """
    config = config or FashionLatentConfig()
    check_above_0("--autoencoder-epochs", autoencoder_epochs)
    train, test = load_both(data)
    place = pick_device(device)
    stage = config.diffusion.stage
    run = start_run("latent", out, config, epochs, len(train), stage.batch_size, place, resume)
    if is_trained(run):
        return run
    # Whether `out` may be gone on with is settled above, for both.
    fit_autoencoder(out / AUTOENCODER, config.autoencoder, train, test, autoencoder_epochs, resume=True, device=place)
    vae = load_autoencoder(out / AUTOENCODER, place)
    latents = encoded(vae, train.scaled(PADDING), place)
    scale = LatentScale.of(latents)
    if is_first():
        write_weights(out / SCALE, {"mean": scale.mean, "deviation": scale.deviation})
    with initial_weights(config.diffusion.seed):
        model = init_unet(UNet2DModel(config.diffusion.model))

    def show(path: Path) -> None:
        make_folder(path.parent)
        save_png(
            path, as_sheet(paint_latent(model, vae, scale, config.diffusion, torch.arange(20) % N_CLASSES, seed=0))
        )

    items = TensorDataset((scale.standardised(latents), train.labels))
    run_stage(run, stage, model, items, FashionObjective(config.diffusion), config.diffusion.seed, sample=show)
    save_model(model, out)
    return run


def paint_latent(
    model: UNet2DModel,
    vae: AutoencoderKL,
    scale: LatentScale,
    config: FashionDiffusionConfig,
    labels: Int64[Tensor, " n"],
    *,
    seed: int,
    batch_size: int = 256,
    **options: Any,
) -> Float[Tensor, "n 1 h w"]:
    """As `paint` does, by latents that are drawn and then decoded."""
    latents = draw(model, config, labels, seed=seed, batch_size=batch_size, **options)
    return decoded(vae, scale.restored(latents), next(vae.parameters()).device)


def load_painter(folder: Path, device: torch.device) -> tuple["partial[Tensor]", FashionDiffusionConfig]:
    """Whatever a folder's training paints with, of pixels or of latents: call it as `paint`, from the labels on.

    Raises UserError if the folder holds no finished training.
    """
    if not is_latent(folder):
        network, config = load_fashion_diffusion(folder, device)
        return partial(paint, network, config), config
    model, vae, scale, config = load_fashion_latent(folder, device)
    return partial(paint_latent, model, vae, scale, config), config


def is_latent(folder: Path) -> bool:
    """Whether the training in `folder` was of latents. Raises UserError if there is none."""
    return AUTOENCODER in read_json(folder / CONFIG)


def load_fashion_latent(
    folder: Path, device: torch.device
) -> tuple[UNet2DModel, AutoencoderKL, LatentScale, FashionDiffusionConfig]:
    """The network of latents, their autoencoder, their scale, and the recipe of the diffusion.

    Raises UserError if the folder holds no finished training.
    """
    path = folder / CONFIG
    recipe = config_from_dict(FashionLatentConfig, read_json(path), str(path))
    model = load_model(UNet2DModel(recipe.diffusion.model), folder, device)
    scale = LatentScale(**read_weights(folder / SCALE))
    return model, load_autoencoder(folder / AUTOENCODER, device), scale, recipe.diffusion
