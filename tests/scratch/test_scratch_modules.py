"""Activations, losses, and modules by name: values and gradients against PyTorch's, over random shapes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import (
    assert_module_same,
    assert_same,
    assert_same_gradients,
    draw,
    error_of,
    few,
    matrices,
    ours,
    seeds,
    shapes,
    sizes,
)
from torch import nn

from miniai.scratch import functional, losses, modules
from miniai.scratch.autograd import Variable
from miniai.scratch.creation import zeros
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor

ACTIVATIONS = {
    "relu": (functional.relu, F.relu),
    "leaky, shifted": (lambda x: functional.general_relu(x, 0.1, 0.4), lambda x: F.leaky_relu(x, 0.1) - 0.4),
    "capped": (lambda x: functional.general_relu(x, cap=1.0), lambda x: x.clamp(0, 1)),
    "sigmoid": (functional.sigmoid, torch.sigmoid),
    "tanh": (functional.tanh, torch.tanh),
    "exp": (functional.exp, torch.exp),
    "silu": (functional.silu, F.silu),
    "gelu": (functional.gelu, F.gelu),
    "quick_gelu": (functional.quick_gelu, lambda x: x * torch.sigmoid(1.702 * x)),
    "softmax": (functional.softmax, lambda x: x.softmax(-1)),
    "softmax of columns": (lambda x: functional.softmax(x, 0), lambda x: x.softmax(0)),
    "log_softmax": (functional.log_softmax, lambda x: x.log_softmax(-1)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@settings(few, max_examples=8)
@given(shapes.filter(bool), seeds)
def test_an_activation_and_its_slope_equal_pytorchs(name: str, shape: tuple[int, ...], seed: int) -> None:
    assert_same_gradients(*ACTIVATIONS[name], draw(shape, seed) * 2)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_softmax_and_its_logarithm_are_stable(size: float) -> None:
    x = torch.tensor([[size, size + 1, 0.0]], dtype=torch.float64)
    assert_same(functional.softmax(Variable(ours(x))).data, x.softmax(-1))
    assert_same(functional.log_softmax(Variable(ours(x))).data, x.log_softmax(-1))


@few
@given(st.integers(1, 4), st.integers(1, 5), seeds)
def test_losses_and_their_gradients_equal_pytorchs(n: int, classes: int, seed: int) -> None:
    logits, other = draw((n, classes), seed), draw((n, classes), seed + 1)
    target = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    pairs = [
        (lambda x: losses.cross_entropy(x, ours(target)), lambda x: F.cross_entropy(x, target)),
        (lambda x: losses.nll_loss(x, ours(target)), lambda x: F.nll_loss(x, target)),
        (lambda x: losses.mse_loss(x, Variable(ours(other))), lambda x: F.mse_loss(x, other)),
    ]
    for mine, theirs in pairs:
        x, t = Variable(ours(logits), True), logits.clone().requires_grad_()
        result, wanted = mine(x), theirs(t)
        result.backward()
        wanted.backward()
        assert result.item() == pytest.approx(wanted.item(), abs=1e-12)
        assert_same(x.grad, t.grad)
    right = (logits.argmax(-1) == target).double().mean().item()
    assert losses.accuracy(ours(logits), ours(target)) == pytest.approx(right)


@few
@given(matrices, seeds)
def test_the_contrastive_loss_is_clips(shape: tuple[int, int], seed: int) -> None:
    own = torch.arange(shape[0])

    def clips(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        logits = scale * F.normalize(a) @ F.normalize(b).T
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    scale = torch.tensor(10.0, dtype=torch.float64)
    assert_same_gradients(losses.contrastive_loss, clips, draw(shape, seed), draw(shape, seed + 1), scale)


def test_a_loss_names_what_does_not_fit() -> None:
    x, t = zeros(2, 3), torch.zeros(2, 3)
    for mine, theirs in (([0], [0]), ([0, 3], [0, 3])):
        kind, words = error_of(lambda mine=mine: losses.cross_entropy(Variable(x), Tensor(mine)))
        their_kind, their_words = error_of(lambda theirs=theirs: F.cross_entropy(t, torch.tensor(theirs)))
        assert (kind, words) == (their_kind, their_words)
    with pytest.raises(RuntimeError, match=r"prediction \[2, 3\] and target \[3\] differ"):
        losses.mse_loss(Variable(x), Variable(zeros(3)))
    with pytest.raises(RuntimeError, match="two matrices of one shape"):
        losses.contrastive_loss(Variable(x), Variable(zeros(3)), 1)


@few
@given(shapes, sizes, sizes, st.booleans(), seeds)
def test_a_linear_layer_equals_pytorchs(before: tuple[int, ...], n_in: int, n_out: int, bias: bool, seed: int) -> None:
    x = draw((*before, n_in), seed)
    assert_module_same(modules.Linear(n_in, n_out, bias=bias), nn.Linear(n_in, n_out, bias=bias), x)


@settings(few, max_examples=8)
@given(*[sizes] * 3, seeds)
def test_modules_in_a_row_equal_pytorchs(n: int, width: int, hidden: int, seed: int) -> None:
    mine = modules.Sequential(
        modules.Flatten(), modules.Linear(2 * width, hidden), modules.ReLU(), modules.Linear(hidden, 2)
    )
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    assert_module_same(mine, theirs, draw((n, 2, width), seed))
    assert_module_same(
        modules.Sequential(modules.SiLU(), modules.GELU()), nn.Sequential(nn.SiLU(), nn.GELU()), draw((n,), seed)
    )
    assert len(mine) == 4
    assert isinstance(mine[2], modules.ReLU)


def test_a_hook_sees_each_call_and_may_replace_its_result() -> None:
    layer, seen = modules.ReLU(), []
    remove = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    replace = layer.register_forward_hook(lambda module, inputs, output: output * 2)
    assert layer(Variable([-1.0, 3.0])).data.tolist() == [0, 6]
    remove()
    replace()
    assert layer(Variable([-1.0, 3.0])).data.tolist() == [0, 3]
    assert seen == [(2,)]


def test_weights_are_drawn_as_pytorch_draws_them_and_repeat_with_the_seed() -> None:
    layer = modules.Linear(100, 50, Rng(1))
    values = list(layer.weight.data.flat())
    assert max(map(abs, values)) <= 0.1
    assert sum(x * x for x in values) / len(values) == pytest.approx(0.01 / 3, rel=0.05)
    assert values == list(modules.Linear(100, 50, Rng(1)).weight.data.flat())
    assert not any(modules.Linear(3, 3).weight.data.flat())


def test_a_frozen_module_remembers_nothing() -> None:
    layer = modules.Linear(2, 2, Rng(0))
    layer.requires_grad_(False)
    assert layer(Variable([[1.0, 2.0]])).parents == ()


def test_weights_that_do_not_fit_are_named() -> None:
    layer = modules.Sequential(modules.Linear(2, 2))
    with pytest.raises(RuntimeError, match=r"Missing key: 0.bias; Unexpected key: bias; size mismatch for 0.weight"):
        layer.load_state_dict({"0.weight": zeros(3, 2), "bias": zeros(2)})


def test_a_weight_that_two_modules_share_is_one_parameter_under_two_names() -> None:
    class Tied(modules.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = modules.Linear(2, 2, rng=Rng(0)), modules.Linear(2, 2, rng=Rng(1))
            self.second.weight = self.first.weight

    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.bias", "second.bias"]
    assert set(model.state_dict()) == {"first.weight", "first.bias", "second.weight", "second.bias"}
