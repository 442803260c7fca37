"""Stage 6: the decoder learns to paint sharp pictures from the latents that the U-Net makes.

Until now it has seen only what the encoder made of real pictures. The U-Net's latents lack the finest detail, and where
an outline may run here or there, the mean error alone paints both. So each training picture goes part of the way into
noise and comes back through the U-Net; the decoder learns the picture from that as well as from its own latents; and a
critic that tells drawn patches from decoded ones learns against it (Isola et al. 2017; Rombach et al. 2022, app. G).
The encoder, and with it every latent, stays as it is: the U-Net need not learn anything anew.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import trange

from miniai.base.device import autocast
from miniai.base.files import make_folder
from miniai.base.images import grid, save_png, to_pil
from miniai.base.seeds import image_generators
from miniai.nn.autoencoder import AutoencoderKL
from miniai.recipes.clip_stage import choose_captions
from miniai.recipes.text_to_image_config import DecoderLossConfig, TextToImageConfig
from miniai.recipes.training import StageRun, initial_weights, run_stage
from miniai.recipes.unet_stage import Latents
from miniai.recipes.vae_stage import edge_error, to_float
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.data import TensorDataset

BATCH = 128  # pictures at a time where nothing is learned


@torch.no_grad()
def painted_latents(
    pipeline: StableDiffusionPipeline, data: Latents, config: DecoderLossConfig, seed: int, progress: bool = True
) -> Float[Tensor, "n c h w"]:
    """What the U-Net makes of each picture's latents from `config.strength` of the noise, under one of its captions; in
    float16."""
    text_encoder, device = pipeline.text_encoder, pipeline.device
    generators = image_generators(seed, len(data.latents))
    captions = choose_captions(data.rows, data.counts, torch.Generator().manual_seed(seed))
    nothing = text_encoder(data.ids[-1:].to(device)).last_hidden_state
    parts = []
    hidden = None if progress else True  # None: on a terminal alone it is not
    for start in trange(0, len(generators), BATCH, desc="painting for the decoder", unit="batch", disable=hidden):
        part = slice(start, start + BATCH)
        texts = text_encoder(data.ids[captions[part]].to(device)).last_hidden_state
        with autocast(device):
            painted = pipeline(
                prompt_embeds=texts,
                negative_prompt_embeds=nothing.expand_as(texts),
                image=data.latents[part].to(device),
                strength=config.strength,
                num_inference_steps=config.n_steps,
                guidance_scale=config.guidance_scale,
                generator=generators[part],
                output_type="latent",
            ).images
        assert isinstance(painted, Tensor)
        parts.append(painted.half().cpu())
    return torch.cat(parts)


class Critic(nn.Module):
    """Tells for each patch, of 22×22 pixels, whether it was drawn (above 0) or decoded (Isola et al. 2017, section
    3.2.2). Its features of all depths come first: they too should look like those of drawn pictures."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.out = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[list[Tensor], Float[Tensor, "b 1 h2 w2"]]:
        x, features = images, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return features, self.out(x)


class DecoderAndCritic(nn.Module):
    """What learns together: the half of the autoencoder that paints, and its critic."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False)
        for half in (vae.decoder, vae.post_quant_conv):
            if half is not None:
                half.requires_grad_(True)
        self.critic = Critic()


class DecoderObjective:
    """Mean absolute error of pixels, edges and the critic's features; the critic's opinion, by the hinge (Lim and Ye
    2017, equation 3); and the critic's own loss, all in one sum: neither learns by the other's part.

    The opinion is scaled so that its gradient at the pictures is `adversarial` times as long as that of the errors
    (Esser et al. 2021, equation 7, there at the last layer).
    """

    def __init__(self, weights: DecoderLossConfig, scaling_factor: float) -> None:
        self.weights, self.scaling_factor = weights, scaling_factor

    def __call__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, DecoderAndCritic)
        target = to_float(batch[2])
        latents = self.choose(batch[0], batch[1], generator)
        painted = model.vae.decode(latents / self.scaling_factor).float()

        frozen = {name: weight.detach() for name, weight in model.critic.named_parameters()}
        features, opinion = functional_call(model.critic, frozen, (painted,))
        real_features, real_opinion = model.critic(target)
        _, painted_opinion = model.critic(painted.detach())

        pixels, edges = (painted - target).abs().mean(), edge_error(painted, target)
        pairs = zip(features, real_features, strict=True)
        alike = sum(F.l1_loss(ours.float(), theirs.detach().float()) for ours, theirs in pairs) / len(features)
        errors = pixels + self.weights.edges * edges + self.weights.features * alike
        adversarial = -opinion.float().mean()
        scale = self.weights.adversarial * gradient_norm(errors, painted) / gradient_norm(adversarial, painted)
        critic = F.relu(1 - real_opinion.float()).mean() + F.relu(1 + painted_opinion.float()).mean()
        loss = errors + scale * adversarial + critic
        return {"loss": loss, "pixels": pixels, "edges": edges, "features": alike, "critic": critic}

    def choose(
        self, own: Float[Tensor, "b c h w"], painted: Float[Tensor, "b c h w"], generator: torch.Generator
    ) -> Float[Tensor, "b c h w"]:
        """The U-Net's latents for `painted` of the pictures, for the others their own with up to `noise` on them."""
        drawn = torch.rand(2, len(own), 1, 1, 1, generator=generator, device=generator.device).to(own.device)
        noise = torch.randn(own.shape, generator=generator, device=generator.device).to(own.device)
        own = own.float() + self.weights.noise * drawn[1] * noise
        return torch.where(drawn[0] < self.weights.painted, painted.float(), own)


def gradient_norm(loss: Float[Tensor, ""], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    return gradient.norm().clamp_min(1e-12)


def train_decoder(
    config: TextToImageConfig,
    images: UInt8[Tensor, "n 3 h2 w2"],
    latents: Float[Tensor, "n c h w"],
    painted: Float[Tensor, "n c h w"],
    vae: AutoencoderKL,
    run: StageRun,
) -> AutoencoderKL:
    """Train the decoder of `vae` to make `images` of their `latents` and of what the U-Net made of these."""
    with initial_weights(config.seed):
        model = DecoderAndCritic(vae.train())
    few = torch.linspace(0, len(images) - 1, min(32, len(images))).long()

    def sample(path: Path) -> None:
        shown = [part[few].to(run.device).float() / vae.config.scaling_factor for part in (latents, painted)]
        save_decoded(path, vae, images[few].to(run.device), shown)

    objective = DecoderObjective(config.decoder_loss, vae.config.scaling_factor)
    data = TensorDataset((latents, painted, images))
    run_stage(run, config.decoder_stage, model, data, objective, config.seed, sample=sample)
    return vae


@torch.no_grad()
def save_decoded(
    path: Path, vae: AutoencoderKL, images: UInt8[Tensor, "n 3 h2 w2"], latents: Sequence[Float[Tensor, "n c h w"]]
) -> None:
    """A sheet with rows of pictures, each above what is decoded from each of their `latents` (unscaled)."""
    make_folder(path.parent)
    rows = [to_float(images), *(vae.decode(part).float() for part in latents)]
    n_columns = 8
    starts = range(0, len(images), n_columns)
    shown = [picture for start in starts for row in rows for picture in to_pil(row[start : start + n_columns].cpu())]
    save_png(path, grid(shown, n_columns, gap=2))
