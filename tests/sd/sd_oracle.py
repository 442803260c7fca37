"""Small Stable Diffusion models made of Diffusers' and transformers' own classes."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny_model import tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SD_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# Like Stable Diffusion 1 and 2 in the small, one deeper and of other heads at each level, and one trained with zero
# terminal SNR.
FLAVOURS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epsilon": (SD_SCHEDULE, {"attention_head_dim": 2}),
    "v_prediction": (
        SD_SCHEDULE | {"prediction_type": "v_prediction"},
        {"attention_head_dim": (2, 4), "use_linear_projection": True},
    ),
    "three_levels": (
        SD_SCHEDULE,
        {
            "attention_head_dim": (1, 2, 4),
            "block_out_channels": (8, 16, 24),
            "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        },
    ),
    "inpainting": (SD_SCHEDULE, {"attention_head_dim": 2, "in_channels": 9}),
    "factor_8": (SD_SCHEDULE, {"attention_head_dim": 2}),
    "zero_snr": (
        SD_SCHEDULE
        | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"attention_head_dim": 2, "sample_size": 12},
    ),
}


def make_diffusers_pipeline(folder: Path, flavour: str) -> diffusers.StableDiffusionPipeline:
    """A random model made of Diffusers' and transformers' own classes."""
    schedule, unet = FLAVOURS[flavour]
    levels = 4 if flavour == "factor_8" else 2  # of the autoencoder, each but the last half the size of the one before
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        hidden_act="gelu" if flavour == "v_prediction" else "quick_gelu",
    )
    return diffusers.StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        text_encoder=CLIPTextModel(text).eval(),
        unet=diffusers.UNet2DConditionModel(
            **{"sample_size": 8}
            | {
                "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "cross_attention_dim": 16,
                "norm_num_groups": 4,
            }
            | unet
        ),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            norm_num_groups=4,
            sample_size=16,
        ),
        scheduler=diffusers.DDIMScheduler(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()
