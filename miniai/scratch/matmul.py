"""10. One product of matrices in stages, each with less Python in its inner loop than the one before.

All give the same numbers as `a @ b`; benchmarks/matmul.py times them side by side.
"""

from array import array
from multiprocessing import get_context
from typing import NamedTuple

from miniai.scratch import kernels
from miniai.scratch.creation import stack, zeros
from miniai.scratch.einsum import einsum
from miniai.scratch.tensor import Tensor


def sizes(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    """n, k, m of (n, k) times (k, m)."""
    if a.ndim != 2 or b.ndim != 2:
        raise RuntimeError(f"expected two matrices, got {a.ndim}D and {b.ndim}D")
    if a.shape[1] != b.shape[0]:
        shapes = " and ".join("x".join(map(str, x.shape)) for x in (a, b))
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({shapes})")
    return a.shape[0], a.shape[1], b.shape[1]


def matmul_loops(a: Tensor, b: Tensor) -> Tensor:
    """Three loops, and every element looked up by its place in the flat buffer."""
    n, k, m = sizes(a, b)
    x, y, product = a.flat(), b.flat(), zeros(n, m)
    for i in range(n):
        for j in range(m):
            for inner in range(k):
                product.storage[i * m + j] += x[i * k + inner] * y[inner * m + j]
    return product


def matmul_rows(a: Tensor, b: Tensor) -> Tensor:
    """Two loops: each entry is a row of `a` times a column of `b`, summed."""
    n, _, m = sizes(a, b)
    product = zeros(n, m)
    for i in range(n):
        for j in range(m):
            product[i, j] = (a[i] * b[:, j]).sum().item()
    return product


def matmul_broadcast(a: Tensor, b: Tensor) -> Tensor:
    """One loop: a row of `a`, stood up as a column and stretched over all columns of `b`, gives a row of the result."""
    sizes(a, b)
    return stack([(row[:, None] * b).sum(0) for row in a])


def matmul_einsum(a: Tensor, b: Tensor) -> Tensor:
    """No loop of ours."""
    sizes(a, b)
    return einsum("ik,kj->ij", a, b)


def matmul_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The kernel that `@` uses, over flat buffers."""
    n, k, m = sizes(a, b)
    return Tensor.of(kernels.matmul(a.flat(), b.flat(), n, k, m), (n, m))


class Share(NamedTuple):
    """Some rows of `a` and all of `b`: what a worker process needs."""

    a: array
    b: array
    n: int
    k: int
    m: int


def multiply(share: Share) -> array:
    return kernels.matmul(*share)


def matmul_pool(a: Tensor, b: Tensor, n_workers: int) -> Tensor:
    """Rows of `a` shared out among processes; worth its start for large matrices only."""
    n, k, m = sizes(a, b)
    if n_workers < 1:
        raise ValueError(f"n_workers must be at least 1, got {n_workers}")
    x, y, step = a.flat(), b.flat(), -(-n // n_workers)
    shares = [Share(x[i * k : (i + step) * k], y, min(step, n - i), k, m) for i in range(0, n, step)]
    product = array("d")
    with get_context("spawn").Pool(n_workers) as pool:
        for rows in pool.map(multiply, shares):
            product.extend(rows)
    return Tensor.of(product, (n, m))
