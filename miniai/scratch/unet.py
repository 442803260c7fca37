"""40. The conditional U-Net of Stable Diffusion (Rombach et al. 2022): what is noise here, given the text?

Names are those of nn/unet.py and nn/unet_blocks.py, beside which it stands line for line. Maps are (h, w, c), the
text's tokens (n, d).

Residual blocks and transformers go down through halving resolutions, through a middle block, and up again, where each
block also receives what the block opposite to it put out on the way down.
"""

from dataclasses import dataclass
from pathlib import Path

from miniai.scratch.blocks import Downsample2D, ResnetBlock2D, TimestepEmbedding, Upsample2D
from miniai.scratch.creation import cat
from miniai.scratch.folder import Weights, read_config
from miniai.scratch.inference import Conv2d, GroupNorm, silu
from miniai.scratch.tensor import Tensor
from miniai.scratch.transformer import Transformer2DModel

# Options of Diffusers' class that Stable Diffusion leaves at these values; another value is refused.
ONLY = {
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "upcast_attention": False,
}
DOWN_BLOCKS, UP_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class UNetConfig:
    """Fields carry Diffusers' names. `attention_head_dim` is, as there, the NUMBER of heads of each level (one number
    stands for all); `sample_size` is the side of the latents the model was trained on, in latent pixels."""

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
    freq_shift: float = 0.0

    def __post_init__(self) -> None:
        n_levels = len(self.block_out_channels)
        heads = self.attention_head_dim
        lists = [self.down_block_types, self.up_block_types, *([] if isinstance(heads, int) else [heads])]
        if any(len(of_levels) != n_levels for of_levels in lists):
            raise ValueError(f"block_out_channels names {n_levels} levels, the other lists must have as many entries")
        for block, known in zip(lists, (DOWN_BLOCKS, UP_BLOCKS), strict=False):
            for name in block:
                if name not in known:
                    raise ValueError(f"a block of type {name!r} is not supported here: {', '.join(known)} are")
        if min(self.sample_size, self.in_channels, self.layers_per_block, self.norm_num_groups) < 1:
            raise ValueError("sizes and numbers of layers and groups must be at least 1")

    def heads(self, level: int) -> int:
        """The number of attention heads at `level`."""
        n = self.attention_head_dim
        return n if isinstance(n, int) else n[level]


class Block2D:
    """Residual blocks of one level, each with a transformer behind it where the level has attention."""

    def __init__(
        self,
        weights: Weights,
        config: UNetConfig,
        in_channels: list[int],
        out_channels: int,
        level: int,
        attention: bool,
    ) -> None:
        time_dim, groups, eps = config.block_out_channels[0] * 4, config.norm_num_groups, config.norm_eps
        self.resnets = [
            ResnetBlock2D(weights.under(f"resnets.{i}"), c, out_channels, time_dim, groups, eps)
            for i, c in enumerate(in_channels)
        ]
        self.attentions = [
            transformer(weights.under(f"attentions.{i}"), config, out_channels, level)
            for i in range(len(in_channels) if attention else 0)
        ]

    def step(self, i: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Residual block `i`, and its transformer if there is one."""
        x = self.resnets[i](x, time)
        return self.attentions[i](x, context) if self.attentions else x


class DownBlock2D(Block2D):
    """One level on the way down; the last level keeps its resolution."""

    def __init__(self, weights: Weights, config: UNetConfig, level: int) -> None:
        c_in = config.block_out_channels[max(level - 1, 0)]
        c_out = config.block_out_channels[level]
        attention = config.down_block_types[level] == "CrossAttnDownBlock2D"
        inputs = [c_in] + [c_out] * (config.layers_per_block - 1)
        super().__init__(weights, config, inputs, c_out, level, attention)
        last = level == len(config.block_out_channels) - 1
        self.downsampler = None if last else Downsample2D(weights.under("downsamplers.0"), c_out)

    def __call__(self, x: Tensor, time: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The feature map, and the list of maps that the way up will want."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, context)
            skips.append(x)
        if self.downsampler is not None:
            x = self.downsampler(x)
            skips.append(x)
        return x, skips


class UpBlock2D(Block2D):
    """One level on the way up: each residual block gets the map from the way down beside its input."""

    def __init__(self, weights: Weights, config: UNetConfig, level: int) -> None:
        channels = config.block_out_channels
        c_out = channels[level]
        c_below = channels[min(level + 1, len(channels) - 1)]  # what comes up from the level below
        c_first = channels[max(level - 1, 0)]  # what this level's first block received on the way down
        n = config.layers_per_block + 1
        skips = [c_out] * (n - 1) + [c_first]
        inputs = [c_below] + [c_out] * (n - 1)
        attention = config.up_block_types[len(channels) - 1 - level] == "CrossAttnUpBlock2D"
        both = [a + b for a, b in zip(inputs, skips, strict=True)]
        super().__init__(weights, config, both, c_out, level, attention)
        self.upsampler = None if level == 0 else Upsample2D(weights.under("upsamplers.0"), c_out)

    def __call__(
        self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor, size: tuple[int, int] | None
    ) -> Tensor:
        """`skips` are this level's maps, last first to be used; `size` is the next level's height and width."""
        for i in range(len(self.resnets)):
            x = self.step(i, cat([x, skips[-1 - i]], -1), time, context)
        return x if self.upsampler is None else self.upsampler(x, size)


class MidBlock2D(Block2D):
    """At the lowest resolution: residual block, transformer, residual block."""

    def __init__(self, weights: Weights, config: UNetConfig) -> None:
        channels, level = config.block_out_channels[-1], len(config.block_out_channels) - 1
        super().__init__(weights, config, [channels, channels], channels, level, False)
        self.attentions = [transformer(weights.under("attentions.0"), config, channels, level)]

    def __call__(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time), context)
        return self.resnets[1](x, time)


class UNet2DConditionModel:
    """Predicts noise (or v, or x0, as the schedule says) from noisy latents, a timestep and text."""

    def __init__(self, config: UNetConfig, weights: Weights) -> None:
        self.config = config
        channels = config.block_out_channels
        n = len(channels)
        time = weights.under("time_embedding")
        self.conv_in = Conv2d(weights.under("conv_in"), config.in_channels, channels[0], 3)
        self.time_embedding = TimestepEmbedding(
            time, channels[0], channels[0] * 4, config.flip_sin_to_cos, config.freq_shift
        )
        self.down_blocks = [DownBlock2D(weights.under(f"down_blocks.{i}"), config, i) for i in range(n)]
        self.mid_block = MidBlock2D(weights.under("mid_block"), config)
        self.up_blocks = [UpBlock2D(weights.under(f"up_blocks.{i}"), config, n - 1 - i) for i in range(n)]
        norm = weights.under("conv_norm_out")
        self.conv_norm_out = GroupNorm(norm, config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = Conv2d(weights.under("conv_out"), channels[0], config.out_channels, 3)
        weights.check_all_taken()

    @classmethod
    def from_pretrained(cls, folder: Path) -> "UNet2DConditionModel":
        """Reads config.json and diffusion_pytorch_model.safetensors."""
        config = read_config(UNetConfig, folder / "config.json", ONLY)
        return cls(config, Weights.read(folder / "diffusion_pytorch_model.safetensors"))

    def __call__(self, sample: Tensor, timestep: float, encoder_hidden_states: Tensor) -> Tensor:
        """`sample`: noisy latents (h, w, c); `timestep`: 0 to 999; `encoder_hidden_states`: text tokens (n, d)."""
        time = self.time_embedding(timestep)
        x = self.conv_in(sample)
        levels: list[list[Tensor]] = []  # the maps each level up will consume
        below = [x]
        for down in self.down_blocks:
            x, skips = down(x, time, encoder_hidden_states)
            # The map made by halving is used one level further down, where it was the input.
            halved = [skips.pop()] if down.downsampler is not None else []
            levels.append(below + skips)
            below = halved

        x = self.mid_block(x, time, encoder_hidden_states)

        for up in self.up_blocks:
            skips = levels.pop()
            size = (levels[-1][-1].shape[0], levels[-1][-1].shape[1]) if levels else None
            x = up(x, skips, time, encoder_hidden_states, size)
        return self.conv_out(silu(self.conv_norm_out(x)))


def transformer(weights: Weights, config: UNetConfig, channels: int, level: int) -> Transformer2DModel:
    return Transformer2DModel(
        weights,
        channels,
        config.heads(level),
        config.cross_attention_dim,
        depth=config.transformer_layers_per_block,
        groups=config.norm_num_groups,
        use_linear_projection=config.use_linear_projection,
    )
