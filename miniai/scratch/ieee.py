"""4. Functions of one or two numbers that answer inf or nan where Python raises, as tensors must (IEEE 754)."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

Number = int | float


def divide(a: Number, b: Number) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


def power(a: Number, b: Number) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and b % 2 == 1 else math.inf
    except ValueError:  # a negative number to a fraction is nan; zero to a negative one is inf, of zero's sign if odd
        return math.nan if a else math.copysign(math.inf, a if b % 2 == 1 else 1)


def exp(x: Number) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def log(x: Number) -> float:
    return math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan)


def sqrt(x: Number) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def sigmoid(x: Number) -> float:
    """1 / (1 + e^-x), with the exponent always negative, so that nothing overflows."""
    small = math.exp(-abs(x))
    return (1.0 if x >= 0 else small) / (1 + small)


def relu(x: Number) -> Number:
    return 0 if x < 0 else x  # so that nan, which is less than nothing, stays


def silu(x: Number) -> float:
    """x * sigmoid(x) (Hendrycks and Gimpel 2016)."""
    return x * sigmoid(x)


def gelu(x: Number) -> float:
    """x * Φ(x), the normal distribution's cumulative function (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def quick_gelu(x: Number) -> float:
    """x * sigmoid(1.702 x), the approximation in CLIP."""
    return x * sigmoid(1.702 * x)


# The C functions that agree with ours, except that they raise where ours answer inf or nan.
FAST: dict[Any, Callable[..., float]] = {
    divide: operator.truediv,
    power: math.pow,
    exp: math.exp,
    log: math.log,
    sqrt: math.sqrt,
}


def mapped(function: Callable[..., Any], *columns: Iterable[Any]) -> list:
    """`function` of each element, or of each row of several columns; the columns must be fit to be read twice.

    Few tensors hold a number at which C's function raises, so it is tried first: it takes half the time.
    """
    if function in FAST:
        try:
            return list(map(FAST[function], *columns))
        except (ZeroDivisionError, OverflowError, ValueError):
            pass
    return list(map(function, *columns))
