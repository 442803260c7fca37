"""`miniai train fashion-autoencoder`: clothes put into 64 numbers, and painted again from them.

With chance in the latents it is the variational autoencoder that `fashion-latent` begins with. Its error stands beside
that of principal components, the best that as many numbers can do by linear means.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.configs import config_from_dict
from miniai.base.device import pick_device
from miniai.base.files import make_folder, read_json, write_json
from miniai.base.images import save_png
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.recipes.fashion import CONFIG, PADDING, as_sheet, is_trained, load_both, load_model, save_model, start_run
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import initial_weights, run_stage
from miniai.train.distributed import is_first
from miniai.train.fashion_mnist import LabelledImages

RESULTS = "results.json"
BATCH = 500  # pictures at a time where nothing is learned
MOST_FOR_COMPONENTS = 20_000  # pictures; more do not change 64 of 784 components


def small_autoencoder(block_out_channels: tuple[int, ...], latent_channels: int) -> VAEConfig:
    """For 32×32 grey pixels; each level after the first halves height and width."""
    n_levels = len(block_out_channels)
    return VAEConfig(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * n_levels,
        up_block_types=("UpDecoderBlock2D",) * n_levels,
        block_out_channels=block_out_channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


@dataclass(frozen=True)
class FashionAutoencoderConfig:
    """The whole recipe. `kl` weighs the divergence of the latents from the standard normal, in nats per number, against
    the mean squared error of the pixels; at 0 there is no chance in the latents."""

    model: VAEConfig = field(default_factory=lambda: small_autoencoder((16, 32, 64, 128), 4))
    stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=1.0, batch_size=128, learning_rate=1e-3, weight_decay=0.0, warmup=0.05, decay_from=0.3, ema=0.995
        )
    )
    kl: float = 0.0
    seed: int = 0

    @property
    def n_numbers(self) -> int:
        """Latent numbers of a picture."""
        return self.model.latent_channels * (self.model.sample_size // self.model.factor) ** 2


class AutoencoderObjective:
    """Mean squared error of the pixels, and `kl` times the divergence of the latents from the standard normal: Kingma
    and Welling 2014, equation 10 with a normal likelihood, reweighted."""

    def __init__(self, kl: float) -> None:
        self.kl = kl

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b 1 h w"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        painted, latents = model(images, generator if self.kl else None)
        error = (painted.float() - images).square().mean()
        if not self.kl:
            return {"loss": error}
        kl = latents.kl().float().mean() / latents.mean[0].numel()
        return {"loss": error + self.kl * kl, "error": error, "kl": kl}


def train_fashion_autoencoder(
    out: Path,
    *,
    data: Path | None = None,
    epochs: int | float = 10,
    resume: bool = False,
    device: str = "auto",
    config: FashionAutoencoderConfig | None = None,
) -> dict[str, Any]:
    """Train in `out` and return what `out/results.json` then says: the error on the test pictures, as the mean square
    (pixels in [-1, 1]) and as PSNR in dB, beside that of as many principal components; and a sheet of them.

    Raises UserError if the data is not there or `out` is in use.
    """
    train, test = load_both(data)
    return fit_autoencoder(
        out, config or FashionAutoencoderConfig(), train, test, epochs, resume=resume, device=pick_device(device)
    )


def fit_autoencoder(
    out: Path,
    config: FashionAutoencoderConfig,
    train: LabelledImages,
    test: LabelledImages,
    epochs: int | float,
    *,
    resume: bool,
    device: torch.device,
) -> dict[str, Any]:
    """`train_fashion_autoencoder` on pictures at hand."""
    run = start_run("autoencoder", out, config, epochs, len(train), config.stage.batch_size, device, resume)
    if is_trained(run) and (out / RESULTS).is_file():
        return read_json(out / RESULTS)
    with initial_weights(config.seed):
        model = AutoencoderKL(config.model)
    pictures, unseen = train.scaled(PADDING), test.scaled(PADDING)

    def show(path: Path) -> None:
        make_folder(path.parent)
        save_png(path, as_sheet(beside_their_reconstructions(model, unseen[:50], device)))

    if is_trained(run):
        load_model(model, out, device)
    else:
        run_stage(run, config.stage, model, pictures, AutoencoderObjective(config.kl), config.seed, sample=show)
        save_model(model, out)
    if is_first():
        show(out / "reconstructions.png")
    error = squared_error(reconstructed(model, unseen, device), unseen)
    linear = squared_error(by_components(pictures[:MOST_FOR_COMPONENTS], unseen, config.n_numbers), unseen)
    results = {
        "epochs": epochs,
        **run.record(),
        "numbers": config.n_numbers,
        "squared_error": error,
        "psnr": psnr(error),
        "psnr_of_components": psnr(linear),
    }
    if is_first():
        write_json(out / RESULTS, results)
    return results


def load_autoencoder(folder: Path, device: torch.device) -> AutoencoderKL:
    """A trained autoencoder. Raises UserError if the folder holds none, or not yet."""
    path = folder / CONFIG
    config = config_from_dict(FashionAutoencoderConfig, read_json(path), str(path))
    return load_model(AutoencoderKL(config.model), folder, device)


@torch.no_grad()
def encoded(model: AutoencoderKL, images: Float[Tensor, "n 1 h w"], device: torch.device) -> Float[Tensor, "n c h2 w2"]:
    """The latents of pictures, without chance, on the CPU."""
    return torch.cat([model.encode(part.to(device)).mode().float().cpu() for part in images.split(BATCH)])


@torch.no_grad()
def decoded(
    model: AutoencoderKL, latents: Float[Tensor, "n c h w"], device: torch.device
) -> Float[Tensor, "n 1 h2 w2"]:
    """The pictures of latents, in [-1, 1], on the CPU."""
    parts = [model.decode(part.to(device)).float().cpu() for part in latents.split(BATCH)]
    return torch.cat(parts).clamp(-1, 1)


def reconstructed(
    model: AutoencoderKL, images: Float[Tensor, "n 1 h w"], device: torch.device
) -> Float[Tensor, "n 1 h w"]:
    """What the autoencoder makes of pictures."""
    return decoded(model, encoded(model, images, device), device)


def by_components(
    train: Float[Tensor, "m 1 h w"], images: Float[Tensor, "n 1 h w"], n_components: int
) -> Float[Tensor, "n 1 h w"]:
    """What is left of `images` in the first principal components of `train` (Pearson 1901)."""
    rows = train.flatten(1)
    mean = rows.mean(dim=0)
    centred = rows - mean
    _, vectors = torch.linalg.eigh((centred.T @ centred).double())  # in rising order
    components = vectors[:, -n_components:].float()
    return ((images.flatten(1) - mean) @ components @ components.T + mean).view_as(images)


def squared_error(painted: Float[Tensor, "n 1 h w"], images: Float[Tensor, "n 1 h w"]) -> float:
    """The mean over all pixels but those of the padding, which are always black."""
    inner = (painted - images)[:, :, PADDING:-PADDING, PADDING:-PADDING]
    return float(inner.double().square().mean())


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB, of pixels in [-1, 1]."""
    return 10 * math.log10(4 / squared_error) if squared_error else math.inf


def beside_their_reconstructions(
    model: AutoencoderKL, images: Float[Tensor, "n 1 h w"], device: torch.device, n_columns: int = 10
) -> Float[Tensor, "m 1 h w"]:
    """Rows of pictures, each above a row of what the autoencoder makes of them."""
    painted = reconstructed(model, images, device)
    rows = zip(images.split(n_columns), painted.split(n_columns), strict=True)
    return torch.cat([part for row in rows for part in row])
