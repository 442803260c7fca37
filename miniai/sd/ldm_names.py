"""Tensors of single-file checkpoints, named as the first Stable Diffusion code did (CompVis' latent-diffusion, LDM;
Stability's generative models), by the names that Diffusers and transformers give them."""

import re
from collections.abc import Mapping

from torch import Tensor

from miniai.base.errors import UserError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
# OpenCLIP's last layer is in the files, and Stable Diffusion 2.x reads what comes before it.
N_OPEN_CLIP_LAYERS = 23

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_VAE = {
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "downsample.conv": "downsamplers.0.conv",
    "upsample.conv": "upsamplers.0.conv",
}
_OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def unet_from_ldm(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`tensors` without their prefix. A level is `n` residual blocks and, but for the last, one that halves."""
    halving = [int(name.split(".")[1]) for name in tensors if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name)]
    blocks = [int(name.split(".")[1]) for name in tensors if re.match(r"input_blocks\.\d+\.", name)]
    if not blocks:
        raise UserError(f"{where} has no U-Net of Stable Diffusion (input_blocks): get another file")
    n_per_level = min(halving, default=max(blocks) + 1)

    def rename(name: str) -> str:
        block = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)", name)
        if block is None or name.startswith("input_blocks.0."):
            return _resnet(_replace(name, _UNET))
        number = int(block[2]) - (block[1] == "input")
        level, place = divmod(number, n_per_level)
        side = "down_blocks" if block[1] == "input" else "up_blocks"
        if block[4].startswith("op."):
            return f"{side}.{level}.downsamplers.0.conv.{block[4].removeprefix('op.')}"
        if block[4].startswith("conv."):
            return f"{side}.{level}.upsamplers.0.{block[4]}"
        kind = "resnets" if block[3] == "0" else "attentions"
        return _resnet(f"{side}.{level}.{kind}.{place}.{block[4]}")

    return {rename(name): tensor for name, tensor in tensors.items()}


def ldm_names_of_unet(name: str, layers_per_block: int) -> list[str]:
    """The other way round: what LDM's code calls a layer of Diffusers' U-Net. What doubles the size there stands behind
    an attention, where the level has one: it may have either of two names."""
    if ".resnets." in name:
        name = _replace(name, {new: old for old, new in _RESNET.items()})
    block = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if block is None:
        return [_replace(name, {new: old for old, new in _UNET.items()})]
    first = int(block[2]) * (layers_per_block + 1)
    if block[3] == "downsamplers":
        return [f"input_blocks.{first + layers_per_block + 1}.0.op"]
    if block[3] == "upsamplers":
        return [f"output_blocks.{first + layers_per_block}.{place}.conv" for place in (1, 2)]
    number = first + int(block[4]) + (block[1] == "down")
    side = "input" if block[1] == "down" else "output"
    return [f"{side}_blocks.{number}.{int(block[3] == 'attentions')}.{block[5]}"]


def vae_from_ldm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without their prefix. The decoder counts levels the other way round; attention is by convolutions."""
    ups = [int(found[1]) for name in tensors if (found := re.match(r"decoder\.up\.(\d+)\.", name))]
    last = max(ups, default=0)

    def rename(name: str) -> str:
        name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda up: f"decoder.up_blocks.{last - int(up[1])}.", name)
        name = re.sub(r"_blocks\.(\d+)\.block\.", r"_blocks.\1.resnets.", name)
        attention = re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(weight|bias)", name)
        if attention is not None:
            inner = _VAE_ATTENTION.get(attention[2], attention[2])
            return f"{attention[1]}.mid_block.attentions.0.{inner}.{attention[3]}"
        return _replace(name, _VAE)

    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    return {n: t.flatten(1) if ".attentions." in n and t.ndim > 2 else t for n, t in renamed.items()}


def text_from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without their prefix: the layers that are used, with queries, keys and values apart.

    What belongs to OpenCLIP's comparison with pictures (text_projection, logit_scale) is left out.
    """
    renamed = {}
    for name, tensor in tensors.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.", name)
        if name in ("text_projection", "logit_scale", "attn_mask") or (layer and int(layer[1]) >= N_OPEN_CLIP_LAYERS):
            continue
        new = "text_model." + _replace(name, _OPEN_CLIP)
        together = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", new)
        if together is None or tensor.ndim == 0:
            renamed[new] = tensor
        else:
            for part, third in zip("qkv", tensor.chunk(3), strict=False):
                renamed[f"{together[1]}{part}_proj.{together[2]}"] = third
    return renamed


def _resnet(name: str) -> str:
    return _replace(name, _RESNET) if ".resnets." in name else name


def _replace(name: str, names: Mapping[str, str]) -> str:
    """`name` with each old name in it, where it is a whole run of its dotted parts, by the new one."""
    dotted = f".{name}."
    for old, new in names.items():
        dotted = dotted.replace(f".{old}.", f".{new}.")
    return dotted.strip(".")
