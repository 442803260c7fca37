"""5. Kernels: loops over flat buffers, with no classes, in which nearly all the time is spent. Here the product of two
matrices, on which everything else stands; layer_kernels.py has those of a trained network.

Each stands here in plain Python. Where Numba is installed, its compiled twin takes its place under the same name, and
nothing outside these two files knows which one runs. A row of a product needs nothing of the other rows, so rows can
be shared out among threads, or processes.
"""

import math
import os
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import unwrap
from operator import mul
from typing import Any

try:
    import numba
except ImportError:  # optional: everything works without, slower
    numba = None

LARGE = 1_000_000  # multiplications: below this, starting threads takes longer than the work they share


def dot_python(a: list, b: list) -> Any:
    return sum(map(mul, a, b))


# New in Python 3.12. Measured there: 4 times as fast as `sum(map(mul, ...))`.
dot: Callable[[Any, Any], Any] = getattr(math, "sumprod", dot_python)


def matmul_python(a: array, b: array, n: int, k: int, m: int) -> array:
    """Row-major (n, k) times (k, m) is (n, m).

    `sum(map(mul, row, column))` runs in C: measured, 22 ns a product, where three plain loops took 50. Lists are looped
    over, not arrays (slower by a third): a list holds Python floats ready made, an array makes one at each reading.
    """
    columns = [b[j::m].tolist() for j in range(m)]
    product = array(product_code(a, b))
    for start in range(0, n * k, k) if k else [0] * n:
        row = a[start : start + k].tolist()
        product.extend([dot(row, column) for column in columns])
    return product


def product_code(a: array, b: array) -> str:
    """The type of number that a product of these holds."""
    return "d" if "d" in (a.typecode, b.typecode) else "q"


def fill_rows(a: array, b: array, product: array, start: int, stop: int, k: int, m: int) -> None:
    """Adds rows `start` to `stop` of the product into `product`. Written for Numba: three loops, in the order in which
    the innermost runs along rows of both, side by side in memory."""
    for i in range(start, stop):
        for inner in range(k):
            scale = a[i * k + inner]
            for j in range(m):
                product[i * m + j] += scale * b[inner * m + j]


matmul = matmul_python

if numba is not None:
    compiled = numba.njit(nogil=True, cache=True)
    fill_rows_compiled = compiled(unwrap(fill_rows))  # `unwrap`: without the tests' checks of types

    def matmul_numba(a: array, b: array, n: int, k: int, m: int) -> array:
        """The same, compiled: measured, 1 ns a product. Large products share their rows among threads, which run at
        once, as compiled code needs no lock on Python's objects."""
        product = array(product_code(a, b), [0]) * (n * m)
        n_threads = min(os.cpu_count() or 1, n) if n * k * m >= LARGE else 1
        if n_threads == 1:
            fill_rows_compiled(a, b, product, 0, n, k, m)
            return product
        bounds = [i * n // n_threads for i in range(n_threads + 1)]
        with ThreadPoolExecutor(n_threads) as pool:
            work = [
                pool.submit(fill_rows_compiled, a, b, product, start, stop, k, m)
                for start, stop in zip(bounds, bounds[1:], strict=False)
            ]
        for share in work:
            share.result()  # raises what the thread raised
        return product

    matmul = matmul_numba
