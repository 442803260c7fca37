"""19. Functions of variables that have no weights: activations with their slopes, softmax."""

import math

from miniai.scratch import ieee
from miniai.scratch.autograd import Variable
from miniai.scratch.ieee import Number


def relu(x: Variable) -> Variable:
    """max(x, 0)."""
    return x.map(ieee.relu, lambda x, y: float(x > 0))


def general_relu(x: Variable, leak: Number = 0.0, sub: Number = 0.0, cap: Number = math.inf) -> Variable:
    """`leak` times x below 0, less `sub`, so that its mean can be near 0, and at most `cap`."""
    return x.map(
        lambda x: min((x if x > 0 else leak * x) - sub, cap),
        lambda x, y: 0.0 if y >= cap else 1.0 if x > 0 else float(leak),
    )


def sigmoid(x: Variable) -> Variable:
    """1 / (1 + e^-x), whose slope is σ (1 - σ)."""
    return x.map(ieee.sigmoid, lambda x, y: y * (1 - y))


def tanh(x: Variable) -> Variable:
    """The sigmoid stretched to (-1, 1); its slope is 1 - tanh²."""
    return x.map(math.tanh, lambda x, y: 1 - y * y)


def exp(x: Variable) -> Variable:
    """e^x, its own slope."""
    return x.map(ieee.exp, lambda x, y: y)


def silu(x: Variable) -> Variable:
    """x σ(x), whose slope is σ + x σ (1 - σ)."""
    return x.map(ieee.silu, silu_slope)


def silu_slope(x: Number, y: Number) -> Number:
    s = ieee.sigmoid(x)
    return s + y * (1 - s)


def gelu(x: Variable) -> Variable:
    """x Φ(x), whose slope is Φ + x φ, with φ the normal density."""
    return x.map(ieee.gelu, gelu_slope)


def gelu_slope(x: Number, y: Number) -> Number:
    return 0.5 * (1 + math.erf(x / math.sqrt(2))) + x * math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def quick_gelu(x: Variable) -> Variable:
    """x σ(1.702 x)."""
    return x.map(ieee.quick_gelu, quick_gelu_slope)


def quick_gelu_slope(x: Number, y: Number) -> Number:
    s = ieee.sigmoid(1.702 * x)
    return s + 1.702 * y * (1 - s)


def greatest(x: Variable, dim: int) -> Variable:
    """The greatest along `dim`, held fast: subtracting it changes no softmax, so no gradient need pass it."""
    found = x.data.reduce(max, dim, True)
    return Variable(found.map(lambda value: value if math.isfinite(value) else 0.0))


def softmax(x: Variable, dim: int = -1) -> Variable:
    """e^x over its sum. The greatest x is taken out first, so that no exponential overflows."""
    exponentials = exp(x - greatest(x, dim))
    return exponentials / exponentials.sum(dim, True)


def log_softmax(x: Variable, dim: int = -1) -> Variable:
    """log of softmax, as x - log Σ e^x: the quotient and its small numbers are never formed."""
    shifted = x - greatest(x, dim)
    return shifted - exp(shifted).sum(dim, True).log()
