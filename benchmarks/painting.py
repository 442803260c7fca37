"""3×3 convolutions without gradients in float32 on a CPU: PyTorch's own, with weights packed for the map, and by tiles.

    python benchmarks/painting.py [--repeats 7] [--threads 2]        3 minutes on 2 cores

Before each call other memory is written, as other layers do: weights are seldom in the cache when their turn comes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.nn import painting as module
from miniai.nn.painting import PaintingConv2d, painting
from miniai.recipes.model_card import machine

# Pictures, channels in and out, side: of Stable Diffusion 1.5's guided step at 512×512, of its decoder, and of the
# packaged model's U-Net, guided, for one picture and for 64.
SHAPES = (
    *((2, 320, 320, 64), (2, 960, 320, 64), (2, 640, 640, 32), (2, 1920, 640, 32), (2, 1280, 1280, 32)),
    *((2, 1280, 1280, 16), (2, 2560, 1280, 16), (2, 1280, 1280, 8), (2, 2560, 1280, 8)),
    *((1, 512, 512, 64), (1, 512, 512, 128), (1, 256, 256, 256), (1, 128, 128, 512)),
    *((2, 160, 160, 8), (2, 288, 288, 4), (128, 320, 160, 8), (128, 288, 288, 4)),
)
ELSEWHERE = torch.zeros(20_000_000)


def milliseconds(way: Callable[[], object]) -> float:
    ELSEWHERE.add_(1)
    start = time.perf_counter()
    way()
    return 1000 * (time.perf_counter() - start)


def row(b: int, c: int, d: int, side: int, repeats: int) -> str:
    """The two ways of PyTorch, then the two of ours, each with what making the weight ready takes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, c, side, side, generator=generator)
    last = x.contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.Conv2d(c, d, 3, padding=1))
    layer: PaintingConv2d = model[0]  # type: ignore[assignment]  # within `painting`
    weight, bias = layer.weight, layer.bias
    ours = {}
    for name, enough in (("packed", 10**9), ("tiles", 0)):
        with painting(model), mock.patch.multiple(module, ENOUGH_TILES=enough, CARRYING=0):
            first = [milliseconds(lambda: (forget(layer), layer(last))) for _ in range(3)]
            ours[name] = [milliseconds(lambda: layer(last)) for _ in range(repeats)], first
            answers = layer(last)
            chosen = "" if name == "packed" else f"{difference(answers, F.conv2d(last, weight, bias, padding=1)):.0e}"
    with painting(model):
        way = "tiles" if layer.by_tiles(last) else "packed"
    plain = [milliseconds(lambda: F.conv2d(x, weight, bias, padding=1)) for _ in range(repeats)]
    plain_last = [milliseconds(lambda: F.conv2d(last, weight, bias, padding=1)) for _ in range(repeats)]
    theirs = [statistics.median(times) for times in (plain, plain_last)]
    cells = [f"{time:.1f}" for time in theirs]
    for times, first in ours.values():
        own = statistics.median(times)
        cells += [f"{own:.1f}", f"{max(0.0, statistics.median(first) - own):.0f}"]
    gain = min(theirs) / statistics.median(ours[way][0])
    return f"| {b} | {c} | {d} | {side}×{side} | {' | '.join(cells)} | {way} | {gain:.2f} | {chosen} |"


def forget(layer: PaintingConv2d) -> None:
    layer._ready = None


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"{machine()}; float32, medians of {options.repeats}, milliseconds\n")
    print(
        "| pictures | channels in | out | side | PyTorch | PyTorch, channels last | packed | made ready in "
        "| tiles | made ready in | taken | times as fast | difference of tiles |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    with torch.no_grad():
        for shape in SHAPES:
            print(row(*shape, options.repeats), flush=True)


if __name__ == "__main__":
    main()
