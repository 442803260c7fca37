"""35. Kernels of a trained network, whose weights stay: rows by a layer's weights, windows of a convolution, norms,
softmax, activations. As in kernels.py: flat buffers, plain Python, and a compiled twin where Numba is installed.
"""

import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from inspect import unwrap
from operator import mul
from typing import Any, NamedTuple

from miniai.scratch import ieee, kernels
from miniai.scratch.kernels import numba

# -- rows by a layer's weights ----------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A matrix (n_in, n_out) made ready to be multiplied by many rows from the left, and the bias (n_out) to add.

    `rows` are its rows, each in one long integer, counted in `unit`s; or, where Numba is installed, one flat buffer.
    """

    rows: list[int] | array
    unit: float
    bias: array


FIELD_BITS = 64  # of a long integer, for one number
INPUT_STEPS, WEIGHT_STEPS = 2**28, 2**34  # their product, 2**62, and a sign fit into a field


def pack_python(weight: array, bias: array) -> Layer:
    """`weight` is (n_out, n_in), as in PyTorch. Its numbers become whole ones, of a unit so small that those of one
    output come to at most 2**34 in all; those of one input lie side by side in one long integer."""
    n_out = len(bias)
    n_in = len(weight) // n_out
    unit = max(sum(map(abs, weight[i * n_in : (i + 1) * n_in])) for i in range(n_out)) / WEIGHT_STEPS or 1.0
    whole = array("q", [round(x / unit) for x in weight])
    signs = sign_bits(n_out)
    rows = [(int.from_bytes(whole[i::n_in].tobytes(), sys.byteorder) ^ signs) - signs for i in range(n_in)]
    return Layer(rows, unit, bias)


def sign_bits(n: int) -> int:
    """The topmost bit of each of `n` fields. Adding it to a field and then flipping it makes, of a number that borrows
    from the field above where it is negative, one in two's complement, which an array reads; and the other way about.
    """
    return int.from_bytes(array("Q", [1 << FIELD_BITS - 1]).tobytes() * n, sys.byteorder)


def whole_numbers(x: array) -> tuple[list[int], float]:
    """The numbers as whole ones within ±2**28, and their unit. float32 gives the greatest of them 24 bits.

    Raises ValueError where one is infinite or not a number.
    """
    unit = max(max(x), -min(x)) / INPUT_STEPS or 1.0
    try:
        return [round(number / unit) for number in x], unit
    except ValueError as error:
        raise ValueError("a number inside the network is infinite or not a number") from error


def packed_products(rows: Iterable[list[int]], unit: float, layer: Layer) -> array:
    """Each row times the layer's matrix, plus its bias: (n, n_in) to (n, n_out).

    Python's integers have no end, and a number times an integer in which 160 numbers lie side by side is all 160
    products, made by one loop in C over 30 bits at a time. Measured: 3.2 ns a product, where `sum(map(mul, ...))` over
    floats took 27. No field overflows into the next: see `Layer`.
    """
    n_out = len(layer.bias)
    signs, scale, found = sign_bits(n_out), unit * layer.unit, array("d")
    for row in rows:
        sums = sum(map(mul, row, layer.rows))
        fields = array("q", ((sums + signs) ^ signs).to_bytes(n_out * FIELD_BITS // 8, sys.byteorder))
        found.extend([number * scale + b for number, b in zip(fields, layer.bias, strict=True)])
    return found


def linear_python(x: array, layer: Layer) -> array:
    """(n, n_in) to (n, n_out)."""
    whole, unit = whole_numbers(x)
    n_in = len(layer.rows)
    return packed_products((whole[i : i + n_in] for i in range(0, len(whole), n_in)), unit, layer)


def conv_python(x: array, height: int, width: int, kernel: int, stride: int, layer: Layer) -> array:
    """(height, width, c) to (out_height, out_width, n_out), by im2col: see `windows`. `n_in` is (kernel, kernel, c)."""
    whole, unit = whole_numbers(x)
    return packed_products(windows(whole, height, width, kernel, stride), unit, layer)


def windows(x: Any, height: int, width: int, kernel: int, stride: int) -> Iterator[Any]:
    """The kernel × kernel × c numbers that a convolution sees at each place, zeros around the edge: a list or array
    like `x`, (height, width, c). Channels lie side by side, so a window is `kernel` slices."""
    c, padding = len(x) // (height * width), kernel // 2
    line = (width + 2 * padding) * c
    zero = x[:1]
    zero[0] = 0
    padded = zero * (padding * line)
    for y in range(height):
        padded += zero * (padding * c) + x[y * width * c : (y + 1) * width * c] + zero * (padding * c)
    padded += zero * (padding * line)
    for y in range(0, height + 2 * padding - kernel + 1, stride):
        for left in range(0, width + 2 * padding - kernel + 1, stride):
            start = y * line + left * c
            window = padded[start : start + kernel * c]
            for i in range(1, kernel):
                window += padded[start + i * line : start + i * line + kernel * c]
            yield window


# -- loops that are the same in both: compiled where Numba is installed ------------------------------------------------


def fill_normalised(x: array, y: array, n: int, c: int, n_groups: int, eps: float, weight: array, bias: array) -> None:
    """`x` is any number of (n, c). Each group of columns of each: less its mean, over its deviation; then each column
    times its weight plus its bias."""
    size = c // n_groups
    for first in range(0, len(x), n * c):
        for group in range(n_groups):
            start, total, squares = first + group * size, 0.0, 0.0
            for row in range(start, start + n * c, c):
                for i in range(row, row + size):
                    total += x[i]
            mean = total / (n * size)
            for row in range(start, start + n * c, c):
                for i in range(row, row + size):
                    squares += (x[i] - mean) * (x[i] - mean)
            scale = 1 / math.sqrt(squares / (n * size) + eps)
            for row in range(start, start + n * c, c):
                for i in range(size):
                    column = group * size + i
                    y[row + i] = (x[row + i] - mean) * scale * weight[column] + bias[column]


def fill_softmax(x: array, y: array, m: int) -> None:
    """Each row of `m` numbers: e^x over its sum, the greatest taken out first."""
    for start in range(0, len(x), m):
        greatest, total = x[start], 0.0
        for i in range(start, start + m):
            greatest = max(greatest, x[i])
        for i in range(start, start + m):
            y[i] = math.exp(x[i] - greatest)
            total += y[i]
        for i in range(start, start + m):
            y[i] /= total


def each_python(function: Callable[[float], float], x: array) -> array:
    """`function`, one of `ieee`'s, of each number."""
    return array("d", map(function, x))


pack, linear, conv, each = pack_python, linear_python, conv_python, each_python
fill_normalised_chosen, fill_softmax_chosen = fill_normalised, fill_softmax

if numba is not None:
    from numba.extending import overload

    fill_normalised_chosen = kernels.compiled(unwrap(fill_normalised))
    fill_softmax_chosen = kernels.compiled(unwrap(fill_softmax))
    overload(ieee.sigmoid, strict=False)(lambda x: unwrap(ieee.sigmoid))  # compiled activations call it

    def pack_numba(weight: array, bias: array) -> Layer:
        """Rows one after another, as `fill_rows` wants them."""
        n_in, rows = len(weight) // len(bias), array("d")
        for i in range(n_in):
            rows.extend(weight[i::n_in])
        return Layer(rows, 1.0, bias)

    def linear_numba(x: array, layer: Layer) -> array:
        n_out = len(layer.bias)
        n_in = len(layer.rows) // n_out
        n = len(x) // n_in
        product = layer.bias * n
        kernels.fill_rows_compiled(x, layer.rows, product, 0, n, n_in, n_out)
        return product

    def conv_numba(x: array, height: int, width: int, kernel: int, stride: int, layer: Layer) -> array:
        rows = array("d")
        for window in windows(x, height, width, kernel, stride):
            rows.extend(window)
        return linear_numba(rows, layer)

    @cache
    def loop_over(function: Callable[[float], float]) -> Callable[[array, array], None]:
        inner = numba.njit(unwrap(function))

        def loop(x: array, y: array) -> None:
            for i in range(len(x)):
                y[i] = inner(x[i])

        return numba.njit(nogil=True)(unwrap(loop))

    def each_numba(function: Callable[[float], float], x: array) -> array:
        y = x[:]
        loop_over(function)(x, y)
        return y

    pack, linear, conv, each = pack_numba, linear_numba, conv_numba, each_numba


def normalise(x: array, n: int, c: int, n_groups: int, eps: float, weight: array, bias: array) -> array:
    """Group norm over (n, c): `fill_normalised`. Layer norm is the same for each row alone: n and n_groups are 1."""
    y = x[:]
    fill_normalised_chosen(x, y, n, c, n_groups, eps, weight, bias)
    return y


def softmax(x: array, m: int) -> array:
    """Over rows of `m` numbers: `fill_softmax`."""
    y = x[:]
    fill_softmax_chosen(x, y, m)
    return y
