"""4. Kernels: the few loops in which nearly all the time is spent, over flat buffers and with no classes.

Each stands here in plain Python. Where Numba is installed, its twin, compiled, takes its place under the same name, and
nothing else knows which one runs. A row of a product needs nothing of the other rows, so rows can be shared out among
processes, or threads.
"""

from array import array
from operator import mul

try:
    import numba
except ImportError:  # optional: everything works without, slower
    numba = None


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


matmul = matmul_python

if numba is not None:

    @numba.njit(parallel=True, cache=True)
    def fill_product(a, b, product, n, k, m):  # type: ignore[no-untyped-def]  # Numba finds the types, at the first call
        for i in numba.prange(n):  # rows in threads
            for inner in range(k):
                scale = a[i * k + inner]
                for j in range(m):  # the innermost loop runs along rows of both: side by side in memory, so in vectors
                    product[i * m + j] += scale * b[inner * m + j]

    def matmul_numba(a: array, b: array, n: int, k: int, m: int) -> array:
        """The same three loops as in lists.py, in another order, compiled."""
        product = array(product_code(a, b), [0]) * (n * m)
        if product and k:
            fill_product(a, b, product, n, k, m)
        return product

    matmul = matmul_numba
