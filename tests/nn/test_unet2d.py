"""The U-Net without text against Diffusers' UNet2DModel, with the same weights."""

import diffusers
import pytest
import torch
from test_against_oracles import randomize, relative_error

from miniai.base.configs import config_to_dict
from miniai.base.errors import UserError
from miniai.nn.unet2d import UNet2DConfig, UNet2DModel

CONFIGS = {
    "attention below the top": UNet2DConfig(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32, 48),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ),
    "one head, one layer, classes": UNet2DConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=None,
        num_class_embeds=11,
        norm_num_groups=8,
        flip_sin_to_cos=False,
        freq_shift=1,
    ),
}


def in_diffusers(config: UNet2DConfig) -> diffusers.UNet2DModel:
    """The same network there, where only the one with text may be told another number (tests/diffusion has that)."""
    values = config_to_dict(config)
    assert values.pop("time_cond_proj_dim") is None
    return diffusers.UNet2DModel(**values)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", [16, 13])
def test_unet2d_equals_diffusers_with_the_same_weights(name: str, side: int) -> None:
    config = CONFIGS[name]
    theirs = in_diffusers(config).eval()
    randomize(theirs)
    ours = UNet2DModel(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    if side % 2 ** (len(config.block_out_channels) - 1):
        side += 3  # this class of Diffusers' cannot restore odd sizes
    x, t = torch.randn(2, config.in_channels, side, side), torch.tensor([3, 721])
    classes = None if config.num_class_embeds is None else torch.tensor([0, 10])
    assert relative_error(ours(x, t, classes), theirs(x, t, classes).sample) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_those_of_diffusers(name: str) -> None:
    config = CONFIGS[name]
    theirs = in_diffusers(config)
    randomize(theirs)
    ours = UNet2DModel(config)
    ours.load_state_dict(theirs.state_dict())
    x, t = torch.randn(2, config.in_channels, 8, 8), torch.tensor([3, 721])
    classes = None if config.num_class_embeds is None else torch.tensor([0, 10])
    ours(x, t, classes).square().mean().backward()
    theirs(x, t, classes).sample.square().mean().backward()
    expected = dict(theirs.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[parameter_name].grad, rtol=2e-3, atol=1e-6)


def test_unet2d_reads_the_config_that_diffusers_writes() -> None:
    config = CONFIGS["one head, one layer, classes"]
    assert UNet2DConfig.from_dict(dict(in_diffusers(config).config), "config.json") == config


def test_unet2d_refuses_what_it_does_not_have() -> None:
    with pytest.raises(UserError, match="time_embedding_type"):
        UNet2DConfig.from_dict({"time_embedding_type": "fourier"}, "config.json")
    model = UNet2DModel(CONFIGS["attention below the top"])
    with pytest.raises(ValueError, match="knows no classes"):
        model(torch.randn(1, 1, 8, 8), torch.tensor([1]), torch.tensor([1]))
