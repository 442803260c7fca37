"""One name for each tensor: Diffusers' and transformers' own names as they changed over the years."""

import re
from collections.abc import Mapping

from torch import Tensor

# Diffusers before 0.12 named the autoencoder's attention so.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION_NAME = re.compile(r"(.*mid_block\.attentions\.0\.)(query|key|value|proj_attn)(\.weight|\.bias)")


def text_encoder_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 5 left the prefix out; versions before 4.31 wrote a buffer of position numbers."""
    if "embeddings.token_embedding.weight" in tensors:
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in tensors.items() if name != "text_model.embeddings.position_ids"}


def vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The attention's four layers by their new names, and as matrices where they are 1x1 convolutions."""
    renamed = {}
    for name, tensor in tensors.items():
        old = _OLD_ATTENTION_NAME.fullmatch(name)
        if old is not None:
            name = f"{old[1]}{_OLD_ATTENTION[old[2]]}{old[3]}"
            tensor = tensor.flatten(1) if tensor.ndim > 2 else tensor
        renamed[name] = tensor
    return renamed
