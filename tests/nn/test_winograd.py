"""Winograd's way to a convolution, beside PyTorch's own."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from miniai.nn import winograd as module
from miniai.nn.resnet import ResBlock
from miniai.nn.winograd import WinogradConv2d, carried_kernels, convolve, winograd, winograd_conv2d


def answers_and_gradients(convolve: object, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """The convolution of x, and the gradients of x, weight and bias of a sum of its answers, each weighed at random."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    out = convolve(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(weights.to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in inputs)]


def drawn(sizes: tuple[int, int, int, int, int], channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What a convolution sees, its weight and its bias, in float64, of (b, c, d, h, w)."""
    b, c, d, h, w = sizes
    generator = torch.Generator().manual_seed(0)
    shapes = ((b, c, h, w), (d, c, 3, 3), (d,))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    if channels_last:
        x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    return x, weight, bias


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 11), st.integers(1, 11)),
    at_a_time=st.sampled_from([1, 3000, 1_500_000]),
    channels_last=st.booleans(),
)
def test_answers_and_gradients_are_pytorchs(
    sizes: tuple[int, int, int, int, int], at_a_time: int, channels_last: bool
) -> None:
    x, weight, bias = drawn(sizes, channels_last)
    expected = answers_and_gradients(plain, x, weight, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_A_TIME", at_a_time)
        found = answers_and_gradients(winograd_conv2d, x, weight, bias)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 27), st.integers(1, 27)),
    at_a_time=st.sampled_from([1, 3000, 1_500_000]),
    tiles_at_a_time=st.sampled_from([1, 5, 128]),
    channels_last=st.booleans(),
    biased=st.booleans(),
)
def test_from_carried_kernels_the_answers_are_pytorchs(
    sizes: tuple[int, int, int, int, int], at_a_time: int, tiles_at_a_time: int, channels_last: bool, biased: bool
) -> None:
    x, weight, bias = drawn(sizes, channels_last)
    given_bias = bias if biased else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_A_TIME", at_a_time)
        patch.setattr(module, "TILES_AT_A_TIME", tiles_at_a_time)
        found = convolve(x, carried_kernels(weight), given_bias)
    torch.testing.assert_close(found, F.conv2d(x, weight, given_bias, padding=1), rtol=1e-10, atol=1e-10)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_in_single_precision_the_error_stays_near_a_millionth() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in ((4, 256, 16, 16), (256, 256, 3, 3), (256,))]
    exact = answers_and_gradients(plain, *(tensor.double() for tensor in inputs))
    for one, other in zip(answers_and_gradients(winograd_conv2d, *inputs), exact, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_gradients_of_gradients_are_an_error_not_zero() -> None:
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3)
    (grad,) = torch.autograd.grad(winograd_conv2d(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("learns", ["x", "weight"])
def test_what_does_not_learn_costs_nothing_and_the_other_gradient_is_the_same(learns: str) -> None:
    tensors = {"x": torch.randn(2, 3, 6, 5), "weight": torch.randn(4, 3, 3, 3)}
    both = answers_and_gradients(plain, *tensors.values(), torch.zeros(4))[1:3]
    tensors[learns].requires_grad_()
    out = winograd_conv2d(**tensors)
    kept = [tensor.numel() for tensor in out.grad_fn.saved_tensors]
    assert len(kept) == (1 if learns == "x" else 2)  # the kernels, and what was seen, which their gradient needs
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(tensors[learns].grad, both[0 if learns == "x" else 1], rtol=1e-4, atol=1e-4)
    assert tensors["weight" if learns == "x" else "x"].grad is None


def test_within_the_context_a_block_learns_by_it_and_ends_in_the_same_weights() -> None:
    torch.manual_seed(0)
    block = ResBlock(128, 128)
    nn.init.ones_(block.norm2.weight)
    other = deepcopy(block)
    x = torch.randn(8, 128, 8, 8)

    def learn(block: nn.Module) -> list[float]:
        optimizer = torch.optim.SGD(block.parameters(), 0.1)
        losses = []
        for _ in range(4):
            loss = (block(x) - x.flip(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    expected = learn(other)
    with winograd(block):
        assert type(block.conv1) is type(block.conv2) is WinogradConv2d
        assert block.conv1.pays(x)
        assert "_Winograd" in type(block.conv1(x).grad_fn).__name__
        assert learn(block) == pytest.approx(expected, rel=1e-5)
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
        with winograd(model):
            assert [type(one) for one in model] == [*before[:-1], WinogradConv2d]
            assert list(model.state_dict()) == names
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert [type(one) for one in model] == before


def test_where_it_would_be_slower_or_less_exact_the_layer_is_plain() -> None:
    layer = WinogradConv2d(128, 128, 3, padding=1)
    x = torch.randn(2, 128, 8, 8)
    assert layer.pays(x)
    assert not WinogradConv2d(32, 32, 3, padding=1).pays(torch.randn(2, 32, 8, 8))  # too few channels
    assert not layer.pays(x[:, :, :1, :1])  # a whole tile for one pixel
    assert not layer.pays(x[0])  # no batch
    assert not layer.pays(x.bfloat16())
    assert not layer.double().pays(x.double())
    layer.float()
    with torch.no_grad():
        assert not layer.pays(x)
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.pays(x)
    assert not layer.to("meta").pays(x.to("meta"))
    assert layer(x[0].to("meta")).shape == (128, 8, 8)
