"""Stages 3 and 4: latents and text embeddings are computed once; then a U-Net learns to take noise out of latents."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from miniai.base.files import make_folder
from miniai.base.images import grid, save_png
from miniai.base.seeds import image_generators
from miniai.base.weights import read_weights, write_weights
from miniai.diffusion.objectives import DiffusionObjective, Network, drop_condition
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.layers import SelfAttention2D
from miniai.nn.unet import UNet, UNet2DConditionModel
from miniai.recipes.clip_stage import CaptionTable, choose_captions
from miniai.recipes.text_tails import Swap, swapped_tails
from miniai.recipes.text_to_image_config import TextToImageConfig
from miniai.recipes.training import StageRun, compiled, initial_weights, run_stage
from miniai.recipes.vae_stage import to_float
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.data import TensorDataset

SAMPLE_PROMPTS = (
    "a cat", "a red apple", "a smiling face with sunglasses", "a guitar", "a red heart", "a dog", "an umbrella",
    "a slice of pizza", "a car", "a tree", "a crying face", "a fish", "a house", "a soccer ball", "the sun", "a clock",
)  # fmt: skip

AnyUNet = TypeVar("AnyUNet", bound=UNet)


@dataclass(frozen=True)
class Latents:
    """What the U-Net is trained on. Picture i has latents[i] and the captions ids[rows[i, :counts[i]]]."""

    latents: Float[Tensor, "n c h w"]  # scaled: about unit deviation
    rows: Int[Tensor, "n most"]
    counts: Int[Tensor, " n"]
    ids: Int[Tensor, "m window"]  # token ids, one row for each distinct caption, and the empty prompt last
    texts: Float[Tensor, "k window d"]  # the text encoder's last hidden states of them; none if it is trained too

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
    keep_texts: bool,
) -> Latents:
    """Encode every picture once and, with `keep_texts`, every distinct caption; texts are kept in float16."""
    vae, text_encoder = vae.to(device).eval(), text_encoder.to(device).eval()
    table = CaptionTable(captions, tokenizer)
    ids = torch.cat([table.ids, tokenizer([""])])
    scale = vae.config.scaling_factor
    latents = [vae.encode(to_float(part.to(device))).mode().cpu() * scale for part in images.split(128)]
    shown = ids if keep_texts else ids[:0]
    texts = [text_encoder(part.to(device)).last_hidden_state.half().cpu() for part in shown.split(512)]
    return Latents(torch.cat(latents).contiguous(), table.rows, table.counts, ids, torch.cat(texts))


class TextToImageModel(nn.Module):
    """What learns together: the U-Net and, unless it is frozen, the text encoder that it listens to."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, train_text: bool) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder.requires_grad_(train_text)


class TextToImageObjective:
    """The diffusion loss of latents given one of the picture's captions, or, now and then, the empty prompt; of
    `config.text_swap` of them the tail is another's, and with `config.text_noise` the tokens bear noise of that share
    of their deviation, each its own.

    `compiler` puts the networks through torch.compile, for the steps of the training alone: minutes at the first.
    """

    def __init__(
        self, config: TextToImageConfig, data: Latents, device: torch.device, compiler: str | None = None
    ) -> None:
        self.ids, self.eos_id = data.ids.to(device), int(data.ids[-1, 1])  # the empty prompt's second
        self.empty = torch.tensor(len(self.ids) - 1, device=device)
        self.texts = None if config.train_text else data.texts.to(device)  # what a frozen encoder made of them
        self.drop_text, self.text_noise, self.text_swap = config.drop_text, config.text_noise, config.text_swap
        self.token_width = config.text.hidden_size
        self.diffusion = DiffusionObjective(
            NoiseSchedule(config.schedule), config.weighting, timestep_shift=config.timestep_shift
        )
        self.compiler = compiler
        self.network: Network | None = None

    def __call__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        assert isinstance(model, TextToImageModel)
        latents, rows, counts = batch
        chosen = drop_condition(choose_captions(rows, counts, generator), self.empty, self.drop_text, generator)
        ids = self.ids[chosen]
        said = ids if self.texts is None else self.texts[chosen]
        noise = swap = None
        if self.text_noise:
            shape = (*ids.shape, self.token_width)
            noise = self.text_noise * torch.randn(shape, generator=generator, device=generator.device).to(ids.device)
        if self.text_swap:
            swap = swapped_tails(ids, self.eos_id, self.text_swap, generator)
        x0 = latents.float().contiguous(memory_format=torch.channels_last)
        if self.network is None:
            self.network = compiled(self.network_of(model), self.compiler, x0.device)
        return self.diffusion(self.network, (x0, (said, swap, noise)), generator)

    def network_of(self, model: TextToImageModel) -> Network:
        """What is trained, as one function of noisy latents, timesteps, and captions with whose tails and which noise
        their tokens get."""

        def network(x_t: Tensor, t: Tensor, condition: tuple[Tensor, Swap | None, Tensor | None]) -> Tensor:
            said, swap, noise = condition
            said = (model.text_encoder(said).last_hidden_state if self.texts is None else said).float()
            if swap is not None:
                said = said[swap]
            if noise is not None:
                said = said + said.detach().std() * noise
            return model.unet(x_t, t, said)

        return network


def train_unet(
    config: TextToImageConfig,
    data: Latents,
    text_encoder: CLIPTextModel,
    run: StageRun,
    paint: Callable[[TextToImageModel, Path], None] | None = None,
    unet: UNet2DConditionModel | None = None,
) -> TextToImageModel:
    """Train the U-Net (a new one, or the one given) and with `config.train_text` the text encoder on `data`; `paint`
    draws the sample grids."""
    if unet is None:
        with initial_weights(config.seed):
            unet = init_unet(UNet2DConditionModel(config.unet))
    for name, weight in unet.named_parameters():
        weight.requires_grad_(config.unet_learns == "all" or ".attentions." in name)
    model = TextToImageModel(unet, text_encoder, config.train_text)
    objective = TextToImageObjective(config, data, run.device, run.compiler)
    pictures = TensorDataset((data.latents, data.rows, data.counts))
    sample = None if paint is None else lambda path: paint(model, path)
    run_stage(run, config.unet_stage, model, pictures, objective, config.seed, sample=sample)
    return model


def init_unet(unet: AnyUNet) -> AnyUNet:
    """Start each residual branch, and the output, at zero: the network begins as its identity paths
    (Dhariwal and Nichol 2021, their code; Peebles and Xie 2023, section 3.2)."""
    last_layers: list[Any] = [unet.conv_out]
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")):
            last_layers.append(module)
        elif isinstance(module, SelfAttention2D):
            last_layers.append(module.to_out[0])
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return unet


def save_grid(
    path: Path, pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, n_steps: int = 20, scale: float = 2.5
) -> None:
    """Paint `prompts` from the same noise each time, picture i with `seed + i`, into one sheet."""
    generators = image_generators(seed, len(prompts))
    images = pipeline(prompts, num_inference_steps=n_steps, guidance_scale=scale, generator=generators).images
    assert isinstance(images, list)
    make_folder(path.parent)
    save_png(path, grid(images, 8, gap=2))
