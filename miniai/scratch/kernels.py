"""4. Kernels: the few loops in which nearly all the time is spent, over flat buffers and with no classes.

Each stands here in plain Python. Where Numba is installed, its twin, compiled, takes its place under the same name, and
nothing else knows which one runs. A row of a product needs nothing of the other rows, so rows can be shared out among
processes, or threads.
"""

import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from inspect import unwrap
from operator import mul

try:
    import numba
except ImportError:  # optional: everything works without, slower
    numba = None

LARGE = 1_000_000  # multiplications: below this, starting threads takes longer than the work they share


def matmul_python(a: array, b: array, n: int, k: int, m: int) -> array:
    """Row-major (n, k) times (k, m) is (n, m).

    `sum(map(mul, row, column))` runs in C: measured, 38 ns a product, where three plain loops took 89. Lists are looped
    over, not arrays (50 ns): a list holds Python floats ready made, an array makes a new one at each reading.
    """
    columns = [b[j::m].tolist() for j in range(m)]
    product = array(product_code(a, b))
    for start in range(0, n * k, k) if k else [0] * n:
        row = a[start : start + k].tolist()
        product.extend([sum(map(mul, row, column)) for column in columns])
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
    fill_rows_compiled = numba.njit(nogil=True, cache=True)(unwrap(fill_rows))  # without the tests' checks of types

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
