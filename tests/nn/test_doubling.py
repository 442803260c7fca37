"""Maps repeated twice both ways, and convolutions of them that never make them, beside PyTorch's own."""

import copy
import shutil
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.nn import doubling, packed
from miniai.nn import painting as painting_module
from miniai.nn.doubling import merged_kernel, repeated
from miniai.nn.layers import Upsample2D
from miniai.nn.packed import can_pack, pack_weights, unpack_weights
from miniai.nn.painting import painting

DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(
            torch.bfloat16, marks=pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU packs no bfloat16")
        ),
    ],
)


def upsampler(channels: int, dtype: torch.dtype = torch.float32) -> Upsample2D:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Upsample2D(channels).to(dtype)


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=make_generator(0)).to(dtype)


def exactly(layer: Upsample2D, x: Tensor) -> Tensor:
    """What the layer makes of x, in float64."""
    weight, bias = (tensor.detach().double() for tensor in layer.conv.parameters())
    return F.conv2d(F.interpolate(x.double(), scale_factor=2.0), weight, bias, padding=1)


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the maps that were never repeated, in order."""
    log: list[tuple[int, ...]] = []

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        log.append(tuple(x.shape))
        return doubling.convolve_doubled(x, weight, bias)

    for module in (packed, painting_module):
        monkeypatch.setattr(module, "convolve_doubled", noted)
    return log


def test_a_merged_kernel_makes_four_pixels_of_one_as_the_convolution_does_of_the_repeated_map() -> None:
    x, weight = maps(2, 3, 5, 4).double(), maps(6, 3, 3, 3).double()
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)
    torch.testing.assert_close(F.conv_transpose2d(x, merged_kernel(weight), stride=2, padding=1), expected)


@pytest.mark.parametrize("size", [None, (10, 14), (9, 13), (10, 13), (7, 20)])
def test_pixels_are_repeated_as_pytorch_has_the_nearest(size: tuple[int, int] | None) -> None:
    x = maps(2, 3, 5, 7)
    assert torch.equal(repeated(x, size), F.interpolate(x, size=size or (10, 14), mode="nearest"))


@DTYPES
def test_a_packed_upsampler_computes_what_a_plain_one_does(dtype: torch.dtype, doubled: list[Any]) -> None:
    layer = upsampler(12, dtype)
    fast = pack_weights(copy.deepcopy(layer))
    rough = dtype == torch.bfloat16
    with torch.no_grad():
        for shape in ((2, 12, 5, 3), (1, 12, 8, 8)):
            x = maps(*shape, dtype=dtype)
            expected = exactly(layer, x)
            for size in (None, expected.shape[2:]):
                y = fast(x, None if size is None else tuple(size))
                assert y.dtype == dtype
                assert (y.double() - expected).norm() < (4e-3 if rough else 1e-6) * expected.norm()
        assert doubled == [(2, 12, 5, 3)] * 2 + [(1, 12, 8, 8)] * 2
        # Of an odd size the next larger map has one row less: then pixels are not all repeated twice.
        x = maps(2, 12, 5, 3, dtype=dtype)
        torch.testing.assert_close(fast(x, (9, 6)), layer(x, (9, 6)), rtol=2e-2, atol=2e-2 if rough else 1e-5)
        assert len(doubled) == 4


def test_a_packed_upsampler_keeps_its_weight_and_follows_another(doubled: list[Any]) -> None:
    layer, other = upsampler(12), upsampler(12)
    fast, x = pack_weights(copy.deepcopy(layer)), maps(2, 12, 5, 3)
    with torch.no_grad():
        fast(x)
        assert set(fast.state_dict()) == {"conv.weight", "conv.bias"}
        assert torch.equal(fast.state_dict()["conv.weight"], layer.conv.weight)
        other.conv.weight.mul_(-2.0)
        for change in (lambda: fast.load_state_dict(other.state_dict()), lambda: fast.double().float()):
            change()
            torch.testing.assert_close(fast(x).double(), exactly(other, x), rtol=1e-5, atol=1e-5)
        twin = copy.deepcopy(fast)
        torch.testing.assert_close(twin(x).double(), exactly(other, x), rtol=1e-5, atol=1e-5)
        assert len(doubled) == 4
        plain = unpack_weights(fast)
        assert torch.equal(plain.conv.weight, other.conv.weight)
        assert not any(name == "conv.merged" for name, _ in plain.named_buffers())
        torch.testing.assert_close(plain(x).double(), exactly(other, x), rtol=1e-5, atol=1e-5)
        assert len(doubled) == 4


@pytest.mark.parametrize("prepare", [pack_weights, None])
def test_for_maps_too_small_to_pay_no_kernel_is_merged(prepare: Any, doubled: list[Any]) -> None:
    layer = upsampler(25)
    with torch.no_grad(), painting(layer) if prepare is None else nullcontext():
        if prepare is not None:
            prepare(layer)
        for side, n_doubled in ((3, 0), (4, 1)):  # 36 and 64 pixels for 25 channels
            layer(maps(1, 25, side, side))
            assert len(doubled) == n_doubled * can_pack()


def test_a_packed_upsampler_keeps_its_merged_kernel_for_one_painting(doubled: list[Any]) -> None:
    fast = pack_weights(upsampler(12))
    x = maps(2, 12, 5, 3)
    with torch.no_grad():
        expected = fast(x)
        for _ in range(2):
            with painting(fast):
                kept = []
                for _ in range(2):
                    assert torch.equal(fast(x), expected)
                    kept += [buffer for name, buffer in fast.named_buffers() if name == "conv.merged"]
            assert len(kept) == 2 * can_pack()
            assert not can_pack() or kept[0] is kept[1]
            assert "conv.merged" not in dict(fast.named_buffers())
    assert len(doubled) == 5 * can_pack()


def test_gradients_through_a_packed_upsampler_are_those_of_the_plain_one(doubled: list[Any]) -> None:
    layer = upsampler(6)
    fast = pack_weights(copy.deepcopy(layer))
    x = maps(2, 6, 4, 4).requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(one(x).square().sum(), x)[0] for one in (layer, fast)))
    assert not doubled


@pytest.mark.skipif(not can_pack(), reason="this PyTorch cannot pack weights")
def test_an_upsampler_that_paints_goes_by_tiles_where_those_are_fewer_products_still(doubled: list[Any]) -> None:
    few, many = upsampler(64), upsampler(192)
    with torch.no_grad():
        for layer, shape, by_doubling in (
            (few, (2, 64, 8, 8), 1),
            (many, (2, 192, 16, 16), 0),
            (many, (0, 192, 4, 4), 0),
        ):
            x = maps(*shape)
            doubled.clear()
            expected = exactly(layer, x)
            with painting(layer):
                y = layer(x)
                assert y.shape == expected.shape
                assert (y - expected).norm() <= 1e-5 * expected.norm()
                assert len(doubled) == by_doubling
                if by_doubling:
                    layer.conv.weight.mul_(2.0)
                    assert (layer(x) - exactly(layer, x)).norm() < 1e-5 * expected.norm()
    with painting(few):
        assert few(maps(2, 64, 8, 8)).requires_grad


COMPILED = """
import torch
from miniai.nn.layers import ResnetBlock2D, Upsample2D
from miniai.recipes.training import channels_last

torch.manual_seed(0)
before, up, after = ResnetBlock2D(64, 32, None, 8, 1e-5), Upsample2D(32), ResnetBlock2D(64, 32, None, 8, 1e-5)
network = channels_last(torch.nn.ModuleList([before, up, after]))

def run(x, skip):
    return after(torch.cat([up(before(torch.cat([x, x], 1)), SIZE), skip], 1))

x, skip = torch.randn(2, 32, 8, 8), torch.randn(2, 32, *SIZE)
x, skip = (one.contiguous(memory_format=torch.channels_last).requires_grad_() for one in (x, skip))
answers = []
for call in (run, torch.compile(run, dynamic=False, backend=BACKEND)):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
        y = call(x, skip)
    y.square().sum().backward()
    answers.append([y.detach(), *(weight.grad for weight in network.parameters())])
print(max(float((a - b).norm() / a.norm()) for a, b in zip(*answers, strict=True)))
"""


@pytest.mark.parametrize(
    ("size", "half", "backend"),
    [
        pytest.param(
            (16, 16),
            True,
            "inductor",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles with a C++ compiler"),
        ),
        ((15, 16), False, "aot_eager"),
    ],
)
def test_compiled_upsampling_has_the_same_gradients(size: tuple[int, int], half: bool, backend: str) -> None:
    # In a process of its own: torch.compile cannot read functions whose shapes the tests check at every call.
    values = {"SIZE": size, "HALF": half, "BACKEND": backend}
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    done = subprocess.run([sys.executable, "-c", head + COMPILED], capture_output=True, text=True)
    assert float(done.stdout) < (0.05 if half else 1e-4), done.stderr
