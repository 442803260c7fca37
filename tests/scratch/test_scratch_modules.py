"""Modules, convolution, pooling, normalisation, attention and losses: values and gradients against PyTorch's."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import assert_same, draw, error_of, few, ours, seeds
from torch import nn

from miniai.nn import layers as upper
from miniai.scratch import attention, convolution, functional, losses, modules, normalisation
from miniai.scratch.autograd import Variable
from miniai.scratch.creation import zeros
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor

TOLERANCE = 1e-9


def assert_module_same(mine: modules.Module, theirs: nn.Module, *inputs: torch.Tensor) -> None:
    """The same weights, loaded by name; then equal results, gradients of inputs and of every weight."""
    theirs = theirs.double()
    names = {name for name, _ in theirs.named_parameters()}
    state = {name: draw(tuple(p.shape), i) for i, (name, p) in enumerate(theirs.named_parameters())}
    theirs.load_state_dict(state, strict=False)
    mine.load_state_dict({**mine.state_dict(), **{name: ours(value) for name, value in state.items()}})
    assert set(dict(mine.named_parameters())) == names

    xs = [Variable(ours(x), True) for x in inputs]
    ts = [x.clone().requires_grad_() for x in inputs]
    result, wanted = mine(*xs), theirs(*ts)
    assert_same(result.data, wanted.detach().clone(), TOLERANCE)
    weight = draw(tuple(wanted.shape), 99)
    result.backward(ours(weight))
    wanted.backward(weight)
    for x, t in zip(xs, ts, strict=True):
        assert_same(x.grad, t.grad, TOLERANCE)
    grads = {name: p.grad for name, p in mine.named_parameters()}
    for name, p in theirs.named_parameters():
        assert_same(grads[name], p.grad, TOLERANCE)


ACTIVATIONS = {
    "relu": (functional.relu, F.relu),
    "leaky, shifted": (lambda x: functional.general_relu(x, 0.1, 0.4), lambda x: F.leaky_relu(x, 0.1) - 0.4),
    "capped": (lambda x: functional.general_relu(x, cap=1.0), lambda x: x.clamp(0, 1)),
    "sigmoid": (functional.sigmoid_of, torch.sigmoid),
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
def test_an_activation_and_its_slope_equal_pytorchs(name: str) -> None:
    mine, theirs = ACTIVATIONS[name]
    x = draw((3, 5)) * 2
    a, t = Variable(ours(x), True), x.clone().requires_grad_()
    result, wanted = mine(a), theirs(t)
    assert_same(result.data, wanted.detach())
    result.backward(ours(draw((3, 5), 1)))
    wanted.backward(draw((3, 5), 1))
    assert_same(a.grad, t.grad)


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


def test_the_contrastive_loss_is_clips() -> None:
    a, b = draw((4, 3)), draw((4, 3), 1)
    t = a.clone().requires_grad_()
    logits = 10 * F.normalize(t) @ F.normalize(b).T
    wanted = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    wanted.backward()
    x = Variable(ours(a), True)
    result = losses.contrastive_loss(x, Variable(ours(b)), 10)
    result.backward()
    assert result.item() == pytest.approx(wanted.item())
    assert_same(x.grad, t.grad)


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


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
def test_a_linear_layer_equals_pytorchs(shape: tuple[int, ...]) -> None:
    assert_module_same(modules.Linear(3, 2), nn.Linear(3, 2), draw(shape, 5))
    assert_module_same(modules.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False), draw(shape, 5))


def test_modules_in_a_row_equal_pytorchs() -> None:
    mine = modules.Sequential(modules.Flatten(), modules.Linear(6, 4), modules.ReLU(), modules.Linear(4, 2))
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    assert_module_same(mine, theirs, draw((3, 2, 3), 7))
    assert_module_same(
        modules.Sequential(modules.SiLU(), modules.GELU()), nn.Sequential(nn.SiLU(), nn.GELU()), draw((3,))
    )
    assert len(mine) == 4
    assert isinstance(mine[2], modules.ReLU)


@settings(few, max_examples=12)
@given(*[st.integers(1, 3)] * 2, st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), seeds)
def test_a_convolution_equals_pytorchs(c: int, out: int, kernel: int, stride: int, padding: int, seed: int) -> None:
    x = draw((2, c, 5, 4), seed)
    mine = convolution.Conv2d(c, out, kernel, stride=stride, padding=padding)
    assert_module_same(mine, nn.Conv2d(c, out, kernel, stride=stride, padding=padding), x)


@pytest.mark.parametrize(("kernel", "stride"), [(2, None), (3, 2), (2, 1)])
def test_pooling_equals_pytorchs(kernel: int, stride: int | None) -> None:
    x = draw((2, 2, 6, 5))
    assert_module_same(convolution.MaxPool2d(kernel, stride), nn.MaxPool2d(kernel, stride), x)
    assert_module_same(convolution.AvgPool2d(kernel, stride), nn.AvgPool2d(kernel, stride), x)
    assert_module_same(convolution.MaxPool2d(kernel, stride), nn.MaxPool2d(kernel, stride), x.relu())  # with ties


def test_the_receptive_field_is_what_a_pixel_can_see() -> None:
    layers = [(3, 1), (3, 2), (3, 2)]
    x = torch.zeros(1, 1, 31, 31, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride in layers:
        y = F.conv2d(y, torch.ones(1, 1, kernel, kernel).double(), stride=stride)
    y[0, 0, 2, 2].backward()
    assert convolution.receptive_field(layers) == (x.grad.sum((0, 1, 2)) > 0).sum() == 9


NORMS = {
    "layer": (lambda: normalisation.LayerNorm(4, 5), lambda: nn.LayerNorm((4, 5))),
    "group": (lambda: normalisation.GroupNorm(2, 6), lambda: nn.GroupNorm(2, 6)),
    "instance": (lambda: normalisation.InstanceNorm2d(6), lambda: nn.InstanceNorm2d(6, affine=True)),
    "batch": (lambda: normalisation.BatchNorm2d(6), lambda: nn.BatchNorm2d(6)),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_normalisation_equals_pytorchs(name: str) -> None:
    mine, theirs = (make() for make in NORMS[name])
    assert_module_same(mine, theirs, draw((2, 6, 4, 5), 3) * 3 + 1)


def test_batch_norm_keeps_pytorchs_averages_and_uses_them_in_evaluation() -> None:
    mine, theirs = normalisation.BatchNorm2d(3), nn.BatchNorm2d(3).double()
    for seed in range(3):
        x = draw((4, 3, 2, 2), seed) + seed
        mine(Variable(ours(x)))
        theirs(x)
    assert_same(mine.running_mean, theirs.running_mean)
    assert_same(mine.running_var, theirs.running_var)
    mine.eval()
    theirs.eval()
    assert_same(mine(Variable(ours(x))).data, theirs(x).detach())
    assert set(mine.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_attention_equals_that_of_the_upper_floors() -> None:
    x, context = draw((2, 3, 4), 1), draw((2, 5, 6), 2)
    assert_module_same(attention.Attention(4, 4, 2, 3), upper.Attention(4, 4, 2, 3), x)
    assert_module_same(attention.Attention(4, 6, 2, 3, bias=True), upper.Attention(4, 6, 2, 3, bias=True), x, context)


def test_masked_self_attention_equals_pytorchs() -> None:
    x = draw((2, 4, 3), 1)
    layer = attention.SelfAttention(3, Rng(0))
    q, k, v = (x @ torch.tensor(w.data.tolist(), dtype=torch.float64).T for w in layer.parameters())
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_same(layer(Variable(ours(x)), attention.causal_mask(4)).data, wanted)


def test_time_is_embedded_as_on_the_upper_floors() -> None:
    t = torch.tensor([0, 3, 999])
    for dim, options in ((6, {}), (7, {"flip_sin_to_cos": False, "freq_shift": 1})):
        found = attention.sinusoidal_embedding(ours(t), dim, **options)
        assert_same(found, upper.sinusoidal_embedding(t, dim, **options).double(), 1e-4)  # theirs is float32
    assert_module_same(attention.TimestepEmbedding(4, 6), upper.TimestepEmbedding(4, 6), draw((2, 4), 1))


def test_an_embedding_and_its_gradient_equal_pytorchs() -> None:
    index = torch.tensor([[0, 2, 2], [1, 0, 2]])
    mine, theirs = attention.Embedding(3, 4, Rng(0)), nn.Embedding(3, 4).double()
    theirs.load_state_dict({"weight": torch.tensor(mine.weight.data.tolist(), dtype=torch.float64)})
    grad = draw((2, 3, 4))
    result, wanted = mine(ours(index)), theirs(index)
    result.backward(ours(grad))
    wanted.backward(grad)
    assert_same(result.data, wanted.detach())
    assert_same(mine.weight.grad, theirs.weight.grad)
    with pytest.raises(IndexError, match="index 3 out of range in an embedding of 3 rows"):
        mine(Tensor([3]))


def test_dropout_keeps_the_mean_in_training_and_everything_in_evaluation() -> None:
    layer = attention.Dropout(0.25, Rng(0))
    x = Variable(zeros(100, 100) + 1, True)
    y = layer(x)
    values = set(y.data.flat())
    assert values == {0.0, 1 / 0.75}
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    y.sum().backward()
    assert x.grad.tolist() == y.data.tolist()
    layer.eval()
    assert layer(x) is x
    with pytest.raises(ValueError, match="got 1.5"):
        attention.Dropout(1.5, Rng(0))


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


MISTAKES = {
    "linear": (lambda: modules.Linear(3, 2)(Variable(zeros(4, 5))), lambda: nn.Linear(3, 2)(torch.zeros(4, 5))),
    "channels": (
        lambda: convolution.Conv2d(3, 2, 1)(Variable(zeros(1, 4, 5, 5))),
        lambda: nn.Conv2d(3, 2, 1)(torch.zeros(1, 4, 5, 5)),
    ),
    "groups": (lambda: normalisation.GroupNorm(2, 3), lambda: nn.GroupNorm(2, 3)),
    "layer norm": (
        lambda: normalisation.LayerNorm(3)(Variable(zeros(2, 4))),
        lambda: nn.LayerNorm(3)(torch.zeros(2, 4)),
    ),
    "batch of one": (
        lambda: normalisation.BatchNorm2d(3)(Variable(zeros(1, 3, 1, 1))),
        lambda: nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1)),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_brings_pytorchs_error(mistake: str) -> None:
    (kind, words), (their_kind, their_words) = (error_of(attempt) for attempt in MISTAKES[mistake])
    assert kind is their_kind
    assert words in re.sub(r"torch\.Size\((.*)\)", r"\1", their_words)


def test_a_window_larger_than_its_image_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"Kernel size: \(3\). Kernel size can't be greater than actual input size"):
        convolution.Conv2d(1, 1, 3)(Variable(zeros(1, 1, 2, 5)))
    with pytest.raises(RuntimeError, match="Expected 4D"):
        convolution.max_pool2d(Variable(zeros(2, 2)), 2)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        convolution.Conv2d(1, 1, 1, stride=0)
    assert math.isclose(convolution.out_size(7, 3, 2, 1), 4)
