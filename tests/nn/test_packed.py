"""Packed weights: the same network, to the eye of everything but the clock."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_pipeline
from torch import nn

from miniai.base.seeds import make_generator
from miniai.nn.gated import GatedLinear
from miniai.nn.packed import (
    PackedConv2d,
    PackedGatedLinear,
    PackedLinear,
    PackedPointwiseConv2d,
    can_pack,
    pack_weights,
    plus,
    unpack_weights,
)
from miniai.nn.transformer import TOKENS_AT_ONCE, FeedForward
from miniai.sd.pipeline import StableDiffusionPipeline


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 24, 3, padding=1, stride=2)
        self.point = nn.Conv2d(24, 16, 1, bias=False)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(16, 5), GatedLinear(5, 6), nn.Linear(6, 7, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.point(self.conv(x)).mean((2, 3)))


def net(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().to(dtype).to(memory_format=torch.channels_last).eval()


def pictures(dtype: torch.dtype, n: int = 2, side: int = 10) -> torch.Tensor:
    return torch.randn(n, 8, side, side, generator=make_generator(1)).to(dtype)


def packed_layers(model: nn.Module) -> list[nn.Module]:
    forms = (PackedConv2d, PackedGatedLinear, PackedLinear, PackedPointwiseConv2d)
    return [layer for layer in model.modules() if isinstance(layer, forms)]


BFLOAT16 = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no instructions for packed bfloat16")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=BFLOAT16)])


def test_this_torch_can_pack() -> None:
    assert can_pack()  # else the tests below would claim nothing


@DTYPES
def test_packed_layers_compute_what_plain_ones_do_at_any_size(dtype: torch.dtype) -> None:
    plain, packed = net(dtype), pack_weights(net(dtype))
    assert len(packed_layers(packed)) == 5
    with torch.no_grad():
        for n, side in ((2, 10), (1, 7), (5, 16)):
            x = pictures(dtype, n, side)
            torch.testing.assert_close(packed(x), plain(x), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)


@DTYPES
def test_a_packed_network_keeps_its_state_dict_bit_for_bit(dtype: torch.dtype) -> None:
    plain, packed = net(dtype), pack_weights(net(dtype))
    assert set(packed.state_dict()) == set(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(packed.state_dict()[name], value)
    unpacked = unpack_weights(packed)
    assert packed_layers(unpacked) == []
    assert {name for name, _ in unpacked.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in unpacked.state_dict().items())


def test_weights_loaded_into_a_packed_network_are_those_it_computes_with() -> None:
    packed, other = pack_weights(net(torch.float32)), net(torch.float32)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(2)
    packed.load_state_dict(other.state_dict())
    x = pictures(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), other(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="conv.weight"):
        packed.load_state_dict({name: value for name, value in other.state_dict().items() if name != "conv.weight"})


@BFLOAT16
def test_a_packed_network_moves_between_dtypes() -> None:
    packed = pack_weights(net(torch.float32)).to(torch.bfloat16)
    assert len(packed_layers(packed)) == 5
    assert all(layer.weight.is_mkldnn and layer.weight.dtype == torch.bfloat16 for layer in packed_layers(packed))
    half = packed.half()
    assert half.state_dict()["conv.weight"].dtype == torch.float16
    assert not any(layer.weight.is_mkldnn for layer in packed_layers(half))


def test_gradients_flow_through_packed_layers_to_the_inputs() -> None:
    x = pictures(torch.float32).requires_grad_()
    slopes = [torch.autograd.grad(one(x).sum(), x)[0] for one in (net(torch.float32), pack_weights(net(torch.float32)))]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_under_autocast_packed_layers_do_as_plain_ones() -> None:
    x = pictures(torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pack_weights(net(torch.float32))(x), net(torch.float32)(x))


@DTYPES
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(8, 12), nn.Linear(8, 12, bias=False), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1)],
)
def test_a_sum_behind_a_packed_layer_is_what_it_is_behind_a_plain_one(dtype: torch.dtype, layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).to(dtype)
    x, addend = (torch.randn(2, n, 6, 6, generator=make_generator(n)).to(dtype) for n in (8, 12))
    if isinstance(layer, nn.Linear):
        x, addend = (map_.flatten(2).transpose(1, 2) for map_ in (x, addend))
    with torch.no_grad():
        expected = layer(x) + addend
        assert torch.equal(plus(layer, x, addend), expected)
        summed = plus(pack_weights(layer), x, addend)
    rough = dtype == torch.bfloat16
    torch.testing.assert_close(summed, expected, rtol=2e-2 if rough else 1e-5, atol=2e-2 if rough else 1e-5)


@BFLOAT16
def test_a_packed_sum_is_rounded_once() -> None:
    layer, exact = (nn.Linear(1, 1, bias=False).to(dtype) for dtype in (torch.bfloat16, torch.float64))
    for one in (layer, exact):
        nn.init.constant_(one.weight, 1.0078125)
    x, addend = (torch.full((1, 1, 1), value, dtype=torch.bfloat16) for value in (1.0078125, 2.0**-8))
    with torch.no_grad():
        twice, once = layer(x) + addend, plus(pack_weights(layer), x, addend)
        assert once.item() == plus(exact, x.double(), addend.double()).bfloat16().item() != twice.item()


def test_gradients_of_a_sum_reach_both_of_its_terms() -> None:
    layer = pack_weights(nn.Linear(3, 3))
    for i in range(2):
        terms = [torch.ones(1, 2, 3), torch.ones(1, 2, 3)]
        terms[i].requires_grad_()
        assert torch.autograd.grad(plus(layer, *terms).sum(), terms[i])[0].abs().min() > 0


@DTYPES
def test_a_feed_forward_of_many_tokens_is_that_of_each(dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = FeedForward(8).to(dtype)
    x = torch.randn(2, TOKENS_AT_ONCE, 8, generator=make_generator(0)).to(dtype)[:, : TOKENS_AT_ONCE - 100]
    whole = layer(x, x)
    assert whole.requires_grad  # with gradients all tokens are taken at once
    with torch.no_grad():
        for one in (layer, pack_weights(copy.deepcopy(layer))):
            rough = dtype == torch.bfloat16
            torch.testing.assert_close(one(x, x), whole, rtol=2e-2 if rough else 1e-5, atol=2e-2 if rough else 1e-6)


@DTYPES
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_packed_1x1_convolution_is_one_at_each_pixel(dtype: torch.dtype, layout: torch.memory_format) -> None:
    layer = nn.Conv2d(16, 24, 1).to(dtype)
    packed = pack_weights(copy.deepcopy(layer))
    assert type(packed) is PackedPointwiseConv2d
    x = torch.randn(2, 16, 5, 7, generator=make_generator(0)).to(dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        y, exact = packed(x), copy.deepcopy(layer).double()(x.double())
        assert y.shape == exact.shape
        assert y.is_contiguous(memory_format=torch.channels_last)
        rough = dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), exact, rtol=2.0**-8 if rough else 1e-5, atol=1e-5)
    unpacked = unpack_weights(packed)
    assert type(unpacked) is nn.Conv2d
    assert torch.equal(unpacked.weight, layer.weight)


@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (nn.Conv2d(8, 8, 1), PackedPointwiseConv2d),
        (nn.Conv2d(8, 8, 1, stride=2), PackedConv2d),
        (nn.Conv2d(8, 8, 1, padding=1), PackedConv2d),
        (nn.Conv2d(8, 8, 1, groups=4), PackedConv2d),
        (nn.Conv2d(8, 8, 3, padding=1, dilation=2), PackedConv2d),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.Conv2d),
        (nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d),
    ],
)
def test_every_kind_of_convolution_computes_the_same_in_the_form_it_is_packed_in(layer: nn.Conv2d, form: type) -> None:
    packed = pack_weights(copy.deepcopy(layer))
    assert type(packed) is form
    x = pictures(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)


def test_float16_layers_stay_plain() -> None:
    assert packed_layers(pack_weights(net(torch.float16))) == []


def test_a_packed_network_can_be_copied() -> None:
    packed = pack_weights(net(torch.float32))
    twin = copy.deepcopy(packed)
    with torch.no_grad():
        assert torch.equal(twin(pictures(torch.float32)), packed(pictures(torch.float32)))


@BFLOAT16
def test_a_bfloat16_pipeline_paints_packed_what_it_paints_plain(tmp_path: Path) -> None:
    tiny_pipeline().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    packed = StableDiffusionPipeline.from_pretrained(tmp_path / "model", torch.bfloat16)
    assert packed_layers(packed.unet)
    assert packed_layers(packed.vae)
    request = {"num_inference_steps": 3, "output_type": "pt"}
    images = packed("a cat", **request, generator=make_generator(1)).images
    packed.save_pretrained(tmp_path / "again")
    unpack_weights(packed.unet)
    unpack_weights(packed.vae)
    assert not packed_layers(packed.unet)
    plain = packed("a cat", **request, generator=make_generator(1)).images
    torch.testing.assert_close(images, plain, rtol=0, atol=0.03)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "again", torch.float32)
    assert not packed_layers(again.unet)
    first = StableDiffusionPipeline.from_pretrained(tmp_path / "model", torch.float32)
    assert all(torch.equal(value, again.unet.state_dict()[name]) for name, value in first.unet.state_dict().items())


def test_where_bfloat16_cannot_be_packed_layers_stay_plain_and_moved_ones_become_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a CPU without AVX-512, which refuses with a RuntimeError."""
    monkeypatch.setattr("miniai.nn.packed.can_pack", lambda dtype: dtype == torch.float32)
    plain, kept = net(torch.bfloat16), pack_weights(net(torch.bfloat16))
    assert not packed_layers(kept)
    moved = pack_weights(net(torch.float32)).to(torch.bfloat16)
    assert not any(layer.weight.is_mkldnn for layer in packed_layers(moved))
    with torch.no_grad():
        expected = plain(pictures(torch.bfloat16))
        assert torch.equal(kept(pictures(torch.bfloat16)), expected)
        assert torch.equal(moved(pictures(torch.bfloat16)), expected)


@BFLOAT16
def test_where_blocks_depend_on_the_maps_size_a_convolution_is_right_and_quick_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 24, 3, padding=1).bfloat16()
    packed: Any = pack_weights(copy.deepcopy(plain))
    packings: list[Any] = []
    pack = type(packed).packed
    monkeypatch.setattr(type(packed), "packed", lambda self, w: (packings.append(self._side), pack(self, w))[1])
    with torch.no_grad():
        for side in (4, 4, 16, 4):
            x = torch.randn(2, 16, side, side).bfloat16()
            torch.testing.assert_close(packed(x), plain(x), rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(packed.plus(x, plain(x)), 2 * plain(x), rtol=3e-2, atol=3e-2)
    assert packings == [(4, 4), (16, 16), (4, 4)]  # once for each size that comes
    assert torch.equal(packed.plain_weight(), plain.weight)
