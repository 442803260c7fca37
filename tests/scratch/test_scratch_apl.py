"""APL's primitives, each against its PyTorch form as the table has it; norms and statistics."""

import math
from operator import add, and_, sub

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import assert_same, draw, few, matrices, ours, seeds, shapes

from miniai.scratch import apl, norms, statistics
from miniai.scratch.creation import zeros
from miniai.scratch.tensor import Tensor

TENSORS = {
    "x": torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]]),
    "v": torch.tensor([2, 7, 1, 2]),
    "w": torch.tensor([1, 8, 2]),
    "flags": torch.tensor([True, False, True]),
}


@pytest.mark.parametrize("primitive", apl.PRIMITIVES, ids=lambda primitive: primitive.apl)
def test_a_primitive_equals_the_pytorch_form_beside_it(primitive: apl.Primitive) -> None:
    arguments = [ours(TENSORS[a]) if isinstance(a, str) else a for a in primitive.arguments]
    wanted = torch.as_tensor(eval(primitive.pytorch, {"torch": torch, **TENSORS}))
    assert_same(primitive.function(*arguments), wanted.clone())


def test_the_table_holds_every_primitive_of_the_course() -> None:
    names = {primitive.name for primitive in apl.PRIMITIVES}
    assert names >= {"reduce", "scan", "outer product", "inner product", "reshape", "ravel", "rotate", "compress"}
    assert names >= {"grade up", "grade down"}
    assert all(primitive.symbol.strip("¯") in primitive.apl or primitive.symbol == "/" for primitive in apl.PRIMITIVES)


def test_reduce_and_scan_read_from_the_right() -> None:
    row = Tensor([1, 2, 3])
    assert apl.reduce(sub, row).item() == 1 - (2 - 3)
    assert apl.scan(sub, row).tolist() == [1, 1 - 2, 1 - (2 - 3)]


def test_what_apl_cannot_do_is_an_error() -> None:
    with pytest.raises(ValueError, match="reduce of an empty row has no value"):
        apl.reduce(add, zeros(0))
    with pytest.raises(RuntimeError, match="sizes 2 and 3 differ"):
        apl.inner(add, sub, zeros(2), zeros(3))
    with pytest.raises(RuntimeError, match="cannot fill the shape"):
        apl.reshape((2,), zeros(0))
    with pytest.raises(RuntimeError, match=r"\[2\] flags for 3 rows"):
        apl.compress(Tensor([True, False]), zeros(3))
    with pytest.raises(RuntimeError, match="grade needs a vector"):
        apl.grade_up(zeros(2, 2))


@few
@given(shapes, seeds, st.booleans())
def test_norms_equal_pytorchs(shape: tuple[int, ...], seed: int, keepdim: bool) -> None:
    x = draw(shape, seed)
    for p in (0, 0.5, 1, 2, 3, -1, math.inf, -math.inf):
        assert_same(norms.vector_norm(ours(x), p), torch.linalg.vector_norm(x, p))
        if shape:
            wanted = torch.linalg.vector_norm(x, p, -1, keepdim=keepdim)
            assert_same(norms.vector_norm(ours(x), p, -1, keepdim), wanted)
    if len(shape) > 1:
        assert_same(norms.frobenius_norm(ours(x)), torch.linalg.matrix_norm(x))
        assert_same(norms.one_norm(ours(x)), torch.linalg.matrix_norm(x, 1))
        assert_same(norms.inf_norm(ours(x)), torch.linalg.matrix_norm(x, math.inf))


def test_a_norm_neither_overflows_nor_vanishes() -> None:
    assert norms.vector_norm(Tensor([3e200, 4e200])).item() == pytest.approx(5e200)
    assert norms.vector_norm(Tensor([3e-200, 4e-200])).item() == pytest.approx(5e-200)
    assert norms.vector_norm(zeros(2, 0), dim=-1).tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="at least 2 dimensions, got 1"):
        norms.frobenius_norm(zeros(3))


@few
@given(shapes.filter(bool), seeds, st.sampled_from([1, 1e4, -1e4]))
def test_logsumexp_equals_pytorchs_at_any_size(shape: tuple[int, ...], seed: int, centre: float) -> None:
    x = draw(shape, seed) + centre
    assert_same(norms.logsumexp(ours(x)), x.logsumexp(-1))
    assert_same(norms.logsumexp(ours(x), 0, True), x.logsumexp(0, keepdim=True))


def test_logsumexp_knows_infinity() -> None:
    x = torch.tensor([[-math.inf, -math.inf], [math.inf, 0], [-math.inf, 1.0]], dtype=torch.float64)
    assert_same(norms.logsumexp(ours(x)), x.logsumexp(-1))


@few
@given(matrices, seeds, st.integers(0, 1))
def test_statistics_equal_pytorchs(shape: tuple[int, int], seed: int, correction: int) -> None:
    x = draw((shape[0], shape[1] + 1), seed)
    assert_same(statistics.mean(ours(x), 0), x.mean(0))
    assert_same(statistics.variance(ours(x), 1, correction=correction), x.var(1, correction=correction))
    assert_same(statistics.standard_deviation(ours(x)), x.std())
    assert_same(statistics.covariance(ours(x), correction), x.cov(correction=correction).reshape(shape[0], shape[0]))
    assert_same(statistics.correlation(ours(x)), x.corrcoef().reshape(shape[0], shape[0]))


def test_the_variance_of_one_number_is_nan_and_of_far_numbers_exact() -> None:
    assert math.isnan(statistics.variance(Tensor([1.0])).item())
    assert statistics.variance(Tensor([1e9, 1e9 + 1, 1e9 + 2])).item() == pytest.approx(1)


@few
@given(st.integers(1, 9), seeds)
def test_a_histogram_counts_as_pytorchs(bins: int, seed: int) -> None:
    x = torch.cat([draw((50,), seed), torch.tensor([-1.0, 2.0], dtype=torch.float64)])
    assert_same(statistics.histogram(ours(x), bins, -1, 2), x.histc(bins, -1, 2).long())


def test_a_histogram_needs_bins_and_a_range() -> None:
    with pytest.raises(RuntimeError, match="bins must be > 0, but got 0"):
        statistics.histogram(zeros(2), 0, 0, 1)
    with pytest.raises(RuntimeError, match="low < high"):
        statistics.histogram(zeros(2), 3, 1, 1)
    with pytest.raises(RuntimeError, match="one row for each quantity"):
        statistics.covariance(zeros(2))


def test_truths_are_counted_where_they_are_added() -> None:
    x = torch.tensor([[True, True, False], [False, False, True]])
    assert_same(apl.reduce(add, ours(x)), x.sum(-1))
    assert_same(apl.scan(add, ours(x)), x.cumsum(-1))
    assert_same(apl.reduce(and_, ours(x)), x.all(-1))
    assert apl.reduce(add, ours(torch.ones(200, dtype=torch.bool))).item() == 200


def test_what_never_varies_has_no_correlation() -> None:
    x = torch.tensor([[1.0, 1, 1], [1, 2, 3]], dtype=torch.float64)
    assert_same(statistics.correlation(ours(x)), torch.corrcoef(x))


@pytest.mark.parametrize("p", [-math.inf, -2, 0.5, 1, 2, math.inf])
def test_the_norm_of_what_is_no_number_is_none(p: float) -> None:
    x = torch.tensor([1.0, math.nan, 3.0], dtype=torch.float64)
    assert_same(norms.vector_norm(ours(x), p), torch.linalg.vector_norm(x, p))


def test_the_norm_of_a_negative_power_does_not_overflow() -> None:
    assert norms.vector_norm(Tensor([1e-200, 1.0]), -2).item() == pytest.approx(1e-200)
    assert norms.vector_norm(Tensor([2.0, math.inf]), -2).item() == pytest.approx(2)
    assert norms.vector_norm(Tensor([math.inf, math.inf]), -1).item() == math.inf
