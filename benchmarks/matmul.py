"""One product of matrices in the stages of miniai/scratch, from three Python loops to PyTorch, side by side.

NUMBA_ENABLE_CUDASIM=1 python benchmarks/matmul.py --out benchmarks/results/matmul.md --plot docs/images/matmul.png

Numba's rows are there where Numba is installed. The CUDA kernel runs on a GPU where there is one; with
NUMBA_ENABLE_CUDASIM=1 in the environment it is simulated in Python, which is right, and very slow.
"""

import argparse
import os
import platform
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import torch

from miniai.scratch import kernels, layer_kernels
from miniai.scratch.lists import matmul_lists
from miniai.scratch.matmul import (
    cuda,
    matmul_broadcast,
    matmul_cuda,
    matmul_einsum,
    matmul_grid,
    matmul_loops,
    matmul_rows,
)
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor

Stage = Callable[[Tensor, Tensor], Tensor]


def flat(function: Callable[..., array]) -> Stage:
    """A product of flat buffers as one of tensors."""
    return lambda a, b: Tensor.of(function(a.flat(), b.flat(), *a.shape, b.shape[1]), (a.shape[0], b.shape[1]))


def long_integers(b: Tensor) -> Stage:
    """`b` is packed beforehand, as a layer's weights are."""
    layer = layer_kernels.pack_python(b.transpose(0, 1).flat(), array("d", bytes(8 * b.shape[1])))
    return lambda a, _: Tensor.of(layer_kernels.linear_python(a.flat(), layer), (a.shape[0], b.shape[1]))


def stages(b: Tensor) -> dict[str, Stage]:
    found: dict[str, Stage] = {
        "lists of lists, three loops": lambda a, b: Tensor(matmul_lists(a.tolist(), b.tolist())),
        "flat buffer, three loops": matmul_loops,
        "rows times columns": matmul_rows,
        "broadcasting a row": matmul_broadcast,
        "einsum": matmul_einsum,
        "a grid of threads, one after another": matmul_grid,
        "sum of map of mul" if kernels.dot is kernels.dot_python else "math.sumprod": flat(kernels.matmul_python),
        "rows inside long integers": long_integers(b),
    }
    if kernels.numba is not None:
        found["Numba"] = flat(kernels.matmul)
    if cuda is not None and cuda.is_available():
        simulated = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
        found[f"CUDA kernel, {'simulated' if simulated else 'on a GPU'}"] = matmul_cuda
    return found


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` calls, after one that is not counted: other programs can only make a call longer."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=64, help="matrices of size × size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--plot", type=Path, help="where to draw the bars")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, rng = options.size, Rng(0)
    a, b = rng.normal(n, n), rng.normal(n, n)
    x, y = (torch.tensor(t.tolist(), dtype=torch.float64) for t in (a, b))
    wanted = x @ y

    found = {}
    for name, stage in stages(b).items():
        product = torch.tensor(stage(a, b).tolist(), dtype=torch.float64)
        torch.testing.assert_close(product, wanted, rtol=1e-5, atol=1e-5)
        found[name] = seconds(lambda stage=stage: stage(a, b), options.repeats)
    found["PyTorch"] = seconds(lambda: x @ y, 100)

    lines = table(found, n, options.repeats)
    print("\n".join(lines))
    if options.plot:
        draw(options.plot, found)
    if options.out:
        picture = ["", f"![bars]({os.path.relpath(options.plot, options.out.parent)})"] if options.plot else []
        options.out.write_text("\n".join(["# Products of matrices in stages", "", *lines, *picture, ""]))


def table(found: dict[str, float], n: int, repeats: int) -> list[str]:
    slowest = max(found.values())
    lines = [
        f"{n}×{n}, float64, Python {platform.python_version()}, torch {torch.__version__}, 1 thread, best of {repeats} "
        "runs; every product equals PyTorch's.",
        "",
        "| stage | ms | ns a product | times faster |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, time_s in found.items():
        lines.append(f"| {name} | {1e3 * time_s:.3f} | {1e9 * time_s / n**3:.2f} | {slowest / time_s:.0f} |")
    return lines


def draw(path: Path, found: dict[str, float]) -> None:
    """Bars on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(found), [1e3 * time_s for time_s in found.values()])
    axes.set(xscale="log", xlabel="milliseconds")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
