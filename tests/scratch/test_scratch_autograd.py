"""Gradients, by hand and by reverse mode, against PyTorch's."""

import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import assert_same, assert_same_gradients, draw, error_of, few, ours, seeds, shapes, sizes

from miniai.scratch.autograd import Variable, cat
from miniai.scratch.creation import zeros
from miniai.scratch.functional import relu
from miniai.scratch.layers import Lin, Mse, Network, Relu
from miniai.scratch.losses import mse_loss
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor

UNARY = {
    "negative": (lambda x: -x, None),
    "square": (lambda x: x**2, None),
    "reciprocal": (lambda x: 3 / (x * x + 1), None),
    "difference": (lambda x: 2 - x, None),
    "log": (lambda x: (x * x + 1).log(), None),
    "root": (lambda x: (x * x + 1) ** 0.5, None),
    "mean": (lambda x: x.mean(), None),
    "sum of rows": (lambda x: x.sum(-1, True), None),
    "variance": (lambda x: x.var(1), lambda x: x.var(1, correction=0)),
    "greatest": (lambda x: x.max(-1), lambda x: x.max(-1).values),
    "permute": (lambda x: x.permute(2, 0, 1) * 2, None),
    "transpose": (lambda x: x.transpose(0, -1), None),
    "flatten": (lambda x: x.flatten(1), None),
    "expand": (lambda x: x[:, :1].expand(x.shape[0], 5, -1), None),
    "index": (lambda x: x[1, ..., ::2], None),
    "used twice": (lambda x: x * x + x, None),
    "pad": (lambda x: x.pad((1, 2, 3, 0), 7.0), lambda x: F.pad(x, (1, 2, 3, 0), value=7.0)),
    "cat": (lambda x: cat([x, x * 2], 1), lambda x: torch.cat([x, x * 2], 1)),
}


@pytest.mark.parametrize("name", UNARY)
@settings(few, max_examples=8)
@given(st.tuples(*[st.integers(2, 4)] * 3), seeds)
def test_an_operation_passes_back_pytorchs_gradient(name: str, shape: tuple[int, ...], seed: int) -> None:
    mine, theirs = UNARY[name]
    assert_same_gradients(mine, theirs or mine, draw(shape, seed))


@few
@given(shapes, seeds, st.data())
def test_gradients_of_broadcast_arithmetic_equal_pytorchs(shape: tuple[int, ...], seed: int, data) -> None:
    other = tuple(data.draw(st.sampled_from([1, size])) for size in shape[data.draw(st.integers(0, len(shape))) :])
    a, b = draw(shape, seed), draw(other, seed + 1)
    for function in (lambda a, b: a + b, lambda a, b: b - a, lambda a, b: a * b, lambda a, b: b / (a * a + 1)):
        assert_same_gradients(function, function, a, b)


@few
@given(*[st.integers(1, 4)] * 3, seeds)
def test_gradients_of_products_equal_pytorchs(n: int, k: int, m: int, seed: int) -> None:
    for left, right in (((n, k), (k, m)), ((2, 1, n, k), (3, k, m)), ((2, n, k), (k, m))):
        assert_same_gradients(operator.matmul, torch.matmul, draw(left, seed), draw(right, seed))


@few
@given(*[sizes] * 3, st.integers(0, 1), seeds)
def test_gather_passes_back_to_where_it_read(n: int, m: int, n_picked: int, dim: int, seed: int) -> None:
    shape = (n_picked, m) if dim == 0 else (n, n_picked)
    index = torch.randint((n, m)[dim], shape, generator=torch.Generator().manual_seed(seed))
    assert_same_gradients(lambda x: x.gather(dim, ours(index)), lambda x: x.gather(dim, index), draw((n, m), seed))


def test_gradients_add_up_over_calls() -> None:
    x = Variable([1.0, 2.0], True)
    (x * x).sum().backward()
    (x * 3).sum().backward()
    assert x.grad.tolist() == [5, 7]


def test_nothing_is_remembered_where_nothing_needs_a_gradient() -> None:
    x = Variable([1.0])
    assert (x * 2 + x).parents == ()
    y = Variable([1.0], True)
    assert (y.detach() * 2).parents == ()
    z = x * y
    z.sum().backward()
    assert x.grad is None
    assert y.grad is not None


def test_more_steps_than_python_holds_calls_do_not_run_out_of_stack() -> None:
    x = Variable(1.0, True)
    y = x
    for _ in range(1100):  # Python's own stack holds 1000 calls
        y = -y
    y.backward()
    assert x.grad.item() == 1


def test_mistakes_bring_pytorchs_errors() -> None:
    x = draw((2, 3))
    pairs = [
        (lambda: Variable(ours(x), True).backward(), lambda: x.clone().requires_grad_().backward()),
        (lambda: Variable(ours(x)).sum().backward(), lambda: x.sum().backward()),
    ]
    for mine, theirs in pairs:
        assert error_of(mine) == error_of(theirs)
    with pytest.raises(RuntimeError, match="only Tensors of floating point dtype can require gradients"):
        Variable([1, 2], True)
    with pytest.raises(RuntimeError, match="does not share the tensor's storage"):
        Variable(ours(x), True).read(lambda t: t + 1)
    with pytest.raises(RuntimeError, match="at least 2D, but they are 2D and 1D"):
        Variable(ours(x)) @ Variable([1.0])


def test_a_variable_shows_its_numbers() -> None:
    assert repr(Variable([1.0], True)) == "Variable(Tensor([1.0]), requires_grad=True)"


@few
@given(sizes, sizes, sizes, seeds)
def test_gradients_written_by_hand_equal_autograds_and_pytorchs(n: int, n_in: int, width: int, seed: int) -> None:
    rng = Rng(seed)
    first, second, loss = Lin(n_in, width, rng), Lin(width, 2, rng), Mse()
    first.bias, second.bias = rng.normal(width), rng.normal(2)
    x, target = draw((n, n_in), seed), draw((n, 2), seed + 1)
    network = Network([first, Relu(), second], loss)
    value = loss.forward(network.forward(ours(x)), ours(target))
    grads = [network.backward(), first.weight_grad, first.bias_grad, second.weight_grad, second.bias_grad]

    tensors = [ours(x), first.weight, first.bias, second.weight, second.bias]
    variables = [Variable(tensor, True) for tensor in tensors]
    v, w1, b1, w2, b2 = variables
    by_autograd = mse_loss(relu(v @ w1 + b1) @ w2 + b2, Variable(ours(target)))
    by_autograd.backward()

    theirs = [torch.tensor(tensor.tolist(), dtype=torch.float64, requires_grad=True) for tensor in tensors]
    t, w1, b1, w2, b2 = theirs
    wanted = F.mse_loss((t @ w1 + b1).relu() @ w2 + b2, target)
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item())
    assert by_autograd.item() == pytest.approx(wanted.item())
    for by_hand, variable, tensor in zip(grads, variables, theirs, strict=True):
        assert_same(by_hand, tensor.grad)
        assert_same(variable.grad, tensor.grad)


def test_steps_down_the_gradient_learn_a_line() -> None:
    rng = Rng(0)
    x = rng.normal(32, 1)
    layer, loss = Lin(1, 1, rng), Mse()
    network = Network([layer], loss)
    for _ in range(100):
        error = loss.forward(network.forward(x), x * 3 - 1)
        network.backward()
        layer.step(0.1)
    assert error.item() < 1e-6
    assert layer.weight.item() == pytest.approx(3, abs=1e-3)
    assert layer.bias.item() == pytest.approx(-1, abs=1e-3)


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"prediction \[3, 1\] and target \[3\] differ in shape"):
        Mse().forward(zeros(3, 1), Tensor([1.0, 2.0, 3.0]))


def test_the_power_0_passes_back_zeros() -> None:
    x = draw((3,))
    assert_same_gradients(lambda a: a**0, lambda a: a**0, x)
