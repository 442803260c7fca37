import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu

from miniai.base.seeds import make_generator
from miniai.nn.freeu import FreeU
from miniai.nn.unet import UNet2DConditionModel, UNetConfig


@pytest.mark.parametrize("sides", [(8, 8), (6, 10), (5, 7)])
@pytest.mark.parametrize("channels", [4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_one_of_diffusers(sides: tuple[int, int], channels: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, channels, *sides, generator=make_generator(0)).to(dtype)
    beside = torch.randn(2, 5, *sides, generator=make_generator(1)).to(dtype)
    before = x.clone(), beside.clone()
    ours = FreeU(1.4, 0.3)(x, beside)
    assert torch.equal(x, before[0])  # nothing is changed in place
    assert torch.equal(beside, before[1])
    theirs = apply_freeu(0, x.clone(), beside.clone(), b1=1.4, s1=0.3)
    assert torch.equal(ours[0], theirs[0])
    assert ours[1].dtype == dtype
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_a_unet_of_one_level_takes_the_first_weights_alone() -> None:
    config = UNetConfig(
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    unet = UNet2DConditionModel(config)
    unet.set_freeu(FreeU(1.5, 0.5), FreeU(1.4, 0.4))
    assert [block.freeu for block in unet.up_blocks] == [FreeU(1.5, 0.5)]
    unet.set_freeu()
    assert [block.freeu for block in unet.up_blocks] == [None]


def test_weights_of_one_change_nothing() -> None:
    x = torch.randn(1, 4, 8, 8, generator=make_generator(0))
    up, beside = FreeU(1, 1)(x, x)
    assert torch.equal(up, x)
    torch.testing.assert_close(beside, x, rtol=1e-5, atol=1e-6)
