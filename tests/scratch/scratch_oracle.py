"""PyTorch as the oracle of the floor below it: conversions, comparisons, and random shapes."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from miniai.scratch import modules
from miniai.scratch.autograd import Variable
from miniai.scratch.tensor import Tensor

TORCH_DTYPES = {"float64": torch.float64, "int64": torch.int64, "bool": torch.bool}
TOLERANCE = 1e-9  # of values and gradients; sums in another order differ by rounding alone
few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
sizes = st.integers(1, 4)
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


def assert_same_gradients(
    ours_of: Callable[..., Variable], theirs_of: Callable[..., torch.Tensor], *tensors: torch.Tensor
) -> None:
    """Values, and gradients by every argument, after weighing the result by unequal numbers."""
    mine = [Variable(ours(x), True) for x in tensors]
    theirs = [x.clone().requires_grad_() for x in tensors]
    result, wanted = ours_of(*mine), theirs_of(*theirs)
    assert_same(result.data, wanted.detach().clone(), TOLERANCE)
    weight = draw(tuple(wanted.shape), 99)
    result.backward(ours(weight))
    wanted.backward(weight)
    for x, t in zip(mine, theirs, strict=True):
        assert_same(x.grad, t.grad, TOLERANCE)


def assert_module_same(mine: modules.Module, theirs: nn.Module, *inputs: torch.Tensor) -> None:
    """The same weights, loaded by name; then equal results, gradients of inputs and of every weight."""
    theirs = theirs.double()
    state = {name: draw(tuple(p.shape), i) for i, (name, p) in enumerate(theirs.named_parameters())}
    theirs.load_state_dict(state, strict=False)
    mine.load_state_dict({**mine.state_dict(), **{name: ours(value) for name, value in state.items()}})
    assert set(dict(mine.named_parameters())) == set(state)
    assert_same_gradients(mine, theirs, *inputs)
    grads = {name: p.grad for name, p in mine.named_parameters()}
    for name, p in theirs.named_parameters():
        assert_same(grads[name], p.grad, TOLERANCE)


def error_of(call: Callable[[], Any]) -> tuple[type[Exception], str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error).split("\n")[0].strip()
    raise AssertionError("no error was raised")
