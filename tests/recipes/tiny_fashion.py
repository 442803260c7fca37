"""Recipes on Fashion-MNIST small enough for a test: their own, with tiny networks and batches."""

from dataclasses import replace
from pathlib import Path

import torch

from miniai.nn.resnet import ResNetConfig
from miniai.nn.unet2d import UNet2DConfig
from miniai.recipes.fashion_autoencoder import FashionAutoencoderConfig, small_autoencoder
from miniai.recipes.fashion_classifier import FashionClassifierConfig
from miniai.recipes.fashion_diffusion_config import RECIPES, FashionDiffusionConfig, Kind
from miniai.recipes.fashion_latent import FashionLatentConfig

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"
CPU = torch.device("cpu")


def tiny_classifier() -> FashionClassifierConfig:
    config = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(16, 32), stem_channels=8))
    return replace(config, stage=replace(config.stage, batch_size=20, ema=0.5))


def tiny(kind: Kind) -> FashionDiffusionConfig:
    recipe = RECIPES[kind]
    model = UNet2DConfig(
        sample_size=recipe.model.sample_size,
        in_channels=recipe.patch_size**2,
        out_channels=recipe.patch_size**2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=recipe.model.num_class_embeds,
    )
    return replace(recipe, model=model, stage=replace(recipe.stage, batch_size=16), n_steps=3, sampler="euler")


def tiny_autoencoder(kl: float = 0.0) -> FashionAutoencoderConfig:
    config = FashionAutoencoderConfig(small_autoencoder((8, 16), 2), kl=kl)
    return replace(config, stage=replace(config.stage, batch_size=20, learning_rate=4e-3, ema=0.5))


def tiny_latent() -> FashionLatentConfig:
    config = FashionLatentConfig(tiny_autoencoder(1e-4))
    model = replace(
        config.diffusion.model,
        sample_size=16,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    stage = replace(config.diffusion.stage, batch_size=20)
    return replace(config, diffusion=replace(config.diffusion, model=model, stage=stage, n_steps=3))
