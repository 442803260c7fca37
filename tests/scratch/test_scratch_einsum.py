"""Einstein summation and the stages of a product of matrices, against PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import assert_same, draw, error_of, few, ours, seeds

from miniai.scratch.creation import zeros
from miniai.scratch.einsum import einsum
from miniai.scratch.matmul import (
    cuda,
    matmul_broadcast,
    matmul_cuda,
    matmul_einsum,
    matmul_grid,
    matmul_kernel,
    matmul_loops,
    matmul_pool,
    matmul_rows,
)

EQUATIONS = [
    "ij,jk->ik",
    "ij,jk",
    "ij,kj->ki",
    "bij,bjk->bik",
    "...ij,...jk->...ik",
    "bhnd,bhmd->bhnm",
    "ij->ji",
    "ji",
    "ij->",
    "ij->j",
    "i,j->ij",
    "i,i->",
    "ii->i",
    "ii",
    "i...i->...i",
    "ij,ij->ij",
    " i j , j -> i ",
    "a,ab,b->",
    "...i->i...",
    "b...,...->b",
    "Ab,Bb->AB",
]


@pytest.mark.parametrize("equation", EQUATIONS)
@settings(few, max_examples=5)
@given(sizes=st.lists(st.integers(1, 3), min_size=8, max_size=8), seed=seeds)
def test_an_equation_means_what_it_means_to_pytorch(equation: str, sizes: list[int], seed: int) -> None:
    letters = sorted(set(equation) - set(" .,->"))
    size = dict(zip(letters, sizes, strict=False))
    left = equation.partition("->")[0].replace(" ", "").replace("...", ".")
    shapes = [[n for c in part for n in ([2, 3] if c == "." else [size[c]])] for part in left.split(",")]
    tensors = [draw(tuple(shape), seed + i) for i, shape in enumerate(shapes)]
    assert_same(einsum(equation, *map(ours, tensors)), torch.einsum(equation, *tensors).clone())


def test_a_size_of_1_stretches() -> None:
    a, b = draw((2, 1)), draw((3, 4))
    assert_same(einsum("ij,jk->ik", ours(a), ours(b)), torch.einsum("ij,jk->ik", a, b))


MISTAKES = [
    ("ij,jk->ik", [(2, 3)]),
    ("ij->ji", [(2, 3), (3, 2)]),
    ("ijk->i", [(2, 3)]),
    ("i->i", [(2, 3)]),
    ("ij,jk->ik", [(2, 3), (4, 2)]),
    ("ij->ijk", [(2, 3)]),
    ("ij->ii", [(2, 3)]),
    ("i.j->i", [(2, 3)]),
]


@pytest.mark.parametrize(("equation", "shapes"), MISTAKES)
def test_an_equation_without_sense_brings_pytorchs_error(equation: str, shapes: list[tuple[int, ...]]) -> None:
    kind, words = error_of(lambda: einsum(equation, *(zeros(*shape) for shape in shapes)))
    their_kind, their_words = error_of(lambda: torch.einsum(equation, *(torch.zeros(shape) for shape in shapes)))
    assert kind is their_kind
    assert words in their_words


def test_signs_that_are_no_letters_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"invalid subscript '1' in operand 0, subscripts must be in \[a-zA-Z\]"):
        einsum("i1->i", zeros(2, 3))


STAGES = [matmul_loops, matmul_rows, matmul_broadcast, matmul_einsum, matmul_kernel, matmul_grid]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@settings(few, max_examples=8)
@given(n=st.integers(1, 4), k=st.integers(1, 4), m=st.integers(1, 4), seed=seeds)
def test_every_stage_gives_pytorchs_product(stage, n: int, k: int, m: int, seed: int) -> None:
    a, b = draw((n, k), seed), draw((m, k), seed + 1).T
    assert_same(stage(ours(a), ours(b)), a @ b)


def test_a_grid_of_blocks_covers_a_product_to_its_edges() -> None:
    a, b = draw((17, 2)), draw((2, 18), 1)
    assert_same(matmul_grid(ours(a), ours(b)), a @ b)


def test_the_kernel_for_a_gpu_gives_the_same_product_or_says_what_it_needs() -> None:
    a, b = draw((17, 2)), draw((2, 5), 1)
    if cuda is not None and cuda.is_available():
        assert_same(matmul_cuda(ours(a), ours(b)), a @ b)
    else:
        with pytest.raises(RuntimeError, match="this needs Numba, and a GPU or NUMBA_ENABLE_CUDASIM=1"):
            matmul_cuda(ours(a), ours(b))


def test_processes_share_the_rows_and_give_the_same_product() -> None:
    a, b = draw((5, 3)), draw((3, 4), 1)
    assert_same(matmul_pool(ours(a), ours(b), 2), a @ b)
    with pytest.raises(ValueError, match="n_workers must be at least 1, got 0"):
        matmul_pool(ours(a), ours(b), 0)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_stage_refuses_what_does_not_fit(stage) -> None:
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(2x3 and 2x3\)"):
        stage(zeros(2, 3), zeros(2, 3))
    with pytest.raises(RuntimeError, match="expected two matrices, got 1D and 2D"):
        stage(zeros(2), zeros(2, 3))
