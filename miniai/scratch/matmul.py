"""10. One product of matrices in stages, each with less Python in its inner loop than the one before.

All give the same numbers as `a @ b`; benchmarks/matmul.py times them side by side.
"""

from array import array
from functools import cache
from inspect import unwrap
from multiprocessing import get_context
from typing import Any, NamedTuple

from miniai.scratch import kernels
from miniai.scratch.creation import zeros
from miniai.scratch.einsum import einsum
from miniai.scratch.tensor import Tensor

try:
    from numba import cuda
except ImportError:  # optional: the grid below runs without, one thread after another
    cuda = None

BLOCK = 16  # threads of a block of the grid, each way


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
    n, _, m = sizes(a, b)
    product = zeros(n, m)
    for i in range(n):
        product[i] = (a[i][:, None] * b).sum(0)
    return product


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


def fill_cell(a: array, b: array, product: array, i: int, j: int, n: int, k: int, m: int) -> None:
    """What one thread of a GPU does: one entry of the product. Blocks are square and the product need not be, so
    threads beyond its edge have nothing to do."""
    if i < n and j < m:
        total = 0.0
        for inner in range(k):
            total += a[i * k + inner] * b[inner * m + j]
        product[i * m + j] = total


def matmul_grid(a: Tensor, b: Tensor) -> Tensor:
    """As a GPU does it: a grid of blocks of threads, one for each entry; but one thread after another."""
    n, k, m = sizes(a, b)
    x, y, product = a.flat(), b.flat(), zeros(n, m)
    for block_i in range(0, n, BLOCK):
        for block_j in range(0, m, BLOCK):
            for i in range(block_i, block_i + BLOCK):
                for j in range(block_j, block_j + BLOCK):
                    fill_cell(x, y, product.storage, i, j, n, k, m)
    return product


@cache
def cuda_kernel() -> Any:
    """The same thread, compiled for a GPU: it asks where in the grid it stands."""
    cell = cuda.jit(device=True)(unwrap(fill_cell))

    def kernel(a: array, b: array, product: array, n: int, k: int, m: int) -> None:
        i, j = cuda.grid(2)
        cell(a, b, product, i, j, n, k, m)

    return cuda.jit(unwrap(kernel))


def matmul_cuda(a: Tensor, b: Tensor) -> Tensor:
    """All threads at once, on an NVIDIA GPU; or on Numba's simulator, where NUMBA_ENABLE_CUDASIM=1 is set."""
    n, k, m = sizes(a, b)
    if cuda is None or not cuda.is_available():
        raise RuntimeError("this needs Numba, and a GPU or NUMBA_ENABLE_CUDASIM=1")
    x, y, product = cuda.to_device(a.flat()), cuda.to_device(b.flat()), cuda.device_array(n * m)
    cuda_kernel()[(-(-n // BLOCK), -(-m // BLOCK)), (BLOCK, BLOCK)](x, y, product, n, k, m)
    return Tensor.of(array("d", product.copy_to_host().tolist()), (n, m))
