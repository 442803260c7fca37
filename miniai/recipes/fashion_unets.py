"""The U-Nets that paint clothes: on patches, as the recipes do, and on pixels."""

from miniai.nn.unet2d import UNet2DConfig


def patch_unet(n_class_embeds: int | None = None) -> UNet2DConfig:
    """4.8 M parameters for pictures of 28×28 as 14×14 patches of 2×2; 0.35 G multiply-adds a picture, nearly all
    of them in convolutions wide enough to run at the speed of matrix products."""
    return UNet2DConfig(
        sample_size=14,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 160),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=16,
        num_class_embeds=n_class_embeds,
    )


def small_unet(n_class_embeds: int | None = None) -> UNet2DConfig:
    """13.7 M parameters for 32×32 pixels, most of them where there are few pixels; 0.82 G multiply-adds a picture."""
    return UNet2DConfig(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 96, 192, 256),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=16,
        num_class_embeds=n_class_embeds,
    )
