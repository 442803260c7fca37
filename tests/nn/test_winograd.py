"""Winograd's way to a convolution, beside PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miniai.nn import winograd as module
from miniai.nn.packed import can_pack
from miniai.nn.winograd import carried_kernels, convolve, packed_kernels, winograd_conv2d


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
        ways = [carried_kernels, packed_kernels] if can_pack() else [carried_kernels]
        in_single_precision = [
            convolve(x.float(), make(weight.float()), given_bias if given_bias is None else given_bias.float())
            for make in ways
        ]
    expected = F.conv2d(x, weight, given_bias, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for answers in in_single_precision:
        torch.testing.assert_close(answers, expected.float(), rtol=1e-4, atol=2e-4)


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
