"""The conditional U-Net of Stable Diffusion (Rombach et al. 2022), with the names of Diffusers' UNet2DConditionModel.

Residual blocks and transformers go down through halving resolutions, through a middle block, and up again, where each
block also receives what the block opposite to it put out on the way down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from miniai.base.configs import config_from_dict, without_neutral
from miniai.nn.freeu import FreeU
from miniai.nn.group_norm import GroupNorm
from miniai.nn.layers import TimestepEmbedding, norm_silu_conv, sinusoidal_embedding
from miniai.nn.transformer import Transformer2DModel, for_each
from miniai.nn.unet_blocks import DownBlock2D, MidBlock2D, ShapeConfig, UpBlock2D

# Options of Diffusers' class that Stable Diffusion 1.x and 2.x leave at these values; another value is refused.
NEUTRAL: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


@dataclass(frozen=True)
class UNetConfig:
    """Fields carry Diffusers' names. `attention_head_dim` is, as there, the NUMBER of heads (one for all levels or one
    each); `sample_size` is the side of the latents the model was trained on, in latent pixels."""

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int | float = 0
    upcast_attention: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "UNetConfig":
        """Raises UserError, naming `where`, for an option that this U-Net does not have."""
        return config_from_dict(cls, without_neutral(values, NEUTRAL, where), where)

    def heads(self, level: int) -> int:
        """The number of attention heads at `level`."""
        n = self.attention_head_dim
        return n if isinstance(n, int) else n[level]

    def attention(self, channels: int, level: int) -> nn.Module:
        """What stands behind a residual block of a level with attention."""
        return Transformer2DModel(
            channels,
            self.heads(level),
            self.cross_attention_dim,
            depth=self.transformer_layers_per_block,
            groups=self.norm_num_groups,
            use_linear_projection=self.use_linear_projection,
        )


@dataclass
class DeepFeatures:
    """What the deep layers made at one step, to be used again at the next (Ma et al. 2023, "DeepCache", section 3.3).

    - branch: how many residual blocks of the first level on the way down are always computed; on the way up one more.
    - features: what enters the first of those on the way up; None asks for all layers to be computed, and fills it.
    """

    branch: int = 0
    features: Float[Tensor, "b c h w"] | None = None


class UNet(nn.Module):
    """Down, through the middle and up again: what every U-Net here shares."""

    def __init__(
        self, config: ShapeConfig, in_channels: int, out_channels: int, time_cond_proj_dim: int | None = None
    ) -> None:
        super().__init__()
        channels = config.block_out_channels
        levels = range(len(channels))
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], channels[0] * 4, time_cond_proj_dim)
        self.down_blocks = nn.ModuleList(DownBlock2D(config, level) for level in levels)
        self.mid_block = MidBlock2D(config)
        self.up_blocks = nn.ModuleList(UpBlock2D(config, level) for level in reversed(levels))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def run(
        self,
        sample: Float[Tensor, "b c_in h w"],
        time: Float[Tensor, "b2 t"],
        context: Float[Tensor, "b2 n d"] | None,
        deep: DeepFeatures | None = None,
    ) -> Float[Tensor, "b2 c_out h w"]:
        """`time` is the embedded timestep, with whatever else every block should know; `context` are text tokens. A
        picture may have several texts, if the first level attends to them: then `b2` is a multiple of `b`."""
        x = self.conv_in(sample)
        first, last = self._outer_blocks
        n_layers = len(last.resnets)
        n_deep = n_layers if deep is None else n_layers - 1 - deep.branch
        if deep is not None and deep.features is not None:
            skips, x = (
                [x if context is None else for_each(context, x), *first.first_layers(deep.branch, x, time, context)],
                deep.features,
            )
        else:
            x, skips = self.inner(x, time, context)
            x = last.layers(range(n_deep), x, skips, time, context)
            if deep is not None:
                deep.features = x
        x = last.layers(range(n_deep, n_layers), x, skips, time, context)
        return norm_silu_conv(self.conv_norm_out, self.conv_out, x)

    def set_freeu(self, *levels: FreeU) -> None:
        """Weigh what each of the first levels on the way up gets by one of these, from the deepest; the others, and if
        none is given all, by nothing."""
        for block, weights in zip_longest(self.up_blocks, levels[: len(self.up_blocks)]):
            block.freeu = weights

    @property
    def _outer_blocks(self) -> "tuple[DownBlock2D, UpBlock2D]":
        first: Any = self.down_blocks[0]
        last: Any = self.up_blocks[-1]
        return first, last

    def inner(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b2 t"], context: Float[Tensor, "b2 n d"] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """All blocks but the last: what comes up to that, and the maps that it gets beside."""
        levels: list[list[Tensor]] = []  # the maps each level up will consume
        below = [x if context is None else for_each(context, x)]
        for block in self.down_blocks:
            x, skips = block(x, time, context)
            # The map made by halving is used one level further down, where it was the input.
            halved = [skips.pop()] if block.downsamplers is not None else []
            levels.append(below + skips)
            below = halved

        x = self.mid_block(x, time, context)

        for block in self.up_blocks[:-1]:
            skips = levels.pop()
            x = block(x, skips, time, context, (levels[-1][-1].shape[2], levels[-1][-1].shape[3]))
        return x, levels.pop()


class UNet2DConditionModel(UNet):
    """Predicts noise (or v, or x0, as the schedule says) from noisy latents, a timestep and text.

    >>> config = UNetConfig(block_out_channels=(32, 64), cross_attention_dim=16, attention_head_dim=4,
    ...                     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    ...                     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    >>> unet, noisy, text = UNet2DConditionModel(config), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    >>> unet(noisy, torch.tensor([999, 10]), text).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, config.in_channels, config.out_channels)
        self.config = config

    def forward(
        self,
        sample: Float[Tensor, "b c_in h w"],
        timestep: Shaped[Tensor, " b"],
        encoder_hidden_states: Float[Tensor, "b n d"],
        deep: DeepFeatures | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """`sample`: noisy latents; `timestep`: 0 to 999, may be fractional; `encoder_hidden_states`: text tokens."""
        embedded = sinusoidal_embedding(
            timestep,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        time = self.time_embedding(embedded.to(sample.dtype))
        if self.has_twins(sample, timestep):
            sample = sample[: len(sample) // 2]
        return self.run(sample, time, encoder_hidden_states, deep)

    def has_twins(self, sample: Float[Tensor, "b c_in h w"], timestep: Shaped[Tensor, " b"]) -> bool:
        """Whether the second half of the pictures is the first again, as guidance asks. What comes before the first
        text is then computed once: on a CPU for painting, since a GPU would have to be waited for."""
        learns = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if learns or sample.device.type != "cpu" or len(sample) % 2 or not self._outer_blocks[0].has_attention:
            return False
        return all(torch.equal(*both.chunk(2)) for both in (timestep, sample))
