"""The fast backward pass of group normalisation against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from miniai.nn.group_norm import GroupNorm


@pytest.mark.parametrize(("shape", "groups"), [((3, 16, 8, 6), 8), ((2, 12, 5, 5), 3), ((4, 8, 1, 2), 1)])
def test_gradients_equal_those_of_pytorch_in_float64_up_to_bfloat16(shape: tuple[int, ...], groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = GroupNorm(groups, shape[1])
    with torch.no_grad():
        norm.weight.copy_(torch.rand(shape[1], generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(shape[1], generator=generator))
    x = (2 * torch.randn(shape, generator=generator) + 0.5).bfloat16()
    grad = torch.randn(shape, generator=generator).bfloat16()
    ours = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = norm(ours)
    assert type(y.grad_fn).__name__ == "_ChannelsLastBackward"
    y.backward(grad)

    exact = x.double().requires_grad_()
    weight, bias = norm.weight.detach().double().requires_grad_(), norm.bias.detach().double().requires_grad_()
    expected = F.group_norm(exact, groups, weight, bias, norm.eps)
    expected.backward(grad.double())
    pairs = ((y, expected), (ours.grad, exact.grad), (norm.weight.grad, weight.grad), (norm.bias.grad, bias.grad))
    for got, wanted in pairs:
        assert got is not None
        assert wanted is not None
        assert float((got.double() - wanted).norm() / wanted.norm()) < 0.01


def test_float32_takes_the_path_of_pytorch_exactly() -> None:
    x = torch.randn(2, 8, 4, 4)
    norm = GroupNorm(4, 8)
    assert torch.equal(norm(x), F.group_norm(x, 4, norm.weight, norm.bias, norm.eps))


def test_one_picture_in_odd_strides_is_normalised_as_by_pytorch() -> None:
    x = torch.randn(1, 8, 4, 4, dtype=torch.bfloat16).as_strided((1, 8, 4, 4), (7, 1, 32, 8)).requires_grad_()
    assert x.is_contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(2, 8).bfloat16()
    wanted = torch.nn.functional.group_norm(x.detach().float(), 2).bfloat16()
    torch.testing.assert_close(norm(x), wanted, rtol=0.02, atol=0.02)
    norm(x).float().square().sum().backward()
