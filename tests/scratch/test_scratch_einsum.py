"""Einstein summation and the stages of a product of matrices, against PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import assert_same, draw, error_of, few, ours, seeds

import miniai
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

ROOT = Path(miniai.__file__).parents[1]
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


signs = st.lists(st.sampled_from(["i", "j", "A", "...", ",", "->", " ", ".", "1"]), max_size=7).map("".join)
ranks = st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple)


@settings(few, max_examples=150)
@given(signs, st.lists(ranks, min_size=1, max_size=2))
def test_any_string_means_what_it_means_to_pytorch_or_nothing_to_either(
    equation: str, shapes: list[tuple[int, ...]]
) -> None:
    tensors = [draw(shape, i) for i, shape in enumerate(shapes)]
    try:
        wanted = torch.einsum(equation, *tensors)
    except RuntimeError:
        with pytest.raises(RuntimeError, match=r"einsum\(\): "):
            einsum(equation, *map(ours, tensors))
    else:
        assert_same(einsum(equation, *map(ours, tensors)), wanted.clone())


def test_signs_that_are_no_letters_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"invalid subscript '1' in operand 0, subscripts must be in \[a-zA-Z\]"):
        einsum("i1->i", zeros(2, 3))


STAGES = [matmul_loops, matmul_rows, matmul_broadcast, matmul_einsum, matmul_kernel, matmul_grid]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@settings(few, max_examples=8)
@given(n=st.integers(0, 4), k=st.integers(0, 4), m=st.integers(0, 4), seed=seeds)
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


def test_the_kernel_for_a_gpu_gives_the_same_product_in_numbas_simulator() -> None:
    """In a process of its own: Numba asks for the simulator when it is first imported."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from miniai.scratch.matmul import matmul_cuda, matmul_loops
from miniai.scratch.rng import Rng
a, b = Rng(0).normal(17, 3), Rng(1).normal(3, 5)
assert matmul_cuda(a, b).tolist() == matmul_loops(a, b).tolist()
"""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


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
