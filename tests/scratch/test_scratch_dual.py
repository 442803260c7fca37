"""Derivatives by dual numbers against PyTorch's, and against finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import few

from miniai.scratch import dual
from miniai.scratch.dual import Dual, derivative, finite_difference, gradient

FUNCTIONS = {
    "polynomial": (lambda x: 3 * x**3 - 2 * x + 1, lambda x: 3 * x**3 - 2 * x + 1),
    "quotient": (lambda x: (1 - x) / (x * x + 2), lambda x: (1 - x) / (x * x + 2)),
    "reciprocal": (lambda x: 2 / (x * x + 1), lambda x: 2 / (x * x + 1)),
    "chain": (lambda x: dual.sin(dual.exp(x / 2)), lambda x: (x / 2).exp().sin()),
    "logarithm": (lambda x: dual.log(x * x + 1), lambda x: (x * x + 1).log()),
    "saturation": (lambda x: dual.tanh(x) * dual.cos(x), lambda x: x.tanh() * x.cos()),
    "branch": (lambda x: x * x if x > 0 else -x, lambda x: x * x if x > 0 else -x),
    "constant": (lambda x: x**0, lambda x: x**0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(x=st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3))
def test_a_derivative_equals_pytorchs(name: str, x: float) -> None:
    ours, theirs = FUNCTIONS[name]
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    theirs(t).backward()
    assert derivative(ours, x) == pytest.approx(t.grad.item(), abs=1e-12, rel=1e-12)
    assert ours(Dual(x)).real == pytest.approx(theirs(t).item(), abs=1e-12)


def test_a_gradient_has_an_entry_for_each_argument() -> None:
    assert gradient(lambda x, y: x * y + y**2, 2, 3) == [3, 8]


def test_a_function_that_ignores_its_argument_has_slope_0() -> None:
    assert derivative(lambda x: 5, 1) == 0


def test_epsilon_squared_is_zero_and_epsilon_is_not() -> None:
    epsilon = Dual(0.0, 1.0)
    assert epsilon * epsilon == Dual(0.0, 0.0) != epsilon


@few
@given(st.floats(-2, 2))
def test_a_finite_difference_comes_near(x: float) -> None:
    assert finite_difference(math.exp, x) == pytest.approx(derivative(dual.exp, x), rel=1e-8)


def test_the_error_of_a_finite_difference_falls_with_the_square_of_the_step() -> None:
    errors = [abs(finite_difference(math.sin, 1.0, step) - math.cos(1.0)) for step in (1e-1, 1e-2)]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.01)
    assert abs(finite_difference(math.sin, 1.0, 1e-13) - math.cos(1.0)) > errors[1]  # rounding has taken over
