"""Convolution, pooling, normalisation, dropout, embeddings and attention: values and gradients against PyTorch's, over
random shapes."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import (
    TOLERANCE,
    assert_module_same,
    assert_same,
    assert_same_gradients,
    draw,
    error_of,
    few,
    ours,
    seeds,
    shapes,
    sizes,
)
from torch import nn

from miniai.nn import layers as upper
from miniai.scratch import attention, convolution, modules, normalisation
from miniai.scratch.autograd import Variable
from miniai.scratch.creation import zeros
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor

windows = st.tuples(st.integers(1, 3), st.integers(1, 3))  # kernel and stride
sides = st.tuples(st.integers(3, 6), st.integers(3, 6))  # height and width


@settings(few, max_examples=15)
@given(*[sizes] * 3, windows, st.integers(0, 2), sides, st.booleans(), seeds)
def test_a_convolution_equals_pytorchs(
    n: int, c: int, out: int, window: tuple[int, int], padding: int, side: tuple[int, int], bias: bool, seed: int
) -> None:
    options: dict[str, Any] = {"stride": window[1], "padding": padding, "bias": bias}
    mine, theirs = (kind(c, out, window[0], **options) for kind in (convolution.Conv2d, nn.Conv2d))
    assert_module_same(mine, theirs, draw((n, c, *side), seed))


@settings(few, max_examples=15)
@given(sizes, sizes, windows, sides, st.booleans(), seeds)
def test_pooling_equals_pytorchs(
    n: int, c: int, window: tuple[int, int], side: tuple[int, int], ties: bool, seed: int
) -> None:
    x = draw((n, c, *side), seed)
    x = x.relu() if ties else x
    for stride in (None, window[1]):
        assert_module_same(convolution.MaxPool2d(window[0], stride), nn.MaxPool2d(window[0], stride), x)
        assert_module_same(convolution.AvgPool2d(window[0], stride), nn.AvgPool2d(window[0], stride), x)


def test_the_receptive_field_is_what_a_pixel_can_see() -> None:
    layers = [(3, 1), (3, 2), (3, 2)]
    x = torch.zeros(1, 1, 31, 31, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride in layers:
        y = F.conv2d(y, torch.ones(1, 1, kernel, kernel).double(), stride=stride)
    y[0, 0, 2, 2].backward()
    assert convolution.receptive_field(layers) == (x.grad.sum((0, 1, 2)) > 0).sum() == 9


NORMS = {
    "layer": (lambda c, side: normalisation.LayerNorm(*side), lambda c, side: nn.LayerNorm(side)),
    "layer, all": (lambda c, side: normalisation.LayerNorm(c, *side), lambda c, side: nn.LayerNorm((c, *side))),
    "group": (lambda c, side: normalisation.GroupNorm(2, c), lambda c, side: nn.GroupNorm(2, c)),
    "instance": (lambda c, side: normalisation.InstanceNorm2d(c), lambda c, side: nn.InstanceNorm2d(c, affine=True)),
    "batch": (lambda c, side: normalisation.BatchNorm2d(c), lambda c, side: nn.BatchNorm2d(c)),
}


@pytest.mark.parametrize("name", NORMS)
@settings(few, max_examples=8)
@given(sizes, st.integers(1, 3), sides, seeds)
def test_a_normalisation_equals_pytorchs(name: str, n: int, half: int, side: tuple[int, int], seed: int) -> None:
    mine, theirs = (make(2 * half, side) for make in NORMS[name])
    assert_module_same(mine, theirs, draw((n, 2 * half, *side), seed) * 3 + 1)


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


@settings(few, max_examples=12)
@given(*[sizes] * 3, st.integers(1, 3), st.integers(1, 3), st.booleans(), seeds)
def test_attention_equals_pytorchs(
    b: int, n: int, m: int, n_heads: int, head_dim: int, to_itself: bool, seed: int
) -> None:
    dim = n_heads * head_dim
    width = dim if to_itself else dim + 1  # of the context
    theirs = nn.MultiheadAttention(dim, n_heads, kdim=width, vdim=width, batch_first=True).double()
    theirs.load_state_dict({name: draw(tuple(p.shape), i) for i, (name, p) in enumerate(theirs.named_parameters())})
    mine = attention.Attention(dim, width, n_heads, head_dim, bias=True)

    def by_our_names(of: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        together = theirs.in_proj_weight  # None where keys are of another width
        weights = [theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight]
        parts = map(of, weights) if together is None else of(together).chunk(3)
        named = {f"to_{letter}.weight": part for letter, part in zip("qkv", parts, strict=True)}
        biases = of(theirs.in_proj_bias).chunk(3)
        named |= {f"to_{letter}.bias": part for letter, part in zip("qkv", biases, strict=True)}
        return named | {"to_out.0.weight": of(theirs.out_proj.weight), "to_out.0.bias": of(theirs.out_proj.bias)}

    mine.load_state_dict({name: ours(weight) for name, weight in by_our_names(lambda p: p.detach()).items()})
    tensors = [draw((b, n, dim), seed)] + ([] if to_itself else [draw((b, m, width), seed + 1)])
    assert_same_gradients(mine, lambda x, y=None: theirs(x, *[x if y is None else y] * 2)[0], *tensors)
    grads = {name: p.grad for name, p in mine.named_parameters()}
    for name, grad in by_our_names(lambda p: p.grad).items():
        assert_same(grads[name], grad, TOLERANCE)


def test_attention_has_the_names_and_shapes_of_the_upper_floors() -> None:
    for bias in (False, True):
        mine, above = attention.Attention(4, 6, 2, 3, bias=bias), upper.Attention(4, 6, 2, 3, bias=bias)
        shapes_of_both = [{name: tuple(w.shape) for name, w in x.state_dict().items()} for x in (mine, above)]
        assert shapes_of_both[0] == shapes_of_both[1]


@settings(few, max_examples=12)
@given(*[sizes] * 4, seeds)
def test_attention_of_many_heads_with_a_mask_equals_pytorchs(b: int, n_heads: int, n: int, d: int, seed: int) -> None:
    tensors = [draw((b, n_heads, n, d), seed + i) for i in range(3)]
    mask = attention.causal_mask(n)
    assert_same_gradients(
        lambda q, k, v: attention.attend(q, k, v, mask),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        *tensors,
    )


@settings(few, max_examples=12)
@given(*[sizes] * 3, seeds)
def test_masked_self_attention_equals_pytorchs(b: int, n: int, dim: int, seed: int) -> None:
    layer = attention.SelfAttention(dim, Rng(seed))
    weights = [torch.tensor(w.data.tolist(), dtype=torch.float64) for w in layer.parameters()]
    assert_same_gradients(
        lambda x: layer(x, attention.causal_mask(n)),
        lambda x: F.scaled_dot_product_attention(*(x @ w.T for w in weights), is_causal=True),
        draw((b, n, dim), seed),
    )


@few
@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=4), st.integers(3, 9), st.booleans(), st.integers(0, 1), seeds
)
def test_time_is_embedded_as_on_the_upper_floors(
    steps: list[int], dim: int, flip: bool, freq_shift: int, seed: int
) -> None:
    t = torch.tensor(steps)
    freq_shift = freq_shift if dim > 3 else 0
    options: dict[str, Any] = {"flip_sin_to_cos": flip, "freq_shift": freq_shift}
    found = attention.sinusoidal_embedding(ours(t), dim, **options)
    assert_same(found, upper.sinusoidal_embedding(t, dim, **options).double(), 1e-4)  # theirs is float32
    half = dim // 2
    angle = t[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / (half - freq_shift))
    waves = [angle.cos(), angle.sin()] if flip else [angle.sin(), angle.cos()]
    assert_same(found, torch.cat([*waves, torch.zeros(len(t), dim % 2)], -1).double())
    assert_module_same(attention.TimestepEmbedding(dim, 6), upper.TimestepEmbedding(dim, 6), draw((2, dim), seed))


@few
@given(sizes, sizes, shapes, seeds)
def test_an_embedding_and_its_gradient_equal_pytorchs(n: int, dim: int, shape: tuple[int, ...], seed: int) -> None:
    index = torch.randint(n, shape, generator=torch.Generator().manual_seed(seed))
    mine, theirs = attention.Embedding(n, dim, Rng(seed)), nn.Embedding(n, dim).double()
    theirs.load_state_dict({"weight": torch.tensor(mine.weight.data.tolist(), dtype=torch.float64)})
    grad = draw((*shape, dim), seed)
    result, wanted = mine(ours(index)), theirs(index)
    result.backward(ours(grad))
    wanted.backward(grad)
    assert_same(result.data, wanted.detach())
    assert_same(mine.weight.grad, theirs.weight.grad)
    with pytest.raises(IndexError, match=f"index {n} out of range in an embedding of {n} rows"):
        mine(Tensor([n]))


@few
@given(shapes, st.sampled_from([0.1, 0.5, 0.9]), seeds)
def test_dropout_is_pytorchs_with_the_same_elements_dropped(shape: tuple[int, ...], p: float, seed: int) -> None:
    kept = torch.tensor(Rng(seed).uniform(*shape).tolist()) >= p
    layer = attention.Dropout(p, Rng(seed))
    assert_same_gradients(layer, lambda x: x.masked_fill(~kept, 0.0) / (1 - p), draw(shape, seed))


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
    with pytest.raises(ValueError, match="kernel and stride must be at least 1 .* got 1, 0 and 0"):
        convolution.Conv2d(1, 1, 1, stride=0)
    with pytest.raises(ValueError, match="got 2, 0 and 0"):
        convolution.max_pool2d(Variable(zeros(1, 1, 4, 4)), 2, 0)
    assert math.isclose(convolution.out_size(7, 3, 2, 1), 4)
