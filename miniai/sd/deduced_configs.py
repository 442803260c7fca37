"""Configs read off the shapes of tensors, for files that come without config.json.

What shapes do not tell is as all of Stable Diffusion has it:
- 32 groups in each norm; 64 numbers in each head of the text encoder.
- U-Net: 8 heads at every level where projections are convolutions (1.x); 64 numbers in each head where they are
  matrices (2.x).
- The text encoder's activation: quick GELU in CLIP, GELU in OpenCLIP.
- The schedule, and the sampler of the published folder: PNDM for 1.x, DDIM for 2.x.
- Size: 768 pixels for models of 2.x that predict v, otherwise 512.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from miniai.base.errors import UserError
from miniai.diffusion.schedule import PredictionType
from miniai.nn.autoencoder import VAEConfig
from miniai.nn.clip import CLIPTextConfig
from miniai.nn.unet import UNetConfig

_HEAD_DIM = 64
# ComfyUI's test (comfy/supported_models.py, SD20): the deviation of this bias is above the limit in the models that
# predict v, Stability's 768-v and those trained on from it, and below it in 512-base and its offspring.
_V_MARKER, _V_LIMIT = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias", 0.09


def unet_config(tensors: Mapping[str, Tensor], sample_size: int, where: str) -> UNetConfig:
    """From tensors in Diffusers' names. `sample_size`: side of the latents, in latent pixels."""
    shape = _Shapes(tensors, where)
    n_levels = shape.count(r"down_blocks\.(\d+)\.")
    channels = tuple(shape(f"down_blocks.{i}.resnets.0.conv2.weight")[0] for i in range(n_levels))
    down, up = (
        [f"{side}.{i}.attentions.0.proj_in.weight" in tensors for i in range(n_levels)]
        for side in ("down_blocks", "up_blocks")
    )
    depths = {shape.count(rf"{re.escape(name[:-15])}\.transformer_blocks\.(\d+)\.") for name in tensors
              if name.endswith(".proj_in.weight")}  # fmt: skip
    if len(depths) != 1:
        raise UserError(f"{where} has transformers of several depths, {sorted(depths)}: it is of another family")
    inside = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    linear = len(shape("mid_block.attentions.0.proj_in.weight")) == 2
    return UNetConfig(
        sample_size=sample_size,
        in_channels=shape("conv_in.weight")[1],
        out_channels=shape("conv_out.weight")[0],
        block_out_channels=channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in down),
        up_block_types=tuple("CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in up),
        layers_per_block=shape.count(r"down_blocks\.0\.resnets\.(\d+)\."),
        cross_attention_dim=shape(inside)[1],
        attention_head_dim=tuple(max(1, c // _HEAD_DIM) for c in channels) if linear else 8,
        transformer_layers_per_block=depths.pop(),
        use_linear_projection=linear,
    )


def vae_config(tensors: Mapping[str, Tensor], where: str) -> VAEConfig:
    """From tensors in Diffusers' names."""
    shape = _Shapes(tensors, where)
    n_levels = shape.count(r"encoder\.down_blocks\.(\d+)\.")
    return VAEConfig(
        in_channels=shape("encoder.conv_in.weight")[1],
        out_channels=shape("decoder.conv_out.weight")[0],
        down_block_types=("DownEncoderBlock2D",) * n_levels,
        up_block_types=("UpDecoderBlock2D",) * n_levels,
        block_out_channels=tuple(shape(f"encoder.down_blocks.{i}.resnets.0.conv2.weight")[0] for i in range(n_levels)),
        layers_per_block=shape.count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        latent_channels=shape("decoder.conv_in.weight")[1],
        mid_block_add_attention="decoder.mid_block.attentions.0.to_q.weight" in tensors,
        use_quant_conv="quant_conv.weight" in tensors,
        use_post_quant_conv="post_quant_conv.weight" in tensors,
    )


def text_config(tensors: Mapping[str, Tensor], activation: str, where: str) -> CLIPTextConfig:
    """From tensors in transformers' names."""
    shape = _Shapes(tensors, where)
    vocab_size, width = shape("text_model.embeddings.token_embedding.weight")
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=shape.count(r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=max(1, width // _HEAD_DIM),
        max_position_embeddings=shape("text_model.embeddings.position_embedding.weight")[0],
        hidden_act=activation,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=0 if activation == "gelu" else vocab_size - 1,
    )


def predicts(
    unet: Mapping[str, Tensor], is_2: bool, tensors: Mapping[str, Tensor], notes: Mapping[str, str]
) -> PredictionType:
    """What the U-Net, in Diffusers' names, predicts.

    As the file says: an entry `v_pred` among its `tensors`, or `modelspec.prediction_type` in its `notes`. Else, for
    the 2.x models that do not inpaint, as `_V_MARKER` has it; and else the noise.
    """
    said = notes.get("modelspec.prediction_type")
    if "v_pred" in tensors or said == "v":
        return "v_prediction"
    if said == "epsilon":
        return "epsilon"
    bias = unet.get(_V_MARKER)
    if is_2 and bias is not None and unet["conv_in.weight"].shape[1] == 4:
        return "v_prediction" if float(bias.double().std(correction=0)) > _V_LIMIT else "epsilon"
    return "epsilon"


def scheduler_config(prediction_type: PredictionType, is_2: bool) -> dict[str, Any]:
    """The scheduler_config.json of the published folders."""
    return {
        "_class_name": "DDIMScheduler" if is_2 else "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }


class _Shapes:
    """Shapes by name; a name that is missing is the user's error, since everything else depends on it."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where

    def __call__(self, name: str) -> torch.Size:
        if name not in self.tensors or self.tensors[name].ndim < 2:
            raise UserError(f"{self.where} lacks {name}: it is no whole Stable Diffusion checkpoint, get it again")
        return self.tensors[name].shape

    def count(self, pattern: str) -> int:
        """How many different numbers stand where `pattern` has its group."""
        return len({found[1] for name in self.tensors if (found := re.match(pattern, name))})
