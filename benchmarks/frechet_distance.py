"""The Fréchet distance by a symmetric root and singular values beside SciPy's root of a matrix without symmetry.

    python benchmarks/frechet_distance.py [--dims 512 2048]        2 minutes on 1 core

Both from the same moments of correlated features, as networks give them; of Inception's width, 2,048, and of the
classifier's of clothes, 512.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg
import torch

from miniai.base.seeds import make_generator
from miniai.evaluate.fid import Moments, frechet_distance, moments
from miniai.recipes.model_card import machine

REPEATS = 3


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Of falling deviations, mixed, and none below 0."""
    generator = make_generator(seed)
    mixing = torch.randn(d, d, generator=generator) * torch.linspace(1, 0.01, d) / d**0.5
    return (torch.randn(n, d, generator=generator) @ mixing).relu()


def by_scipy(a: Moments, b: Moments) -> float:
    """The formula as it is written, by `scipy.linalg.sqrtm`."""
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.covariance.trace() + b.covariance.trace()) - 2 * float(np.trace(root).real)


def seconds(way: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = way()
    return time.perf_counter() - start, value


def row(d: int) -> str:
    a, b = (moments(features(2 * d, d, seed)) for seed in (0, 1))
    theirs, ours = [], []
    for _ in range(REPEATS):
        theirs.append(seconds(lambda: by_scipy(a, b)))
        ours.append(seconds(lambda: frechet_distance(a, b)))
    slow, fast = (statistics.median(time for time, _ in times) for times in (theirs, ours))
    apart = abs(ours[0][1] - theirs[0][1]) / theirs[0][1]
    return f"| {d:,} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {apart:.0e} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 2048])
    options = parser.parse_args(arguments)
    print(f"{machine()}; {torch.get_num_threads()} thread(s), seconds, medians of {REPEATS} in turn\n")
    print("| features | SciPy's sqrtm | ours | times as fast | relative difference |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for d in options.dims:
        print(row(d), flush=True)


if __name__ == "__main__":
    main()
