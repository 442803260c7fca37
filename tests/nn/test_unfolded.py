"""Convolutions that learn as products of matrices, beside PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miniai.nn import unfolded as module
from miniai.nn.unfolded import unfolded_conv2d


def drawn(b: int, c: int, d: int, h: int, w: int) -> list[Tensor]:
    """What a convolution sees, its weight and its bias, in float64."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).double() for shape in ((b, c, h, w), (d, c, 3, 3), (d,))]


def answers_and_gradients(convolve: object, *inputs: Tensor) -> list[Tensor]:
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    out = convolve(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(weights.to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in inputs)]


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)),
    at_a_time=st.sampled_from([1, 500, 4_000_000]),
    channels_last=st.booleans(),
)
def test_answers_and_gradients_are_pytorchs(
    sizes: tuple[int, int, int, int, int], at_a_time: int, channels_last: bool
) -> None:
    inputs = drawn(*sizes)
    if channels_last:
        inputs[:2] = (tensor.contiguous(memory_format=torch.channels_last) for tensor in inputs[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_A_TIME", at_a_time)
        found = answers_and_gradients(unfolded_conv2d, *inputs)
    for one, other in zip(found, answers_and_gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert sizes[0] == 0 or found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [4, 8])
def test_in_bfloat16_weights_get_gradients_summed_in_float32(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_A_TIME", 9 * 48 * side**2)  # a picture at a time
    x, weight, bias = (tensor.float() for tensor in drawn(32, 48, 40, side, side))
    x, weight = x.bfloat16(), weight.bfloat16().float().contiguous(memory_format=torch.channels_last)
    exact = answers_and_gradients(plain, x.double(), weight.double(), bias.bfloat16().double())
    found = answers_and_gradients(unfolded_conv2d, x, weight, bias)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert found[2].is_contiguous(memory_format=torch.channels_last)
    exact_grad = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    by_rounded = torch.ops.aten.convolution_backward(
        exact_grad, x.double(), weight.double(), [40], (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, True, True)
    )
    for one, other in zip(found, (exact[0], *by_rounded), strict=True):
        assert (one.double() - other).norm() < 4e-3 * other.norm()


@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.parametrize("learns", ["x", "weight"])
def test_what_does_not_learn_gets_no_gradient(learns: str, side: int) -> None:
    x, weight, bias = drawn(2, 3, 4, side, side)
    expected = dict(zip(("x", "weight"), answers_and_gradients(plain, x, weight, bias)[1:3], strict=True))
    tensors = {"x": x, "weight": weight}
    tensors[learns].requires_grad_()
    out = unfolded_conv2d(**tensors)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    torch.testing.assert_close(tensors.pop(learns).grad, expected[learns])
    assert next(iter(tensors.values())).grad is None


def test_gradients_of_gradients_are_an_error_not_zero() -> None:
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3)
    (grad,) = torch.autograd.grad(unfolded_conv2d(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
