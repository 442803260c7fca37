"""The kernels: whichever runs gives what its plain twin gives."""

from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import draw, few, seeds

from miniai.scratch import kernels

MATMULS = {"python": kernels.matmul_python, "chosen": kernels.matmul}  # one and the same where Numba is not installed


@pytest.mark.parametrize("name", MATMULS)
@few
@given(*[st.integers(0, 5)] * 3, seeds)
def test_a_product_of_flat_buffers_equals_pytorchs(name: str, n: int, k: int, m: int, seed: int) -> None:
    a, b = draw((n, k), seed), draw((k, m), seed + 1)
    product = MATMULS[name](array("d", a.flatten().tolist()), array("d", b.flatten().tolist()), n, k, m)
    assert product.typecode == "d"
    torch.testing.assert_close(torch.tensor(list(product), dtype=torch.float64), (a @ b).flatten())


@pytest.mark.parametrize("name", MATMULS)
def test_a_large_product_shared_among_threads_is_the_same(name: str) -> None:
    a, b = draw((101, 100)), draw((100, 103), 1)
    product = MATMULS[name](array("d", a.flatten().tolist()), array("d", b.flatten().tolist()), 101, 100, 103)
    assert kernels.LARGE < 101 * 100 * 103
    torch.testing.assert_close(torch.tensor(list(product), dtype=torch.float64), (a @ b).flatten())


@pytest.mark.parametrize("name", MATMULS)
def test_whole_numbers_stay_whole(name: str) -> None:
    product = MATMULS[name](array("q", [1, 2, 3, 4]), array("q", [5, 6, 7, 8]), 2, 2, 2)
    assert product == array("q", [19, 22, 43, 50])
    assert MATMULS[name](array("q", [2]), array("d", [0.5]), 1, 1, 1) == array("d", [1.0])


@pytest.mark.parametrize("name", MATMULS)
def test_a_kernel_leaves_its_arguments_alone(name: str) -> None:
    a, b = array("d", [1, 2]), array("d", [3, 4])
    MATMULS[name](a, b, 1, 2, 1)
    assert (a, b) == (array("d", [1, 2]), array("d", [3, 4]))


def test_the_loops_that_are_compiled_are_right_as_they_stand() -> None:
    a, b = draw((3, 4)), draw((4, 2), 1)
    product = array("d", bytes(8 * 3 * 2))
    for start, stop in ((0, 1), (1, 3)):
        kernels.fill_rows(
            array("d", a.flatten().tolist()), array("d", b.flatten().tolist()), product, start, stop, 4, 2
        )
    torch.testing.assert_close(torch.tensor(list(product), dtype=torch.float64), (a @ b).flatten())
