"""A whole Stable Diffusion model with a few thousand random weights, made of the real classes."""

import torch

from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer

CAPTIONS = ["a smiling cat with sunglasses, noto style", "a red apple", "a rocket in the sky", "sunglasses on a cat"]
WINDOW = 16  # tokens, start and end included


def tiny_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.train(CAPTIONS, 530, WINDOW)


def tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Latents 4 x 8 x 8, pictures 16 x 16."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=WINDOW,
                eos_token_id=tokenizer.eos_id,
                bos_token_id=tokenizer.bos_id,
                pad_token_id=tokenizer.pad_id,
            )
        )
        unet = UNet2DConditionModel(
            UNetConfig(
                sample_size=8,
                block_out_channels=(8, 16),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                layers_per_block=1,
                cross_attention_dim=16,
                attention_head_dim=2,
                norm_num_groups=4,
            )
        )
        vae = AutoencoderKL(
            VAEConfig(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                sample_size=16,
            )
        )
    scheduler = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.35.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return StableDiffusionPipeline(tokenizer, text_encoder.eval(), unet.eval(), vae.eval(), scheduler)
