"""The U-Net for pictures without text, told a class or nothing, with the names of Diffusers' UNet2DModel.

Ho et al. 2020, appendix B: residual blocks, self-attention at chosen resolutions, the timestep added everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from miniai.base.configs import config_from_dict, without_neutral
from miniai.nn.layers import SelfAttention2D, sinusoidal_embedding
from miniai.nn.unet import UNet

# Options of Diffusers' class that stay at these values here; another value is refused.
NEUTRAL: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "num_train_timesteps": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}


@dataclass(frozen=True)
class UNet2DConfig:
    """Fields carry Diffusers' names. `attention_head_dim` is the width of a head (None: one head for all channels);
    `num_class_embeds` the number of classes, with one more for "no class" where guidance is wanted; None for none.
    `time_cond_proj_dim` is how wide the embedding of another number is that is told beside the timestep, such as the
    scale of a distilled guidance; None for no such number. (Diffusers has it in UNet2DConditionModel.)"""

    sample_size: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    layers_per_block: int = 2
    attention_head_dim: int | None = 8
    num_class_embeds: int | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int | float = 0
    time_cond_proj_dim: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "UNet2DConfig":
        """Raises UserError, naming `where`, for an option that this U-Net does not have."""
        return config_from_dict(cls, without_neutral(values, NEUTRAL, where), where)

    def attention(self, channels: int, level: int) -> nn.Module:
        """What stands behind a residual block of a level with attention, and in the middle."""
        n_heads = 1 if self.attention_head_dim is None else channels // self.attention_head_dim
        return SelfAttention2D(channels, self.norm_num_groups, n_heads, self.norm_eps)


class UNet2DModel(UNet):
    """Predicts noise (or v, or x0, as the schedule says) from a noisy picture, a timestep and perhaps a class.

    >>> config = UNet2DConfig(in_channels=1, out_channels=1, block_out_channels=(32, 64), num_class_embeds=11,
    ...                       down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    ...                       up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    >>> unet, noisy = UNet2DModel(config), torch.randn(2, 1, 16, 16)
    >>> unet(noisy, torch.tensor([999.0, 10.5]), torch.tensor([3, 10])).shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__(config, config.in_channels, config.out_channels, config.time_cond_proj_dim)
        self.config = config
        width = config.block_out_channels[0] * 4
        self.class_embedding = None if config.num_class_embeds is None else nn.Embedding(config.num_class_embeds, width)

    def forward(
        self,
        sample: Float[Tensor, "b c_in h w"],
        timestep: Shaped[Tensor, " b"],
        class_labels: Int[Tensor, " b"] | None = None,
        timestep_cond: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """`timestep` may be fractional, or whatever number stands for the noise level; `timestep_cond` is the embedding
        of the number that is told beside it.

        Raises ValueError for a class without an embedding of classes, and the reverse; so for `timestep_cond`.
        """
        if (class_labels is None) != (self.class_embedding is None):
            knows = "knows no classes" if self.class_embedding is None else "needs class_labels"
            raise ValueError(f"this network {knows}")
        if (timestep_cond is None) != (self.config.time_cond_proj_dim is None):
            knows = "has no time_cond_proj_dim" if timestep_cond is not None else "needs timestep_cond"
            raise ValueError(f"this network {knows}")
        embedded = sinusoidal_embedding(
            timestep,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        told = None if timestep_cond is None else timestep_cond.to(sample.dtype)
        time = self.time_embedding(embedded.to(sample.dtype), told)
        if self.class_embedding is not None:
            time = time + self.class_embedding(class_labels).to(time.dtype)
        return self.run(sample, time, None)
