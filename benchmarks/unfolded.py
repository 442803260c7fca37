"""3×3 convolutions of small maps that learn in bfloat16: as products of matrices beside PyTorch's own, in turn.

python benchmarks/unfolded.py     a minute on 2 cores
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.base.device import has_amx
from miniai.nn.learning import LearningConv2d
from miniai.nn.unfolded import unfolded_conv2d
from miniai.recipes.model_card import machine

# Pictures, channels in and out, side: of the painters of clothes and of emoji, and beyond.
SHAPES = (
    *((128, 256, 256, 4), (128, 512, 256, 4), (128, 128, 128, 4), (32, 256, 256, 4), (8, 512, 512, 8)),
    *((128, 192, 192, 8), (128, 448, 192, 8), (128, 256, 256, 8), (64, 512, 512, 8), (128, 64, 64, 8)),
    (256, 320, 320, 7),
    *((128, 192, 192, 16), (128, 96, 96, 16)),
)
REPEATS = 9


def in_order(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(b: int, c: int, d: int, side: int) -> str:
    """Milliseconds of forward and backward, both ways, and the error of the weight's gradient against float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((b, c, side, side), (d, c, 3, 3), (b, d, side, side))
    x, weight, grad = (in_order(torch.randn(shape, generator=generator)) for shape in shapes)
    x, grad = x.bfloat16().requires_grad_(), grad.bfloat16()
    weight.requires_grad_()
    layer = LearningConv2d(c, d, 3, padding=1)

    def learn(way: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        x.grad = weight.grad = None
        way(x, weight).backward(grad)
        assert weight.grad is not None
        return weight.grad

    ways = {
        "PyTorch's": lambda x, weight: F.conv2d(x, weight.bfloat16(), padding=1),
        "unfolded": unfolded_conv2d,
    }
    exact = learn(lambda x, weight: F.conv2d(x.float(), weight, padding=1).bfloat16())
    errors = [float((learn(way) - exact).norm() / exact.norm()) for way in ways.values()]
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            taken[name].append(1e3 * seconds(lambda way=way: learn(way)))  # type: ignore[misc]
    plain, ours = (statistics.median(times) for times in taken.values())
    with torch.autocast("cpu", torch.bfloat16):
        chosen = "yes" if layer.by_products(x) else "no"
    shown = " | ".join(f"{error:.4f}" for error in errors)
    return f"| {b} | {c} | {d} | {side}×{side} | {plain:.1f} | {ours:.1f} | {plain / ours:.2f} | {chosen} | {shown} |"


def main() -> None:
    print(f"{machine()}{'' if has_amx() else ' without AMX'}; medians of {REPEATS}, in turn\n")
    print(
        "| pictures | channels in | out | side | PyTorch, ms | unfolded, ms | ratio | taken | error | error, unfolded |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shape in SHAPES:
        print(compare(*shape), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
