"""PyTorch as the oracle of the floor below it: conversions, comparisons, and random shapes."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st

from miniai.scratch.tensor import Tensor

TORCH_DTYPES = {"float64": torch.float64, "int64": torch.int64, "bool": torch.bool}
few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
matrices = st.tuples(st.integers(1, 5), st.integers(1, 5))


def draw(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Standard normal float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours(x: torch.Tensor) -> Tensor:
    return Tensor(x.tolist(), str(x.dtype).removeprefix("torch.")).reshape(*x.shape)


def assert_same(found: Tensor, wanted: torch.Tensor, tolerance: float = 1e-10) -> None:
    """Equal shape, type and values (nan equals nan)."""
    assert found.shape == tuple(wanted.shape)
    assert TORCH_DTYPES[found.dtype] == wanted.dtype
    theirs = torch.tensor(list(found.flat()), dtype=wanted.dtype).reshape(wanted.shape)
    torch.testing.assert_close(theirs, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def error_of(call: Callable[[], Any]) -> tuple[type[Exception], str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error).split("\n")[0].strip()
    raise AssertionError("no error was raised")
