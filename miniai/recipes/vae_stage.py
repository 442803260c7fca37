"""Stage 1: an autoencoder learns to put a picture into a few numbers, and back."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from miniai.base.files import make_folder
from miniai.base.images import grid, save_png, to_pil
from miniai.base.seeds import on_host
from miniai.nn.autoencoder import AutoencoderKL, DiagonalGaussian
from miniai.recipes.text_to_image_config import TextToImageConfig, VAELossConfig
from miniai.recipes.training import StageRun, initial_weights, run_stage


def to_float(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pixels of 0 to 255 to [-1, 1], in channels-last memory."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class VAEObjective:
    """Mean absolute error of the pixels and of their edges, and the divergence of the latents from the standard normal
    (the evidence lower bound with a Laplace likelihood; Kingma and Welling 2014, equation 10, reweighted); in some
    batches latents and pictures are changed alike."""

    def __init__(self, weights: VAELossConfig) -> None:
        self.weights = weights

    def __call__(
        self, model: nn.Module, images: UInt8[Tensor, "b 3 h w"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, AutoencoderKL)
        target = to_float(permute_channels(images, self.weights.recolour, generator))
        latents = model.encode(target)
        sampled, wanted = self.disturb(latents.sample(generator), target, generator)
        return self.terms(latents, model.decode(sampled).float(), wanted)

    def terms(
        self, latents: DiagonalGaussian, painted: Float[Tensor, "b 3 y x"], wanted: Float[Tensor, "b 3 y x"]
    ) -> dict[str, Tensor]:
        """The loss, and its parts."""
        pixels = (painted - wanted).abs().mean()
        edges = edge_error(painted, wanted)
        kl = latents.kl().mean() / latents.mean[0].numel()
        loss = pixels + self.weights.edges * edges + self.weights.kl * kl
        return {"loss": loss, "pixels": pixels, "edges": edges, "kl": kl}

    def disturb(
        self, latents: Float[Tensor, "b c h w"], pictures: Float[Tensor, "b 3 y x"], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What the decoder sees of the latents, and what it must make of that."""
        chance = on_host(generator)
        if float(torch.rand((), generator=chance)) >= self.weights.equivariant:
            return latents, pictures
        kind = int(torch.randint(0, len(CHANGES), (), generator=chance))
        return CHANGES[kind](latents), CHANGES[kind](pictures)


# What is done to latents and pictures alike: turned by quarters, mirrored, halved in size.
CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda maps: maps.rot90(1, (2, 3)),
    lambda maps: maps.rot90(2, (2, 3)),
    lambda maps: maps.rot90(3, (2, 3)),
    lambda maps: maps.flip(3),
    lambda maps: nn.functional.avg_pool2d(maps, 2),
)


def permute_channels(
    images: UInt8[Tensor, "b 3 h w"], share: float, generator: torch.Generator
) -> UInt8[Tensor, "b 3 h w"]:
    """Put the three colours of about `share` of the pictures in a random order; white, grey and black stay."""
    drawn = torch.rand(len(images), 4, generator=generator, device=generator.device).to(images.device)
    order = torch.where(drawn[:, 3:] < share, drawn[:, :3].argsort(dim=1), torch.arange(3, device=images.device))
    return images.gather(1, order[:, :, None, None].expand_as(images))


def edge_error(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean absolute error of the differences between horizontal and between vertical neighbours."""
    error = a - b
    return 0.5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())


def train_vae(
    config: TextToImageConfig, images: UInt8[Tensor, "n 3 h w"], run: StageRun, vae: AutoencoderKL | None = None
) -> AutoencoderKL:
    """Train an autoencoder (a new one, or the one given) on `images`; its latents have mean 0 and deviation 1 in each
    channel."""
    if vae is None:
        with initial_weights(config.seed):
            vae = AutoencoderKL(config.vae)
    vae.train().requires_grad_(True)
    few = images[torch.linspace(0, len(images) - 1, min(32, len(images))).long()]

    def sample(path: Path) -> None:
        save_reconstructions(path, vae, few.to(run.device))

    run_stage(run, config.vae_stage, vae, images, VAEObjective(config.vae_loss), config.seed, sample=sample)
    standardise_latents(vae, images[:: max(1, len(images) // 1024)].to(run.device))
    return vae


@torch.no_grad()
def save_reconstructions(path: str | os.PathLike[str], vae: AutoencoderKL, images: UInt8[Tensor, "n 3 h w"]) -> None:
    """A sheet with rows of pictures, each above what the autoencoder makes of it."""
    target = to_float(images)
    painted = vae.decode(vae.encode(target).mode())
    make_folder(Path(path).parent)
    n_columns = 8
    rows = []
    for start in range(0, len(images), n_columns):
        for row in (target, painted.float()):
            rows += to_pil(row[start : start + n_columns].cpu())
    save_png(path, grid(rows, n_columns, gap=2))


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, images: UInt8[Tensor, "n 3 h w"]) -> None:
    """Shift and scale each latent channel to mean 0 and deviation 1 over `images`, by changing the 1×1 convolutions on
    either side of the latents, so that pictures stay what they were and no factor need be remembered."""
    assert vae.quant_conv is not None
    assert vae.post_quant_conv is not None
    means = torch.cat([vae.encode(to_float(part)).mean for part in images.split(128)]).float()
    mean, std = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    c = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before.bias is not None
    assert after.bias is not None
    before.weight[:c] /= std[:, None, None, None]
    before.bias[:c] = (before.bias[:c] - mean) / std
    before.bias[c:] -= 2 * std.log()  # log-variances
    after.bias += (after.weight[:, :, 0, 0] @ mean[:, None])[:, 0]
    after.weight *= std[None, :, None, None]
