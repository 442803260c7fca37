"""The variational autoencoder between pictures and latents (Kingma and Welling 2014; Rombach et al. 2022, section 3.1),
with the names of Diffusers' AutoencoderKL."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.configs import config_from_dict, without_neutral
from miniai.nn.group_norm import GroupNorm
from miniai.nn.layers import Downsample2D, ResnetBlock2D, SelfAttention2D, Upsample2D, norm_silu_conv
from miniai.nn.tiling import in_tiles

# Options of Diffusers' class that Stable Diffusion 1.x and 2.x leave at these values; another value is refused.
NEUTRAL: dict[str, Any] = {
    "act_fn": "silu",
    "force_upcast": True,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
}


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "VAEConfig":
        """Raises UserError, naming `where`, for an option that this autoencoder does not have."""
        values = {k: v for k, v in values.items() if k != "force_upcast"}  # a hint about float16, not about the network
        return config_from_dict(cls, without_neutral(values, NEUTRAL, where), where)

    @property
    def factor(self) -> int:
        """Pixels per latent, each way."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's distribution over latents: one normal for each number."""

    mean: Float[Tensor, "b c h w"]
    log_variance: Float[Tensor, "b c h w"]

    def mode(self) -> Float[Tensor, "b c h w"]:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c h w"]:
        """A draw by the reparametrisation trick (Kingma and Welling 2014, section 2.4); noise from the generator's
        device, the CPU if there is none."""
        device = None if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32).to(self.mean)
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Float[Tensor, " b"]:
        """Divergence from the standard normal, per picture, in nats (Kingma and Welling 2014, appendix B)."""
        kl = 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance)
        return kl.flatten(1).sum(1)


class MidBlock(nn.Module):
    """At the lowest resolution: residual block, attention (unless left out), residual block."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, None, groups, 1e-6) for _ in range(2))
        self.attentions = nn.ModuleList(
            [SelfAttention2D(channels, groups, n_heads=1, eps=1e-6)] if config.mid_block_add_attention else []
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class EncoderLevel(nn.Module):
    """Residual blocks of one resolution, then halving, unless it is the last level."""

    def __init__(self, config: VAEConfig, level: int) -> None:
        super().__init__()
        channels = config.block_out_channels
        c_in, c_out = channels[max(level - 1, 0)], channels[level]
        self.resnets = nn.ModuleList(
            ResnetBlock2D(c_in if i == 0 else c_out, c_out, None, config.norm_num_groups, 1e-6)
            for i in range(config.layers_per_block)
        )
        if level < len(channels) - 1:
            self.downsamplers = nn.ModuleList([Downsample2D(c_out, padding=0)])
        self.halves = level < len(channels) - 1

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        for resnet in self.resnets:
            x = resnet(x)
        return self.downsamplers[0](x) if self.halves else x


class DecoderLevel(nn.Module):
    """One more residual block than the encoder has, then doubling, unless it is the level of the picture itself."""

    def __init__(self, config: VAEConfig, level: int) -> None:
        super().__init__()
        channels = config.block_out_channels
        c_in, c_out = channels[min(level + 1, len(channels) - 1)], channels[level]
        self.resnets = nn.ModuleList(
            ResnetBlock2D(c_in if i == 0 else c_out, c_out, None, config.norm_num_groups, 1e-6)
            for i in range(config.layers_per_block + 1)
        )
        if level > 0:
            self.upsamplers = nn.ModuleList([Upsample2D(c_out)])
        self.doubles = level > 0

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if self.doubles else x


class Encoder(nn.Module):
    """Pictures to the means and log-variances of their latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(EncoderLevel(config, level) for level in range(len(channels)))
        self.mid_block = MidBlock(config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return norm_silu_conv(self.conv_norm_out, self.conv_out, self.mid_block(x))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.latent_channels, channels[-1], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(DecoderLevel(config, level) for level in reversed(range(len(channels))))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return norm_silu_conv(self.conv_norm_out, self.conv_out, x)


class AutoencoderKL(nn.Module):
    """Encoder and decoder. Pictures are in [-1, 1]; latents are NOT scaled by `config.scaling_factor` here.

    To save memory, off by default and named as in Diffusers: slicing takes one picture at a time, and tiling takes a
    picture larger than `config.sample_size` in tiles of that size.

    >>> vae = AutoencoderKL(VAEConfig(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
    ...                               up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4))
    >>> latents = vae.encode(torch.zeros(1, 3, 16, 16))
    >>> latents.mode().shape, latents.kl().item() >= 0, vae.decode(latents.mode()).shape
    (torch.Size([1, 4, 8, 8]), True, torch.Size([1, 3, 16, 16]))
    """

    TILE_OVERLAP = 0.25

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(c, c, 1) if config.use_post_quant_conv else None
        self.use_slicing = False
        self.use_tiling = False

    def forward(
        self, images: Float[Tensor, "b c_in h w"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b c_out h w"], DiagonalGaussian]:
        """Pictures painted again, and the distribution of their latents: of the mean, or of what `generator` draws."""
        latents = self.encode(images)
        return self.decode(latents.mode() if generator is None else latents.sample(generator)), latents

    def encode(self, images: Float[Tensor, "b c_in h w"]) -> DiagonalGaussian:
        """Pictures (b, c_in, h, w) to the distribution of their latents, (b, c, h / factor, w / factor)."""
        moments = self._at_once(self._encode, images, self.config.sample_size, self._tile_latents)
        mean, log_variance = moments.chunk(2, dim=1)
        return DiagonalGaussian(mean, log_variance.clamp(-30.0, 20.0))

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        """Latents, unscaled, to pictures in about [-1, 1]."""
        return self._at_once(self._decode, latents, self._tile_latents, self.config.sample_size)

    def tiled_decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        """`decode` in tiles, of whatever size."""
        return in_tiles(self._decode, latents, self._tile_latents, self.TILE_OVERLAP, self.config.sample_size)

    def enable_slicing(self) -> None:
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self) -> None:
        self.use_tiling = True

    def disable_tiling(self) -> None:
        self.use_tiling = False

    @property
    def _tile_latents(self) -> int:
        return self.config.sample_size // self.config.factor

    def _encode(self, images: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        moments = self.encoder(images)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def _decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))

    def _at_once(self, network: Callable[[Tensor], Tensor], x: Tensor, side: int, out_side: int) -> Tensor:
        """`network` on as much of x at once as the two switches allow."""
        if self.use_slicing and len(x) > 1:
            return torch.cat([self._at_once(network, one, side, out_side) for one in x.split(1)])
        if self.use_tiling and max(x.shape[2:]) > side:
            return in_tiles(network, x, side, self.TILE_OVERLAP, out_side)
        return network(x)
