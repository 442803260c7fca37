"""The tensor against PyTorch's: values, views, broadcasting, reductions and errors."""

import math
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import assert_same, draw, error_of, few, ours, seeds, shapes

from miniai.scratch import creation, ieee
from miniai.scratch.kernels import matmul
from miniai.scratch.tensor import Tensor

INDICES = [
    0,
    -1,
    slice(None),
    slice(1, None),
    slice(None, None, 2),
    slice(-2, None),
    slice(3, 1),
    ...,
    None,
    (0, 1),
    (slice(None), -1),
    (..., 0),
    (None, ..., slice(None, None, 3), None),
    (slice(1, 3), slice(None), slice(0, 4, 2)),
]


@few
@given(shapes, seeds)
def test_nested_lists_go_in_and_come_out(shape: tuple[int, ...], seed: int) -> None:
    x = draw(shape, seed)
    assert Tensor(x.tolist()).tolist() == x.tolist()
    assert Tensor(x.tolist()).shape == x.shape


@pytest.mark.parametrize("data", [1, 1.5, True, [1, 2], [1, 2.5], [True, False], [[True, 2]], [], [[], []]])
def test_the_type_is_the_least_that_holds_all_numbers(data) -> None:
    theirs = torch.tensor(data)
    theirs = theirs.double() if theirs.is_floating_point() else theirs
    assert_same(Tensor(data), theirs)


@pytest.mark.parametrize("index", INDICES)
def test_an_index_selects_what_pytorchs_does(index) -> None:
    x = draw((4, 3, 5))
    assert_same(ours(x)[index], x[index])
    assert_same(ours(x).transpose(0, 2)[index], x.transpose(0, 2)[index])


def test_a_view_shares_its_storage_and_a_copy_does_not() -> None:
    x = creation.zeros(2, 3)
    copy = x.clone()
    x.transpose(0, 1)[1, 0] = 7
    x[1] = Tensor([1.0, 2.0, 3.0])
    assert x.tolist() == [[0, 7, 0], [1, 2, 3]]
    assert copy.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_tensors_and_masks_pick_as_pytorchs_do() -> None:
    x, index = draw((4, 3)), torch.tensor([[0, 3, -1]])
    assert_same(ours(x)[ours(index)], x[index])
    assert_same(ours(x)[ours(x > 0)], x[x > 0])


@few
@given(st.permutations(range(4)), seeds)
def test_a_permuted_tensor_reads_as_pytorchs(dims: list[int], seed: int) -> None:
    x = draw((2, 3, 4, 5), seed)
    assert_same(ours(x).permute(*dims), x.permute(*dims))
    assert_same(ours(x).permute(*dims).reshape(6, -1), x.permute(*dims).reshape(6, -1))
    assert_same(ours(x).permute(*dims).flatten(1, 2), x.permute(*dims).flatten(1, 2))


def test_dimensions_are_added_stretched_and_taken_away() -> None:
    x = draw((3, 1))
    assert_same(ours(x).unsqueeze(-1).expand(2, 3, -1, 4), x.unsqueeze(-1).expand(2, 3, -1, 4).clone())
    assert_same(ours(x).squeeze(1), x.squeeze(1))
    assert_same(ours(x).squeeze(0), x.squeeze(0))


OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]
OPERATORS += [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@few
@given(shapes, seeds, st.data())
def test_arithmetic_broadcasts_as_pytorchs_does(shape: tuple[int, ...], seed: int, data) -> None:
    other = tuple(data.draw(st.sampled_from([1, size])) for size in shape[data.draw(st.integers(0, len(shape))) :])
    a, b = draw(shape, seed), draw(other, seed + 1)
    for function in OPERATORS:
        assert_same(function(ours(a), ours(b)), function(a, b))
        assert_same(function(ours(b), ours(a)), function(b, a))
        assert_same(function(ours(a), 2), function(a, 2))
        assert_same(function(2.5, ours(a)), function(2.5, a))


def test_types_of_numbers_mix_as_pytorchs_do() -> None:
    whole, flags, x = torch.arange(3), torch.tensor([True, False, True]), draw((3,))
    for a, b in [(whole, x), (flags, x), (flags, whole), (whole, whole)]:
        assert_same(ours(a) + ours(b), a + b)
        assert_same(ours(a) * ours(b), a * b)
    assert_same(ours(whole) * 2, whole * 2)
    assert_same(ours(whole) / 2, (whole.double() / 2))
    assert_same(~ours(flags), ~flags)
    assert_same(-ours(whole), -whole)
    assert_same(abs(ours(x)), abs(x))


SPECIAL = [0.0, -0.0, 1.0, -2.0, 1e4, -1e4, math.inf, -math.inf, math.nan]


def test_division_and_powers_are_those_of_ieee_754() -> None:
    a = torch.tensor(SPECIAL, dtype=torch.float64)[:, None]
    b = torch.tensor([*SPECIAL, 0.5, 3.0, -1.0, -3.0, 1e300], dtype=torch.float64)
    assert_same(ours(a) / ours(b), a / b)
    assert_same(ours(a) ** ours(b), a**b)


FUNCTIONS = {
    ieee.exp: torch.exp,
    ieee.log: torch.log,
    ieee.sqrt: torch.sqrt,
    ieee.sigmoid: torch.sigmoid,
    ieee.relu: torch.relu,
    ieee.silu: torch.nn.functional.silu,
    ieee.gelu: torch.nn.functional.gelu,
    ieee.quick_gelu: lambda x: x * torch.sigmoid(1.702 * x),
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_equal_pytorchs_at_ordinary_and_at_extreme_numbers(function) -> None:
    x = torch.cat([torch.linspace(-5, 5, 21, dtype=torch.float64), torch.tensor(SPECIAL, dtype=torch.float64)])
    assert_same(ours(x).map(function), FUNCTIONS[function](x))


@few
@given(shapes, seeds, st.booleans(), st.data())
def test_reductions_equal_pytorchs(shape: tuple[int, ...], seed: int, keepdim: bool, data) -> None:
    x = draw(shape, seed)
    dims = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True)) if shape else None
    assert_same(ours(x).sum(dims, keepdim), x.sum(dims, keepdim=keepdim))
    assert_same(ours(x).mean(dims, keepdim), x.mean(dims, keepdim=keepdim))
    assert_same(ours(x).reduce(max, dims, keepdim), x.amax(dims or (), keepdim=keepdim))


def test_the_sum_of_nothing_is_0_and_its_mean_is_nan() -> None:
    assert creation.zeros(0).sum().item() == 0
    assert math.isnan(creation.zeros(0).mean().item())


@few
@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 4), seeds)
def test_products_of_any_rank_equal_pytorchs(n: int, k: int, m: int, seed: int) -> None:
    pairs = [((n, k), (k, m)), ((k,), (k,)), ((k,), (k, m)), ((n, k), (k,)), ((2, 1, n, k), (3, k, m))]
    for left, right in pairs:
        a, b = draw(left, seed), draw(right, seed + 1)
        assert_same(ours(a) @ ours(b), a @ b)
    a = draw((k, n), seed).T
    assert_same(ours(a) @ ours(draw((k, m))), a @ draw((k, m)))


def test_whole_numbers_multiply_to_whole_numbers() -> None:
    a = torch.arange(6).view(2, 3)
    assert_same(ours(a) @ ours(a.T), a @ a.T)
    assert matmul(ours(a).storage, ours(a).storage, 2, 2, 2).typecode == "q"


def test_tensors_are_made_and_joined_as_pytorchs_are() -> None:
    a, b = draw((2, 3)), draw((2, 3), 1)
    assert_same(creation.arange(2, 9, 3), torch.arange(2, 9, 3))
    assert_same(creation.arange(4), torch.arange(4))
    assert_same(creation.linspace(0, 1, 7), torch.linspace(0, 1, 7, dtype=torch.float64), 1e-15)
    assert_same(creation.eye(3), torch.eye(3).double())
    assert_same(creation.ones(2, 2), torch.ones(2, 2).double())
    for dim in (0, 1, -1):
        assert_same(creation.cat([ours(a), ours(b), ours(a)], dim), torch.cat([a, b, a], dim))
        assert_same(creation.stack([ours(a), ours(b)], dim), torch.stack([a, b], dim))
    assert_same(creation.pad(ours(a), (1, 2, 0, 3), -1.0), torch.nn.functional.pad(a, (1, 2, 0, 3), value=-1))
    assert_same(creation.where(ours(a > 0), ours(b), 0.0), torch.where(a > 0, b, 0.0))
    assert_same(creation.where(ours(a > 0), 1, ours(b[0])), torch.where(a > 0, 1, b[0]))
    labels = torch.tensor([[0, 2], [1, 1]])
    assert_same(creation.one_hot(ours(labels), 3), torch.nn.functional.one_hot(labels, 3))


def test_gather_reads_and_scatter_add_writes_as_pytorchs_do() -> None:
    x, index = draw((3, 4)), torch.tensor([[0, 2, 0], [1, 1, 2]])
    assert_same(creation.gather(ours(x), 0, ours(index)), x.gather(0, index))
    assert_same(creation.gather(ours(x), 1, ours(index)), x.gather(1, index))
    source = draw((2, 3))
    assert_same(
        creation.scatter_add((3, 4), 1, ours(index), ours(source)), torch.zeros_like(x).scatter_add(1, index, source)
    )


# One line each: what is tried, on a tensor of either kind, with the functions of either kind.
MISTAKES = {
    "broadcast": lambda t, x: x + t([1.0, 2.0]),
    "broadcast deeper": lambda t, x: x.reshape(3, 2, 1) + t([[1.0], [2.0], [3.0]]),
    "view": lambda t, x: x.view(4, 2),
    "view of a transpose": lambda t, x: x.transpose(0, 1).view(6),
    "view with a size below 0": lambda t, x: x.view(-2, -3),
    "two unknown sizes": lambda t, x: x.view(-1, -1),
    "expand": lambda t, x: x.expand(4, 3),
    "expand to a size below 0": lambda t, x: x.expand(2, -3),
    "expand by an unknown size": lambda t, x: x.expand(-1, 2, 3),
    "flatten backwards": lambda t, x: x.flatten(1, 0),
    "dimension": lambda t, x: x.sum(2),
    "dimension named twice": lambda t, x: x.sum((1, 1)),
    "index": lambda t, x: x[0, 3],
    "too many indices": lambda t, x: x[0, 0, 0],
    "step": lambda t, x: x[::-1],
    "item": lambda t, x: x.item(),
    "truth": lambda t, x: bool(x),
    "length": lambda t, x: len(t(1.0)),
    "iteration": lambda t, x: iter(t(1.0)),
    "matmul": lambda t, x: x @ x,
    "matmul of a scalar": lambda t, x: x @ t(2.0),
    "ragged": lambda t, x: t([[1.0, 2.0], [3.0]]),
    "ragged, deeper": lambda t, x: t([[[1.0], [2.0]], [[3.0], [4.0], [5.0]]]),
    "index of a tensor": lambda t, x: x[t([5])],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_brings_pytorchs_error(mistake: str) -> None:
    attempt = MISTAKES[mistake]
    kind, words = error_of(lambda: attempt(Tensor, ours(draw((2, 3)))))
    their_kind, their_words = error_of(lambda: attempt(torch.tensor, draw((2, 3))))
    assert kind is their_kind
    assert words.rstrip(".") in their_words


def test_numbers_among_lists_and_lists_among_numbers_are_named() -> None:
    with pytest.raises(TypeError, match=r"expected a sequence of length 1 at dim 1 \(got float\)"):
        Tensor([[1.0], [2.0], 3.0])
    with pytest.raises(ValueError, match=r"expected a number at dim 1 \(got a sequence of length 1\)"):
        Tensor([1.0, [2.0]])
    with pytest.raises(ValueError, match=r"expected a number at dim 2 \(got a sequence of length 1\)"):
        Tensor([[1.0, 2.0], [[3.0], [4.0]]])
    with pytest.raises(ValueError, match=r"expected sequence of length 0 at dim 1 \(got 1\)"):
        Tensor([[], [1.0]])


def test_sizes_below_0_are_refused_where_a_tensor_is_made() -> None:
    assert error_of(lambda: creation.full((2, -3), 1.0)) == error_of(lambda: torch.full((2, -3), 1.0))
    assert error_of(lambda: creation.linspace(0, 1, -1)) == error_of(lambda: torch.linspace(0, 1, -1))
    with pytest.raises(RuntimeError, match=r"negative dimension -1: \[-1\]"):
        creation.zeros(-1)


def test_joining_what_does_not_fit_names_the_sizes() -> None:
    a, b = creation.zeros(2, 3), creation.zeros(2, 2)
    assert error_of(lambda: creation.cat([a, b])) == error_of(lambda: torch.cat([torch.zeros(2, 3), torch.zeros(2, 2)]))
    with pytest.raises(RuntimeError, match=r"equal size, but got \[2, 3\] at entry 0 and \[2, 2\] at entry 1"):
        creation.stack([a, b])
    with pytest.raises(RuntimeError, match="index 3 is out of bounds for dimension 1 with size 3"):
        creation.gather(a, 1, Tensor([[3]]))
    with pytest.raises(ValueError, match="dtype must be one of bool, int64, float64"):
        Tensor([1], "float8")
    with pytest.raises(TypeError, match="expected a number"):
        Tensor(["a"])
    with pytest.raises(TypeError, match="expected a Tensor or a number, got str"):
        a + "a"


def test_a_tensor_shows_its_numbers() -> None:
    assert repr(Tensor([[1.0, 2.0], [3.0, 4.0]])) == "Tensor([[1.0, 2.0],\n        [3.0, 4.0]])"
    assert repr(Tensor([1, 2])) == "Tensor([1, 2], dtype='int64')"


def test_a_truth_that_is_assigned_stays_one() -> None:
    x = Tensor([False, False, True])
    x[0], x[1] = 5, 0.5
    assert x.tolist() == [True, True, True]
    assert x.sum().item() == 3
    assert (-x).dtype == "int64"
