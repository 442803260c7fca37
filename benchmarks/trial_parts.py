"""What `trials.py` puts in place of parts of the text-to-image recipe, one class or function for each trial."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from miniai.base.images import to_pil, to_tensor
from miniai.base.seeds import make_generator
from miniai.diffusion.objectives import Network, diffusion_errors, draw_timesteps, min_snr_weight
from miniai.diffusion.schedule import NoiseSchedule
from miniai.diffusion.weighting import Plain
from miniai.nn.clip import CLIPModel, CLIPTextModel, CLIPTextOutput
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.emoji_captions import with_article
from miniai.recipes.emoji_colours import COLOURS
from miniai.recipes.text_to_image_config import VAELossConfig
from miniai.recipes.unet_stage import TextToImageModel, TextToImageObjective
from miniai.recipes.vae_stage import VAEObjective, to_float
from miniai.train.captions import CaptionedItem


class AlignedModel(TextToImageModel):
    """With a projection of the U-Net's middle onto what CLIP's image encoder says of each patch."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, train_text: bool, width: int) -> None:
        super().__init__(unet, text_encoder, train_text)
        channels = unet.config.block_out_channels[-1]
        self.project = nn.Sequential(nn.Linear(channels, 256), nn.SiLU(), nn.Linear(256, width))
        self.middle: Tensor | None = None
        unet.mid_block.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.middle = output


class AlignedObjective:
    """The diffusion loss, less `weight` times the cosine of projected middle and patches (Yu et al. 2024, eq. 8)."""

    def __init__(self, objective: TextToImageObjective, weight: float) -> None:
        self.objective, self.weight = objective, weight

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(model, AlignedModel)
        loss = self.objective(model, batch[:3], generator)
        assert model.middle is not None
        said = model.project(model.middle.float().flatten(2).transpose(1, 2))
        cosine = F.cosine_similarity(said, batch[3].float(), dim=-1).mean()
        return {"loss": loss - self.weight * cosine, "diffusion": loss, "cosine": cosine}


class Pooled(nn.Module):
    """A text encoder that says of a text one vector, its last token's, in place of one for each token."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.tokens = text_encoder

    def forward(self, ids: Tensor) -> CLIPTextOutput:
        said = self.tokens(ids)
        return replace(said, last_hidden_state=said.pooled[:, None])


class Both(Pooled):
    """The same vector after those of the tokens."""

    def forward(self, ids: Tensor) -> CLIPTextOutput:
        said = self.tokens(ids)
        return replace(said, last_hidden_state=torch.cat([said.last_hidden_state, said.pooled[:, None]], dim=1))


class FlowLoss:
    """Rectified flow's loss for a network that predicts v (Esser et al. 2024, eqs. 2 and 19): its time of a noise level
    is sigma / (1 + sigma), sigma being noise over signal; times are logit-normal."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        sigma = ((1 - schedule.alpha_bar) / schedule.alpha_bar).double().sqrt()
        self.times = sigma / (1 + sigma)

    def __call__(self, network: Network, batch: tuple[Tensor, Any], generator: torch.Generator) -> Tensor:
        x0, condition = batch
        drawn = {"generator": generator, "device": generator.device}
        place = (torch.randperm(len(x0), **drawn) + torch.rand(len(x0), **drawn)) / len(x0)
        time = torch.sigmoid(torch.special.ndtri(place.double().clamp(1e-6, 1 - 1e-6)))
        t = torch.searchsorted(self.times.to(time.device), time).clamp(max=len(self.times) - 1)
        return diffusion_errors(
            *(network, x0, self.schedule.alpha_bar, "v_prediction"),
            gamma=None,
            generator=generator,
            t=t,
            condition=condition,
            weight=Plain("flow"),
        ).mean()


class OffsetLoss:
    """The recipe's loss for v under noise of which a part, of deviation `offset`, is the same for a whole channel
    (Guttenberg 2023, "Diffusion with Offset Noise"): what would let a network darken or whiten a whole picture."""

    def __init__(self, schedule: NoiseSchedule, offset: float, shift: float) -> None:
        self.schedule, self.offset, self.shift = schedule, offset, shift

    def __call__(self, network: Network, batch: tuple[Tensor, Any], generator: torch.Generator) -> Tensor:
        x0, condition = batch
        t = draw_timesteps(len(x0), self.schedule.n_timesteps, generator, shift=self.shift, stratified=True)
        where = {"generator": generator, "device": generator.device}
        noise = torch.randn(x0.shape, **where) + self.offset * torch.randn(*x0.shape[:2], 1, 1, **where)
        level = self.schedule.alpha_bar.to(t.device)[t].double()
        signal, spread = (part.float()[:, None, None, None] for part in (level.sqrt(), (1 - level).sqrt()))
        predicted = network(signal * x0 + spread * noise, t.float(), condition).float()
        errors = (predicted - (signal * noise - spread * x0)).square().flatten(1).mean(1)
        return (errors * min_snr_weight(level, "v_prediction", 5.0, 1.0).float()).mean()


class NoisyVAEObjective(VAEObjective):
    """With noise on the latents, of a deviation beside that of all latents that is drawn for each picture between 0 and
    `noise`."""

    def __init__(self, weights: VAELossConfig, noise: float) -> None:
        super().__init__(weights)
        self.noise = noise

    def disturb(self, latents: Tensor, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        latents, pictures = super().disturb(latents, pictures, generator)
        where = {"generator": generator, "device": generator.device}
        drawn = torch.randn(latents.shape, **where) * torch.rand(len(latents), 1, 1, 1, **where)
        deviation = latents.std(dim=(0, 2, 3), keepdim=True).detach()
        return latents + self.noise * deviation * drawn.to(latents.device), pictures


class Exchanged:
    """Passes each batch on with half of its latents exchanged for those of the other pictures: mirror images, or such
    as are moved."""

    def __init__(self, objective: TextToImageObjective) -> None:
        self.objective = objective

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        drawn = torch.rand(len(batch[0]), 1, 1, 1, generator=generator, device=generator.device)
        flip = (drawn < 0.5).to(batch[0].device)
        return self.objective(model, (torch.where(flip, batch[3], batch[0]), *batch[1:3]), generator)


def with_groups(item: CaptionedItem) -> list[str]:
    """The captions, and half as many that name the Unicode group and subgroup: "cat face, animal mammal, animals
    nature, noto style"."""
    kinds = [str(item.fields[key]).replace("-", " ") for key in ("subgroup", "group")]
    said = ", ".join([str(item.fields["label"]), *kinds])
    return [*item.captions, *[f"{said}, {item.fields['style']} style", said] * (len(item.captions) // 4)]


def with_seen_colours(item: CaptionedItem) -> list[str]:
    """The captions, and half as many that say which colours the picture has: "a red and green apple, noto style"."""
    with Image.open(item.path) as picture:
        colours = " and ".join(seen_colours(picture))
    said = with_article(f"{colours} {item.fields['label']}".strip())
    return [*item.captions, *[f"{said}, {item.fields['style']} style", said] * (len(item.captions) // 4)]


def seen_colours(picture: Image.Image, most: int = 2) -> list[str]:
    """Of nine colours, black and white those that cover a fifth or more of what is not the white around the thing, the
    largest first."""
    flood = picture.convert("RGB")
    for corner in ((0, 0), (flood.width - 1, 0), (0, flood.height - 1), (flood.width - 1, flood.height - 1)):
        ImageDraw.floodfill(flood, corner, (255, 0, 255), thresh=40)
    pixels = torch.from_numpy(np.asarray(flood).copy()).reshape(-1, 3).float() / 255
    thing = pixels[(pixels - torch.tensor([1.0, 0.0, 1.0])).abs().amax(1) > 0.01]
    names = [*COLOURS, "black", "white"]
    palette = torch.tensor([*COLOURS.values(), (0.1, 0.1, 0.1), (1.0, 1.0, 1.0)])
    if len(thing) == 0:
        return []
    shares = torch.bincount(torch.cdist(thing, palette).argmin(1), minlength=len(names)) / len(thing)
    order = shares.argsort(descending=True).tolist()
    return [names[i] for i in order[:most] if shares[i] >= 0.2]


def mirrored(images: Tensor) -> Tensor:
    return images.flip(-1)


def moved(images: Tensor) -> Tensor:
    """Each picture turned by up to 10 degrees and shifted by up to 4 pixels each way, on white."""
    draws = 2 * torch.rand(len(images), 3, generator=make_generator(0)) - 1
    found = []
    for picture, (turn, right, down) in zip(to_pil(to_float(images)), draws.tolist(), strict=True):
        way = (round(4 * right), round(4 * down))
        found.append(picture.rotate(10 * turn, Image.Resampling.BICUBIC, translate=way, fillcolor="white"))
    return ((to_tensor(found) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def encode(vae: Any, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([vae.encode(to_float(part.to(device))).mode().cpu() for part in images.split(128)])


@torch.no_grad()
def patches(clip: CLIPModel, images: Tensor, device: torch.device) -> Tensor:
    """What CLIP's image encoder says of each patch, (n, patches, width), in float16."""
    vision = clip.vision_model
    inputs = (vision.pre_layrnorm(vision.embeddings(to_float(part.to(device)))) for part in images.split(256))
    return torch.cat([vision.encoder(x, None)[-1][:, 1:].half().cpu() for x in inputs])
