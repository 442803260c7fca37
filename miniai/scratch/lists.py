"""1. Numbers in lists: a flat buffer, such as a file gives, cut into rows; a matrix as a list of its rows.

A generator hands out one row at a time, so a buffer that never ends can be read too.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
Rows = list[list[float]]


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last one shorter if they do not come out even. A generator: work is done when asked.

    Raises ValueError for a size below 1.
    """
    check_size(size)
    chunk = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def chunks_islice(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """The same, by taking slices of one iterator until a slice comes out empty: `iter` with a sentinel."""
    check_size(size)
    iterator = iter(values)
    return iter(lambda: list(islice(iterator, size)), [])


def check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"chunk size must be at least 1, got {size}")


def matrix_shape(rows: Rows) -> tuple[int, int]:
    """(rows, columns) of a list of lists. Raises ValueError where rows differ in length."""
    n_columns = len(rows[0]) if rows else 0
    for row in rows:
        if len(row) != n_columns:
            raise ValueError(f"expected sequence of length {n_columns} at dim 1 (got {len(row)})")
    return len(rows), n_columns


def transpose(rows: Rows) -> Rows:
    """Columns become rows."""
    matrix_shape(rows)
    return [list(column) for column in zip(*rows, strict=True)]


def matmul_lists(a: Rows, b: Rows) -> Rows:
    """(n, k) times (k, m) is (n, m): entry (i, j) is the sum over l of a[i][l] * b[l][j]. Three plain loops."""
    n, k = matrix_shape(a)
    k_b, m = matrix_shape(b)
    if k != k_b:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({n}x{k} and {k_b}x{m})")
    product = [[0.0] * m for _ in range(n)]
    for i in range(n):
        for j in range(m):
            for inner in range(k):
                product[i][j] += a[i][inner] * b[inner][j]
    return product
