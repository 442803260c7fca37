"""Large maps a strip of rows at a time, beside the same layers called whole."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from miniai.nn import strips
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.doubling import repeated
from miniai.nn.group_norm import GroupNorm
from miniai.nn.layers import ResnetBlock2D, Upsample2D, norm_silu_conv
from miniai.nn.packed import can_pack, pack_weights
from miniai.nn.painting import painting
from miniai.nn.winograd import carried_kernels, convolve

DTYPES = [torch.float32, torch.bfloat16]
CAN = {dtype: can_pack(dtype) for dtype in DTYPES}


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of 2,048 bytes, of every map that has as many."""
    monkeypatch.setattr(strips, "LARGE_MAP", 65)
    monkeypatch.setattr(strips, "STRIP", 4 * 16 * 8 * 4)


@pytest.fixture
def ready() -> Iterator[Any]:
    """What makes a network ready to paint: packed, or painting until the test ends."""
    with ExitStack() as being_painted:

        def make_ready(network: nn.Module, packed: bool) -> None:
            if packed:
                pack_weights(network)
            else:
                being_painted.enter_context(painting(network))

        yield make_ready


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def exact(norm: nn.GroupNorm, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """conv(silu(norm(x))) in float64."""
    terms = (norm.weight.double(), norm.bias.double())
    normed = F.silu(F.group_norm(x.double(), norm.num_groups, *terms, norm.eps))
    return F.conv2d(normed, weight.double(), bias.double(), padding=1)


def shaken(network: nn.Module) -> None:
    """Norms of networks that have learned: no scale is 1 any more."""
    for weight in network.parameters():
        if weight.ndim == 1:
            nn.init.normal_(weight, 0.5)


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from([(16, 64), (16, 3), (64, 64)]),
    st.sampled_from([True, False]),
    st.sampled_from([dtype for dtype in DTYPES if CAN[dtype]]),
    st.sampled_from([0.0, 100.0]),
)
def test_any_size_is_convolved_as_the_whole_map_is(
    b: int, h: int, w: int, channels: tuple[int, int], packed: bool, dtype: torch.dtype, offset: float
) -> None:
    packed |= dtype is torch.bfloat16
    torch.manual_seed(b + h + w)
    model = nn.ModuleList([GroupNorm(4, channels[0]), nn.Conv2d(*channels, 3, padding=1)]).to(dtype)
    shaken(model)
    norm, conv = model
    assert isinstance(norm, nn.GroupNorm)
    weight, bias = (value.detach().clone() for value in conv.parameters())
    x = (torch.randn(b, channels[0], h, w) + offset).to(dtype).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with ExitStack() as stack, torch.no_grad():
        if packed:
            pack_weights(model)
        else:
            stack.enter_context(painting(model))
        expected = exact(norm, weight, bias, x)
        whole = error(conv(F.silu(norm(x))), expected)
        assert strips.pay(x, (norm, conv)) == (x[0].nbytes >= strips.STRIP)
        out = strips.convolve_normed(norm, conv, x)
        assert out.dtype is dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        rounding = 1e-3 if offset else 1e-5  # a mean far from 0 cancels, here and in the whole map
        rounding += 5e-3 if dtype is torch.bfloat16 else 0
        assert error(out, expected) < 1.2 * whole + rounding / 5
        assert torch.equal(x, before)
        if channels[0] == channels[1]:
            over = x.clone()
            assert torch.equal(strips.convolve_normed(norm, conv, over, out=over), out)
        pairs = strips.convolve_normed(norm, conv, x, plus=lambda i, rows: expected[i : i + 1, :, rows].to(dtype))
        assert error(pairs, 2 * expected) < 1.2 * whole + rounding


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
@pytest.mark.parametrize("strip", [1, 4 * 16 * 16 * 4, 10**6])
@pytest.mark.parametrize(("h", "w"), [(17, 9), (16, 12), (4, 3), (1, 1)])
@pytest.mark.parametrize("packed", [True, False])
def test_maps_whose_pixels_are_repeated_are_never_made_whole(
    h: int, w: int, strip: int, packed: bool, ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "STRIP", strip)
    conv = nn.Conv2d(16, 24, 3, padding=1)
    x = torch.randn(2, 16, h, w).contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(repeated(x), conv.weight, conv.bias, padding=1).detach()
    ready(conv, packed)
    with torch.no_grad():
        assert error(strips.convolve_repeated(conv, x), expected.double()) < 1e-5


@pytest.mark.parametrize("size", [(2, 8, 6, 5), (1, 8, 3, 4), (2, 8, 10, 16)])
def test_tiles_of_rows_whose_neighbours_are_given(size: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(size), torch.randn(12, 8, 3, 3), torch.randn(12)
    out = convolve(x, carried_kernels(weight), bias, edge_rows=0)
    assert error(out, F.conv2d(x.double(), weight.double(), bias.double(), padding=(0, 1))) < 1e-5


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Of each call of `convolve_normed` what it took, what it was to write over, and what it gave."""
    log: list[tuple[Tensor, Tensor | None, Tensor]] = []
    original = strips.convolve_normed

    def noted(norm: Any, conv: Any, x: Tensor, *, plus: Any = None, out: Tensor | None = None) -> Tensor:
        given = original(norm, conv, x, plus=plus, out=out)
        log.append((x, out, given))
        return given

    monkeypatch.setattr(strips, "convolve_normed", noted)
    return log


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("c_in", "c_out"), [(64, 64), (32, 64), (256, 256)])  # the widest by tiles
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_residual_block_makes_one_map_and_leaves_its_own_alone(
    c_in: int, c_out: int, packed: bool, mode: Any, layout: torch.memory_format, ready: Any, made: list[Any]
) -> None:
    block = ResnetBlock2D(c_in, c_out, None, 8, 1e-6)
    shaken(block)
    x = torch.randn(2, c_in, 45, 44).contiguous(memory_format=layout)
    before, expected = x.clone(), block(x).detach()
    assert not made  # with gradients
    ready(block, packed)
    with mode():
        assert error(block(x), expected.double()) < 1e-5
    (_, no_map, first), (_, written, second) = made
    assert no_map is None
    assert first.data_ptr() == written.data_ptr() == second.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
def test_where_strips_do_not_pay_the_layers_are_called(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(**changed: Any) -> tuple[nn.Module, nn.Module]:
        options = {"kernel_size": 3, "padding": 1, "stride": 1} | changed
        return GroupNorm(4, 16), pack_weights(nn.Conv2d(16, 64, **options))

    x, good = torch.randn(1, 16, 8, 8), pair()
    assert not strips.pay(x, good)  # someone may want gradients
    with torch.no_grad():
        assert strips.pay(x, good, good)
        assert not strips.pay(x, good, (good[0], nn.Conv2d(16, 64, 3, padding=1)))
        assert not strips.pay(x, (nn.GroupNorm(4, 16), good[1]))
        assert not strips.pay(x, (nn.Identity(), good[1]))
        assert not strips.pay(x, (GroupNorm(4, 16, affine=False), good[1]))
        assert not strips.pay(x.half(), good)
        assert not strips.pay(x[0], good)
        assert not strips.pay(x[:0], good)
        assert not strips.pay(x.to("meta"), good)
        for changed in ({"stride": 2}, {"padding": 0}, {"kernel_size": 1}, {"dilation": 2}, {"groups": 2}):
            assert not strips.pay(x, pair(**changed))
        with FlopCounterMode(display=False):  # it counts by module
            norm_silu_conv(*good, x)
        assert not made
        assert strips.pay(x, good, shortcut=nn.Identity())
        for name, value in (("LARGE_MAP", x.nbytes + 1), ("STRIP", x.nbytes + 1)):
            with monkeypatch.context() as patched:
                patched.setattr(strips, name, value)
                assert not strips.pay(x, good)


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
@pytest.mark.parametrize("which", ["norm1", "conv1", "norm2", "conv_shortcut", "all"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_layer_that_is_watched_sees_the_whole_map(which: str, packed: bool, ready: Any, made: list[Any]) -> None:
    block, x = ResnetBlock2D(16, 64, None, 4, 1e-6), torch.randn(1, 16, 24, 16)
    ready(block, packed)
    seen: list[tuple[int, ...]] = []

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(tuple(output.shape[2:]))

    register = register_module_forward_hook if which == "all" else block.get_submodule(which).register_forward_hook
    handle = register(see)
    try:
        with torch.no_grad():
            block(x)
    finally:
        handle.remove()
    assert seen
    assert set(seen) == {(24, 16)}
    assert not made


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
@pytest.mark.parametrize("packed", [True, False])
def test_a_forward_of_a_layers_own_counts(packed: bool, ready: Any) -> None:
    block, x = ResnetBlock2D(16, 16, None, 4, 1e-6), torch.randn(1, 16, 24, 16)
    ready(block, packed)
    conv: Any = block.conv1
    with torch.no_grad():
        assert not block(x).isnan().any()
        conv.forward = lambda x: torch.full_like(x, torch.nan)
        assert block(x).isnan().any()


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_processs_own_dtype_and_device_change_nothing(dtype: torch.dtype) -> None:
    norm, conv, x = GroupNorm(4, 16), nn.Conv2d(16, 64, 3, padding=1), torch.randn(1, 16, 29, 16) + 1
    pack_weights(conv)
    with torch.no_grad():
        expected = strips.convolve_normed(norm, conv, x)
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                assert torch.equal(strips.convolve_normed(norm, conv, x), expected)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
def test_weights_whose_blocks_depend_on_the_map_are_packed_once_for_all_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, conv = GroupNorm(4, 16), pack_weights(nn.Conv2d(16, 3, 3, padding=1))
    packings: list[Any] = []
    pack = type(conv).packed
    monkeypatch.setattr(type(conv), "packed", lambda self, weight: (packings.append(1), pack(self, weight))[1])
    with torch.no_grad():
        for _ in range(3):
            strips.convolve_normed(norm, conv, torch.randn(2, 16, 22, 16))  # the last strips are lower
    assert len(packings) == 1


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
def test_threads_paint_maps_of_different_sizes_with_the_same_layers() -> None:
    norm, conv = GroupNorm(4, 16), nn.Conv2d(16, 3, 3, padding=1)
    maps = [torch.randn(1, 16, side, 16) for side in (22, 45)]
    with torch.no_grad():
        expected = [conv(F.silu(norm(x))) for x in maps]
    pack_weights(conv)

    @torch.no_grad()
    def paint(i: int) -> bool:
        outs = [strips.convolve_normed(norm, conv, maps[i % 2]) for _ in range(50)]
        return all(torch.allclose(out, expected[i % 2], atol=1e-5) for out in outs)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(paint, range(8)))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if CAN[dtype]])
@pytest.mark.parametrize("size", [(1, 3, 40, 24), (2, 3, 16, 56)])
def test_an_autoencoder_gives_the_same_pictures_and_latents(
    size: tuple[int, ...], dtype: torch.dtype, ready: Any, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    config = VAEConfig(block_out_channels=(64, 128), norm_num_groups=8, layers_per_block=1, **types)
    vae = AutoencoderKL(config).to(dtype).eval()
    shaken(vae)
    images = torch.rand(size, dtype=dtype)
    with torch.no_grad():
        in_float64 = AutoencoderKL(config).double().eval()
        in_float64.load_state_dict(vae.state_dict())
        expected = in_float64(images.double())
    ready(vae, dtype is torch.bfloat16)
    errors = {}
    for large in (65, 2**40):
        monkeypatch.setattr(strips, "LARGE_MAP", large)
        with torch.no_grad():
            out, latents = vae(images)
        assert len(made) == 22  # two of each of ten residual blocks, and both conv_out
        errors[large] = (error(latents.mean, expected[1].mean), error(out, expected[0]))
    for by_strips, whole in zip(errors[65], errors[2**40], strict=True):
        assert by_strips < 1.2 * whole + 2e-6


@pytest.mark.skipif(not CAN[torch.float32], reason="this PyTorch cannot pack weights")
def test_an_upsampler_by_tiles_repeats_no_more_than_a_strip(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    up = Upsample2D(256)
    x = torch.randn(1, 256, 24, 24).contiguous(memory_format=torch.channels_last)
    expected, sizes = up(x).detach(), []
    ready(up, False)
    monkeypatch.setattr(strips, "repeated", lambda part: sizes.append(part.shape[2]) or repeated(part))
    monkeypatch.setattr(strips, "STRIP", x[:, :, :1].nbytes * 16)
    with torch.no_grad():
        assert error(up(x), expected.double()) < 1e-5
        assert max(sizes) < 10
        sizes.clear()
        handle = up.conv.register_forward_hook(lambda *called: None)  # it wants the whole of the map
        assert error(up(x), expected.double()) < 1e-5
        handle.remove()
        assert not sizes
        monkeypatch.setattr(strips, "LARGE_MAP", 2**40)
        assert error(up(x), expected.double()) < 1e-5
        assert not sizes
