"""Stages 3 and 4: latents and text embeddings are computed once; then a U-Net learns to take noise out of latents."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from miniai.base.images import grid, save_png
from miniai.base.seeds import image_generators
from miniai.base.weights import read_weights, write_weights
from miniai.diffusion.objectives import DiffusionObjective, drop_condition
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import CaptionTable, choose_captions
from miniai.recipes.text_to_image_config import TextToImageConfig
from miniai.recipes.training import StageRun, initial_weights, run_stage
from miniai.recipes.vae_stage import to_float
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.data import TensorDataset

SAMPLE_PROMPTS = (
    "a cat", "a red apple", "a smiling face with sunglasses", "a guitar", "a red heart", "a dog", "an umbrella",
    "a slice of pizza", "a car", "a tree", "a crying face", "a fish", "a house", "a soccer ball", "the sun", "a clock",
)  # fmt: skip


@dataclass(frozen=True)
class Latents:
    """What the U-Net is trained on. Picture i has latents[i] and the captions texts[rows[i, :counts[i]]]."""

    latents: Float[Tensor, "n c h w"]  # scaled: about unit deviation
    rows: Int[Tensor, "n most"]
    counts: Int[Tensor, " n"]
    texts: Float[Tensor, "m window d"]  # the text encoder's last hidden states, one for each distinct caption
    empty: Float[Tensor, "window d"]  # of the empty prompt

    def save(self, path: str | os.PathLike[str]) -> None:
        write_weights(path, vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Latents":
        return cls(**read_weights(path))


@torch.no_grad()
def compute_latents(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    images: UInt8[Tensor, "n 3 h w"],
    captions: list[list[str]],
    device: torch.device,
) -> Latents:
    """Encode every picture and every distinct caption once; kept in float16, which holds half the bytes."""
    vae, text_encoder = vae.to(device).eval(), text_encoder.to(device).eval()
    table = CaptionTable(captions, tokenizer)
    scale = vae.config.scaling_factor
    latents = [vae.encode(to_float(part.to(device))).mode().cpu() * scale for part in images.split(128)]
    texts = [text_encoder(part.to(device)).last_hidden_state.half().cpu() for part in table.ids.split(512)]
    empty = text_encoder(tokenizer([""]).to(device)).last_hidden_state[0].half().cpu()
    return Latents(torch.cat(latents).contiguous(), table.rows, table.counts, torch.cat(texts), empty)


class TextToImageObjective:
    """The diffusion loss of latents given one of the picture's captions, or, now and then, none."""

    def __init__(self, config: TextToImageConfig, data: Latents, device: torch.device) -> None:
        self.texts, self.empty = data.texts.to(device), data.empty.to(device)
        self.drop_text = config.drop_text
        self.diffusion = DiffusionObjective(NoiseSchedule(config.schedule), config.weighting)

    def __call__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        latents, rows, counts = batch
        condition = self.texts[choose_captions(rows, counts, generator)]
        condition = drop_condition(condition, self.empty, self.drop_text, generator).float()
        x0 = latents.float().contiguous(memory_format=torch.channels_last)
        return self.diffusion(model, (x0, condition), generator)


def train_unet(
    config: TextToImageConfig,
    data: Latents,
    run: StageRun,
    paint: Callable[[UNet2DConditionModel, Path], None] | None = None,
) -> UNet2DConditionModel:
    """Train the U-Net on `data`; `paint(unet, path)` draws its sample grids."""
    with initial_weights(config.seed):
        unet = init_unet(UNet2DConditionModel(config.unet))
    objective = TextToImageObjective(config, data, run.device)
    pictures = TensorDataset((data.latents, data.rows, data.counts))
    sample_unet = None if paint is None else lambda path: paint(unet, path)
    run_stage(run, config.unet_stage, unet, pictures, objective, config.seed, sample=sample_unet)
    return unet


def init_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Start each residual branch, and the output, at zero: the network begins as its identity paths
    (Dhariwal and Nichol 2021, their code; Peebles and Xie 2023, section 3.2)."""
    last_layers = [unet.conv_out]
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")):
            last_layers.append(module)
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return unet


def save_grid(
    path: Path, pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, n_steps: int = 20, scale: float = 4.0
) -> None:
    """Paint `prompts` from the same noise each time, picture i with `seed + i`, into one sheet."""
    generators = image_generators(seed, len(prompts))
    images = pipeline(prompts, num_inference_steps=n_steps, guidance_scale=scale, generator=generators).images
    assert isinstance(images, list)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, grid(images, 8, gap=2))
