"""Models of Diffusers' and transformers' own classes, written in LDM's names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from sd_oracle import SD_SCHEDULE
from tiny_model import tiny_tokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@dataclass(frozen=True)
class Flavour:
    """What differs between the generations."""

    unet: dict[str, Any]
    text: dict[str, Any]
    scheduler: type
    prediction_type: str = "epsilon"


ONE = Flavour(
    unet={"block_out_channels": (32, 64), "attention_head_dim": 8, "cross_attention_dim": 128},
    text={"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "hidden_act": "quick_gelu"},
    scheduler=diffusers.PNDMScheduler,
)
TWO = Flavour(
    unet={
        "block_out_channels": (64, 128),
        "attention_head_dim": (1, 2),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
    },
    text={"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 24, "hidden_act": "gelu"},
    scheduler=diffusers.DDIMScheduler,
    prediction_type="v_prediction",
)
INPAINTING = Flavour(
    unet={
        "in_channels": 9,
        "block_out_channels": (32, 32, 64),
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    text={"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "hidden_act": "quick_gelu"},
    scheduler=diffusers.PNDMScheduler,
)
FLAVOURS = {"1.x": ONE, "2.x": TWO, "inpainting": INPAINTING}


def make(flavour: Flavour, folder: Path) -> diffusers.StableDiffusionPipeline:
    """A random model. The text encoder of 2.x has its last layer still, which the pipeline is not to use."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        max_position_embeddings=tokenizer.model_max_length,
        **flavour.text,
    )
    unet = {
        "sample_size": 8,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    pipe = diffusers.StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        text_encoder=CLIPTextModel(text).eval(),
        unet=diffusers.UNet2DConditionModel(**unet | flavour.unet),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        scheduler=flavour.scheduler(
            **{key: value for key, value in SD_SCHEDULE.items() if key != "clip_sample"},
            prediction_type=flavour.prediction_type,
            **({"skip_prk_steps": True} if flavour.scheduler is diffusers.PNDMScheduler else {}),
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():  # norms and biases begin as ones and zeros, which would hide a mix-up
        for module in (pipe.text_encoder, pipe.unet, pipe.vae):
            for parameter in module.parameters():
                parameter.add_(0.03 * torch.randn(parameter.shape))
    return pipe


def as_ldm(pipe: diffusers.StableDiffusionPipeline) -> dict[str, Tensor]:
    """The whole model in LDM's names."""
    unet = {f"model.diffusion_model.{name}": t for name, t in ldm_unet(pipe.unet).items()}
    vae = {f"first_stage_model.{name}": t for name, t in ldm_vae(pipe.vae).items()}
    text = {name.removeprefix("text_model."): t for name, t in pipe.text_encoder.state_dict().items()}
    if pipe.text_encoder.config.hidden_act == "gelu":
        text = {f"cond_stage_model.model.{name}": t for name, t in ldm_open_clip(text).items()}
    else:
        text = {f"cond_stage_model.transformer.text_model.{name}": t for name, t in text.items()}
        text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    others = {"alphas_cumprod": torch.rand(1000), "model_ema.decay": torch.tensor(0.99)}
    others |= {f"model_ema.{name.replace('.', '')}": torch.zeros(2) for name in list(unet)[:9]}
    return {name: t.contiguous().clone() for name, t in (unet | vae | text | others).items()}


def ldm_unet(unet: diffusers.UNet2DConditionModel) -> dict[str, Tensor]:
    n = unet.config.layers_per_block + 1
    last_up = [hasattr(block, "attentions") for block in unet.up_blocks]

    def name_of(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "mid_block":
            place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(parts[1:3])]
            return f"middle_block.{place}.{inner(parts[1], parts[3:])}"
        if parts[0] not in ("down_blocks", "up_blocks"):
            old = next(old for old in UNET_ENDS if name.startswith(old + "."))
            return name.replace(old, UNET_ENDS[old])
        level, kind, place = int(parts[1]), parts[2], int(parts[3])
        down = parts[0] == "down_blocks"
        if kind == "downsamplers":
            return f"input_blocks.{level * n + n}.0.op.{parts[-1]}"
        if kind == "upsamplers":
            return f"output_blocks.{level * n + n - 1}.{2 if last_up[level] else 1}.conv.{parts[-1]}"
        block = f"input_blocks.{1 + level * n + place}" if down else f"output_blocks.{level * n + place}"
        return f"{block}.{0 if kind == 'resnets' else 1}.{inner(kind, parts[4:])}"

    return {name_of(name): tensor for name, tensor in unet.state_dict().items()}


def inner(kind: str, parts: list[str]) -> str:
    return ".".join([RESNET[parts[0]], *parts[1:]] if kind == "resnets" else parts)


def ldm_vae(vae: diffusers.AutoencoderKL) -> dict[str, Tensor]:
    last = len(vae.config.block_out_channels) - 1
    renamed = {}
    for name, tensor in vae.state_dict().items():
        parts = name.split(".")
        if parts[1] == "mid_block" and parts[2] == "attentions":
            layer = ".".join(parts[4:-1])
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
            name = f"{parts[0]}.mid.attn_1.{VAE_ATTENTION[layer]}.{parts[-1]}"
        elif parts[1] == "mid_block":
            name = ".".join([parts[0], "mid", f"block_{int(parts[3]) + 1}", *parts[4:]])
        elif parts[1] in ("down_blocks", "up_blocks"):
            down = parts[1] == "down_blocks"
            level = int(parts[2]) if down else last - int(parts[2])
            rest = ["block", *parts[4:]] if parts[3] == "resnets" else [parts[3].removesuffix("rs"), *parts[5:]]
            name = ".".join([parts[0], "down" if down else "up", str(level), *rest])
        renamed[name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = tensor
    return renamed


def ldm_open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": torch.zeros(3, 3),
        "logit_scale": torch.tensor(1.0),
    }
    for name, tensor in text.items():
        if not name.startswith("encoder.layers."):
            continue
        number, rest = name.removeprefix("encoder.layers.").split(".", 1)
        block = f"transformer.resblocks.{number}"
        kind = rest.split(".")[-1]
        if rest.startswith("self_attn.q_proj"):
            qkv = [text[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
        elif not rest.startswith(("self_attn.k_proj", "self_attn.v_proj")):
            renamed[f"{block}.{OPEN_CLIP[rest.rsplit('.', 1)[0]]}.{kind}"] = tensor
    return renamed
