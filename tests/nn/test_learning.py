"""Convolutions that learn by the fastest way, beside PyTorch's own."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.nn import learning as module
from miniai.nn.learning import LearningConv2d, learning
from miniai.nn.resnet import ResBlock


def learn(block: nn.Module, x: Tensor, rate: float, half: bool = False) -> list[float]:
    """The losses of a few steps towards x with its channels turned round, under autocast to bfloat16 if asked."""
    optimizer = torch.optim.SGD(block.parameters(), rate)
    losses = []
    for _ in range(6 if half else 4):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = (block(x).float() - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def with_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is decided on CPUs with vectors of eight numbers."""
    monkeypatch.setattr(module, "has_avx512", lambda: False)


@pytest.mark.usefixtures("with_avx2")
def test_within_the_context_a_block_learns_by_tiles_and_ends_in_the_same_weights() -> None:
    torch.manual_seed(0)
    block = ResBlock(128, 128)
    nn.init.ones_(block.norm2.weight)
    other = deepcopy(block)
    x = torch.randn(8, 128, 8, 8)

    expected = learn(other, x, 0.1)
    with learning(block):
        assert type(block.conv1) is type(block.conv2) is LearningConv2d
        assert block.conv1.by_tiles(x)
        assert "_Winograd" in type(block.conv1(x).grad_fn).__name__
        assert learn(block, x, 0.1) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    assert type(block.conv1) is nn.Conv2d
    for name, value in other.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_only_what_it_can_do_is_changed_and_all_is_as_before_even_after_an_error() -> None:
    kept = [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding="same"),
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(128, 128, 3, padding=1),
    ]
    model = nn.ModuleList([*kept, nn.Conv2d(128, 128, 3, padding=1)])
    before = [type(one) for one in model]
    names = list(model.state_dict())

    def fail() -> None:
        with learning(model):
            assert [type(one) for one in model] == [*before[:-1], LearningConv2d]
            assert list(model.state_dict()) == names
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert [type(one) for one in model] == before


@pytest.mark.parametrize("n_channels", [64, 160, 288])
def test_with_wider_vectors_tiles_pay_for_more_channels_only(n_channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = LearningConv2d(n_channels, n_channels, 3, padding=1), torch.randn(2, n_channels, 8, 8)
    taken = []
    for wider in (False, True):
        monkeypatch.setattr(module, "has_avx512", lambda wider=wider: wider)
        taken.append(layer.by_tiles(x))
    assert taken == [n_channels >= 160, n_channels >= 288]


@pytest.mark.usefixtures("with_avx2")
def test_tiles_are_left_where_they_would_be_slower_or_less_exact() -> None:
    layer = LearningConv2d(128, 128, 3, padding=1)
    x = torch.randn(2, 128, 8, 8)
    assert layer.by_tiles(x)
    assert not LearningConv2d(32, 32, 3, padding=1).by_tiles(torch.randn(2, 32, 8, 8))  # too few channels
    assert not layer.by_tiles(x[:, :, :1, :1])  # a whole tile for one pixel
    assert not layer.by_tiles(x[0])  # no batch
    assert not layer.by_tiles(x.bfloat16())
    assert not layer.double().by_tiles(x.double())
    layer.float()
    with torch.no_grad():
        assert not layer.by_tiles(x)
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.by_tiles(x)
    assert not layer.to("meta").by_tiles(x.to("meta"))
    assert layer(x[0].to("meta")).shape == (128, 8, 8)


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of matrices are right on every CPU, and only quick on some."""
    monkeypatch.setattr(module, "has_amx", lambda: True)


@pytest.mark.usefixtures("amx")
def test_under_autocast_small_maps_learn_as_products_and_end_in_the_same_weights() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(96, 104, 3, padding=1), nn.SiLU(), nn.Conv2d(104, 96, 3, padding=1, bias=False))
    other = deepcopy(block)
    x = torch.randn(16, 96, 8, 4)

    expected = learn(other, x, 0.5, half=True)
    with learning(block):
        with torch.autocast("cpu", torch.bfloat16):
            assert block[0].by_products(x)
            y = block[0](x)
        assert "_Unfolded" in type(y.grad_fn).__name__
        assert y.dtype == torch.bfloat16
        assert learn(block, x, 0.5, half=True) == pytest.approx(expected, rel=2e-3)
    assert expected[-1] < 0.97 * expected[0]
    for one, two in zip(block.parameters(), other.parameters(), strict=True):
        assert (one - two).norm() < 2e-3 * two.norm()


@pytest.mark.usefixtures("amx")
def test_products_are_left_where_they_would_be_slower_or_less_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LearningConv2d(96, 96, 3, padding=1)
    x = torch.randn(2, 96, 8, 8)
    assert not layer.by_products(x)  # in float32
    assert not layer.by_products(x.bfloat16())  # an error, as in PyTorch
    assert layer.bfloat16().by_products(x.bfloat16())
    layer.float()
    with torch.autocast("cpu", torch.float16):
        assert not layer.by_products(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.by_products(x)
        assert not layer.by_products(torch.randn(2, 96, 8, 9))  # a larger map
        assert not layer.by_products(torch.randn(2, 96, 0, 8))
        assert not layer.by_products(x[0])
        assert not LearningConv2d(32, 96, 3, padding=1).by_products(x[:, :32])
        with torch.no_grad():
            assert not layer.by_products(x)
        layer.weight.requires_grad_(False)
        assert not layer.by_products(x)
        layer.weight.requires_grad_()
        monkeypatch.setattr(module, "has_amx", lambda: False)
        assert not layer.by_products(x)
        assert "Convolution" in type(layer(x).grad_fn).__name__
