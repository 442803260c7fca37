"""16. Derivatives by infinitesimals: a dual number a + bε, where ε is not 0 but ε² is (Clifford 1873).

f(x + ε) = f(x) + f'(x) ε, exactly, so running any code on x + ε gives its derivative, with no limit and no rounding.
A finite difference gives an estimate of the same from two calls, and each checks the other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from miniai.scratch.ieee import Number


@dataclass(frozen=True)
class Dual:
    """real + eps ε."""

    real: float
    eps: float = 0.0

    def __add__(self, other: "Dual | Number") -> "Dual":
        other = dual(other)
        return Dual(self.real + other.real, self.eps + other.eps)

    def __neg__(self) -> "Dual":
        return Dual(-self.real, -self.eps)

    def __sub__(self, other: "Dual | Number") -> "Dual":
        return self + -dual(other)

    def __rsub__(self, other: Number) -> "Dual":
        return dual(other) - self

    def __mul__(self, other: "Dual | Number") -> "Dual":
        """(a + bε)(c + dε) = ac + (ad + bc) ε, for ε² is 0: the product rule."""
        other = dual(other)
        return Dual(self.real * other.real, self.real * other.eps + self.eps * other.real)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: "Dual | Number") -> "Dual":
        return self * dual(other) ** -1

    def __rtruediv__(self, other: Number) -> "Dual":
        return dual(other) / self

    def __pow__(self, power: Number) -> "Dual":
        if power == 0:
            return Dual(1.0)
        return self.through(self.real**power, power * self.real ** (power - 1))

    def __lt__(self, other: "Dual | Number") -> bool:
        return self.real < dual(other).real

    def __gt__(self, other: "Dual | Number") -> bool:
        return self.real > dual(other).real

    def through(self, value: float, slope: float) -> "Dual":
        """The chain rule: f(a + bε) = f(a) + f'(a) b ε."""
        return Dual(value, slope * self.eps)


def dual(x: Dual | Number) -> Dual:
    return x if isinstance(x, Dual) else Dual(float(x))


def exp(x: Dual) -> Dual:
    value = math.exp(x.real)
    return x.through(value, value)


def log(x: Dual) -> Dual:
    return x.through(math.log(x.real), 1 / x.real)


def sin(x: Dual) -> Dual:
    return x.through(math.sin(x.real), math.cos(x.real))


def cos(x: Dual) -> Dual:
    return x.through(math.cos(x.real), -math.sin(x.real))


def tanh(x: Dual) -> Dual:
    value = math.tanh(x.real)
    return x.through(value, 1 - value**2)


def derivative(function: Callable[[Dual], Dual | Number], x: Number) -> float:
    """f'(x), exact but for rounding: the part of f(x + ε) that stands with ε."""
    return dual(function(Dual(float(x), 1.0))).eps


def gradient(function: Callable[..., Dual | Number], *xs: Number) -> list[float]:
    """The partial derivative by each argument, one call for each: forward mode pays for every input."""
    return [dual(function(*(Dual(float(x), float(i == j)) for j, x in enumerate(xs)))).eps for i in range(len(xs))]


def finite_difference(function: Callable[[float], float], x: Number, step: float = 1e-5) -> float:
    """(f(x + h) - f(x - h)) / 2h. Its error falls with h², until rounding, which grows as 1/h, takes over."""
    return (function(x + step) - function(x - step)) / (2 * step)
