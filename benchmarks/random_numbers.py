"""A million random numbers: the generator of miniai/scratch, Python's own and PyTorch's, side by side.

python benchmarks/random_numbers.py
"""

import random
import statistics
import time
from collections.abc import Callable

import torch

from miniai.scratch.rng import Rng

N = 1_000_000
DRAWS: dict[str, Callable[[], object]] = {
    "miniai, uniform": lambda: Rng(0).uniform(N),
    "miniai, normal": lambda: Rng(0).normal(N),
    "Python, uniform": lambda: [random.random() for _ in range(N)],
    "Python, normal": lambda: [random.gauss() for _ in range(N)],
    "PyTorch, uniform": lambda: torch.rand(N, dtype=torch.float64),
    "PyTorch, normal": lambda: torch.randn(N, dtype=torch.float64),
}


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    print(f"{N} numbers, 1 thread, median of {repeats} runs\n\n| draw | ms | ns a number |\n| --- | ---: | ---: |")
    for name, draw in DRAWS.items():
        times = []
        for _ in range(repeats):
            start = time.process_time()
            draw()
            times.append(time.process_time() - start)
        print(f"| {name} | {1e3 * statistics.median(times):.1f} | {1e9 * statistics.median(times) / N:.1f} |")


if __name__ == "__main__":
    main()
