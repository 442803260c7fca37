"""Terms that `trials.py` puts beside the autoencoder's loss: of CLIP's features, of a critic, of CLIP's patches."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPModel
from miniai.recipes.decoder_stage import Critic, gradient_norm
from miniai.recipes.text_to_image_config import VAELossConfig
from miniai.recipes.vae_stage import VAEObjective


class VAEBeside(nn.Module):
    """An autoencoder, and what learns beside it and is not kept."""

    def __init__(self, vae: AutoencoderKL, beside: nn.Module) -> None:
        super().__init__()
        self.vae, self.beside = vae, beside


class BesideObjective(VAEObjective):
    """The autoencoder's loss, for a model of the two."""

    def __call__(self, model: nn.Module, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(model, VAEBeside)
        self.beside: Any = model.beside
        return super().__call__(model.vae, images, generator)


class CriticObjective(BesideObjective):
    """With a critic's opinion by the hinge, whose gradient at the pictures is `adversarial` times as long as that of
    all other terms, and the critic's own loss (Esser et al. 2021, section 3.1)."""

    def __init__(self, weights: VAELossConfig, adversarial: float) -> None:
        super().__init__(weights)
        self.adversarial = adversarial

    def terms(self, latents: Any, painted: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        found, critic = super().terms(latents, painted, wanted), self.beside
        frozen = {name: weight.detach() for name, weight in critic.named_parameters()}
        opinion = -functional_call(critic, frozen, (painted,))[1].float().mean()
        scale = self.adversarial * gradient_norm(found["loss"], painted) / gradient_norm(opinion, painted)
        drawn, decoded = critic(wanted)[1].float(), critic(painted.detach())[1].float()
        own = F.relu(1 - drawn).mean() + F.relu(1 + decoded).mean()
        return found | {"loss": found["loss"] + scale * opinion + own, "critic": own}


class AlignedVAEObjective(BesideObjective):
    """Less `weight` times the cosine of the latents, projected, and what CLIP's image encoder says of the patch that
    they lie in (Yao et al. 2025, "VA-VAE", marginal cosine similarity loss, without its margin). CLIP is frozen, in
    place."""

    def __init__(self, weights: VAELossConfig, clip: CLIPModel, weight: float) -> None:
        super().__init__(weights)
        if weights.equivariant:
            raise ValueError("latents that are turned lie in other patches than the picture that is wanted of them")
        self.clip, self.weight = clip.requires_grad_(False), weight

    def terms(self, latents: Any, painted: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        found = super().terms(latents, painted, wanted)
        said = clip_states(self.clip, wanted)[-1][:, 1:]
        side = round(said.shape[1] ** 0.5)
        pooled = F.adaptive_avg_pool2d(latents.mean.float(), side).flatten(2).transpose(1, 2)
        cosine = F.cosine_similarity(self.beside(pooled), said, dim=-1).mean()
        return found | {"loss": found["loss"] - self.weight * cosine, "cosine": cosine}


class PerceptualObjective(VAEObjective):
    """With `weight` times the squared distance of what CLIP's image encoder makes of the pictures, in the mean of its
    layers and patches, every state brought to unit length first (as Zhang et al. 2018, section 3, do with other
    networks). CLIP is frozen, in place."""

    def __init__(self, weights: VAELossConfig, clip: CLIPModel, weight: float) -> None:
        super().__init__(weights)
        self.clip, self.weight = clip.requires_grad_(False), weight

    def terms(self, latents: Any, painted: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        found = super().terms(latents, painted, wanted)
        pairs = zip(clip_states(self.clip, painted), clip_states(self.clip, wanted), strict=True)
        errors = [(F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).mean() for a, b in pairs]
        perceptual = torch.stack(errors).mean()
        return found | {"loss": found["loss"] + self.weight * perceptual, "perceptual": perceptual}


def clip_states(clip: CLIPModel, pictures: Tensor) -> list[Tensor]:
    """What enters each layer of CLIP's image encoder, and what leaves the last: (b, 1 + patches, width) each."""
    vision = clip.to(pictures.device).vision_model
    return [state.float() for state in vision.encoder(vision.pre_layrnorm(vision.embeddings(pictures)), None)]


def projection(vae: AutoencoderKL, clip: CLIPModel) -> nn.Module:
    return nn.Linear(vae.config.latent_channels, clip.config.vision_config.hidden_size)


def critic(vae: AutoencoderKL, clip: CLIPModel) -> nn.Module:
    return Critic()


Beside = Callable[[AutoencoderKL, CLIPModel], nn.Module]
