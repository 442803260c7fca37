"""41. The half of the autoencoder that makes latents into pictures (Kingma and Welling 2014; Rombach et al. 2022,
section 3.1).

Names are those of nn/autoencoder.py. Maps are (h, w, c).
"""

from dataclasses import dataclass
from pathlib import Path

from miniai.scratch.blocks import ResnetBlock2D, Upsample2D
from miniai.scratch.folder import Weights, read_config
from miniai.scratch.inference import Conv2d, GroupNorm, Linear, attend, silu
from miniai.scratch.tensor import Tensor

ONLY = {"act_fn": "silu"}  # another activation is refused
EPS = 1e-6


@dataclass(frozen=True)
class VAEConfig:
    """Fields carry Diffusers' names. Latents are smaller than pictures by 2 ** (len(block_out_channels) - 1) each way;
    latents times `scaling_factor` have about unit variance: that is what the diffusion model sees."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 512
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = True  # a hint about float16, not about the network

    def __post_init__(self) -> None:
        if self.up_block_types != ("UpDecoderBlock2D",) * len(self.block_out_channels):
            raise ValueError("up_block_types must be UpDecoderBlock2D for each of block_out_channels")
        if self.scaling_factor == 0 or min(self.layers_per_block, self.norm_num_groups) < 1:
            raise ValueError("scaling_factor must not be 0, layers_per_block and norm_num_groups at least 1")


class SelfAttention2D:
    """Group norm and self-attention with one head over all positions of a map, as a residual."""

    def __init__(self, weights: Weights, channels: int, groups: int) -> None:
        self.group_norm = GroupNorm(weights.under("group_norm"), groups, channels, EPS)
        names = ("to_q", "to_k", "to_v", "to_out.0")
        self.to_q, self.to_k, self.to_v, self.to_out = (
            Linear(weights.under(name), channels, channels) for name in names
        )

    def __call__(self, x: Tensor) -> Tensor:
        h, w, c = x.shape
        tokens = self.group_norm(x).view(h * w, c)
        q, k, v = (project(tokens).unsqueeze(0) for project in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out(attend(q, k, v)).view(h, w, c)


class MidBlock:
    """At the lowest resolution: residual block, attention (unless left out), residual block."""

    def __init__(self, weights: Weights, config: VAEConfig) -> None:
        c, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = [ResnetBlock2D(weights.under(f"resnets.{i}"), c, c, None, groups, EPS) for i in range(2)]
        self.attentions = [
            SelfAttention2D(weights.under(f"attentions.{i}"), c, groups)
            for i in range(int(config.mid_block_add_attention))
        ]

    def __call__(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DecoderLevel:
    """Residual blocks of one resolution, then doubling, unless it is the level of the picture itself."""

    def __init__(self, weights: Weights, config: VAEConfig, level: int) -> None:
        channels, groups = config.block_out_channels, config.norm_num_groups
        c_in, c_out = channels[min(level + 1, len(channels) - 1)], channels[level]
        self.resnets = [
            ResnetBlock2D(weights.under(f"resnets.{i}"), c_in if i == 0 else c_out, c_out, None, groups, EPS)
            for i in range(config.layers_per_block + 1)
        ]
        self.upsampler = Upsample2D(weights.under("upsamplers.0"), c_out) if level > 0 else None

    def __call__(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsampler is None else self.upsampler(x)


class Decoder:
    """Latents (h, w, c), unscaled, to pictures (h * factor, w * factor, 3) in about [-1, 1]."""

    def __init__(self, config: VAEConfig, weights: Weights) -> None:
        self.config = config
        channels, part = config.block_out_channels, weights.under("decoder")
        n, c = len(channels), config.latent_channels
        self.post_quant_conv = Conv2d(weights.under("post_quant_conv"), c, c, 1) if config.use_post_quant_conv else None
        self.conv_in = Conv2d(part.under("conv_in"), c, channels[-1], 3)
        self.mid_block = MidBlock(part.under("mid_block"), config)
        self.up_blocks = [DecoderLevel(part.under(f"up_blocks.{i}"), config, n - 1 - i) for i in range(n)]
        self.conv_norm_out = GroupNorm(part.under("conv_norm_out"), config.norm_num_groups, channels[0], EPS)
        self.conv_out = Conv2d(part.under("conv_out"), channels[0], config.out_channels, 3)
        weights.check_all_taken()

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Decoder":
        """Reads config.json and diffusion_pytorch_model.safetensors, but for the encoder's weights."""
        config = read_config(VAEConfig, folder / "config.json", ONLY)
        weights = Weights.read(folder / "diffusion_pytorch_model.safetensors", ("encoder.", "quant_conv."))
        return cls(config, weights)

    def __call__(self, z: Tensor) -> Tensor:
        x = self.conv_in(z if self.post_quant_conv is None else self.post_quant_conv(z))
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(x)))
