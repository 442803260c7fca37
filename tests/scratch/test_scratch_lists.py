"""Lists of lists, and the matrix that Python's syntax understands."""

from itertools import count, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import draw, few, matrices, seeds

from miniai.scratch.lists import chunks, chunks_islice, matmul_lists, matrix_shape, transpose
from miniai.scratch.matrix import Matrix


@few
@given(st.lists(st.integers(), max_size=20), st.integers(1, 7))
def test_both_ways_to_cut_a_buffer_agree_and_lose_nothing(values: list[int], size: int) -> None:
    rows = list(chunks(values, size))
    assert rows == list(chunks_islice(values, size))
    assert sum(rows, []) == values
    assert all(len(row) == size for row in rows[:-1])


@pytest.mark.parametrize("cut", [chunks, chunks_islice])
def test_an_endless_buffer_is_cut_as_far_as_it_is_asked_for(cut) -> None:
    assert list(islice(cut(count(), 2), 3)) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("cut", [chunks, chunks_islice])
def test_a_chunk_holds_at_least_one_value(cut) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(cut([1], 0))


@few
@given(matrices, st.integers(1, 5), seeds)
def test_three_loops_multiply_as_pytorch_does(shape: tuple[int, int], m: int, seed: int) -> None:
    a, b = draw(shape, seed), draw((shape[1], m), seed + 1)
    product = torch.tensor(matmul_lists(a.tolist(), b.tolist()), dtype=torch.float64)
    torch.testing.assert_close(product, a @ b)
    assert transpose(a.tolist()) == a.T.tolist()


def test_ragged_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected sequence of length 2 at dim 1 \(got 1\)"):
        matrix_shape([[1.0, 2.0], [3.0]])


def test_rows_and_columns_that_do_not_meet_are_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(1x2 and 1x2\)"):
        matmul_lists([[1.0, 2.0]], [[1.0, 2.0]])


def test_a_matrix_answers_to_pythons_own_signs() -> None:
    a = Matrix([[1, 2], [3, 4]])
    a[0, 1] = 5
    assert a[0, 1] == 5
    assert len(a) == 2
    assert [row[0] for row in a] == [1, 3]
    assert a @ Matrix([[1, 0], [0, 1]]) == a
    assert repr(a) == "Matrix([[1.0, 5.0], [3.0, 4.0]])"
    assert a.transpose()[1, 0] == 5


def test_a_matrix_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected sequence of length 2 at dim 1 \(got 1\)"):
        Matrix([[1, 2], [3]])
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(1x2 and 1x2\)"):
        Matrix([[1, 2]]) @ Matrix([[1, 2]])


def test_a_matrix_keeps_its_own_numbers() -> None:
    rows = [[1.0]]
    Matrix(rows)[0, 0] = 2
    assert rows == [[1.0]]
