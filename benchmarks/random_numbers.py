"""A million random numbers: the generator of miniai/scratch, Python's own and PyTorch's, side by side.

python benchmarks/random_numbers.py [--out benchmarks/results/random_numbers.md]
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from miniai.scratch.rng import Rng

N = 1_000_000
DRAWS: dict[str, Callable[[], object]] = {
    "miniai/scratch, uniform": lambda: Rng(0).uniform(N),
    "Python, uniform": lambda: [random.random() for _ in range(N)],
    "PyTorch, uniform": lambda: torch.rand(N, dtype=torch.float64),
    "miniai/scratch, normal": lambda: Rng(0).normal(N),
    "Python, normal": lambda: [random.gauss() for _ in range(N)],
    "PyTorch, normal": lambda: torch.randn(N, dtype=torch.float64),
    "miniai/scratch, permutation": lambda: Rng(0).permutation(N),
    "Python, permutation": lambda: random.shuffle(list(range(N))),
    "PyTorch, permutation": lambda: torch.randperm(N),
}


def milliseconds(draw: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` draws, after one that is not counted, by the processor's clock."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        draw()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"{N} numbers, Python {platform.python_version()}, torch {torch.__version__}, 1 thread, median of "
        f"{options.repeats} runs",
        "",
        "| draw | ms | ns a number |",
        "| --- | ---: | ---: |",
    ]
    for name, draw in DRAWS.items():
        ms = milliseconds(draw, options.repeats)
        lines.append(f"| {name} | {ms:.1f} | {1e6 * ms / N:.1f} |")
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(["# Random numbers", "", *lines, ""]))


if __name__ == "__main__":
    main()
