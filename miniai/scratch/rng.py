"""15. Random numbers from explicit state: the generator of Wichmann and Hill (Applied Statistics AS 183, 1982).

Three small multiplicative generators, added as fractions of 1; their sum's fraction has a period near 7e12. The state
is three integers in plain sight, so it can be kept, compared and restored. A generator copied into two processes gives
both the same numbers; `stream(worker)` gives each worker its own.
"""

import math
from array import array
from hashlib import sha256

from miniai.scratch.ieee import Number
from miniai.scratch.tensor import Tensor

PRIMES = P, Q, R = (30269, 30307, 30323)
FACTORS = A, B, C = (171, 172, 170)


class Rng:
    """`Rng(42).uniform()`; the same seed gives the same numbers, on every machine."""

    def __init__(self, seed: int, *path: int) -> None:
        """`path` names a stream below the seed: numbers of another path have nothing to do with these."""
        self.seed, self.path = seed, path
        digest = sha256(repr((seed, *path)).encode()).digest()  # seeds 1 and 2 begin far apart
        parts = (int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(3))
        self.state = tuple(1 + part % (prime - 1) for part, prime in zip(parts, PRIMES, strict=True))

    def stream(self, *path: int) -> "Rng":
        """A generator for a worker, an epoch, an image: it depends on the seed and the path alone."""
        return Rng(self.seed, *self.path, *path)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        x, y, z = self.state
        x, y, z = x * A % P, y * B % Q, z * C % R
        self.state = (x, y, z)
        return (x / P + y / Q + z / R) % 1.0

    def integer(self, n: int) -> int:
        """Uniform in 0 … n - 1. Raises ValueError where n is below 1."""
        if n < 1:
            raise ValueError(f"integer(n) needs n of at least 1, got {n}")
        return int(self.random() * n)

    def uniform(self, *shape: int, low: Number = 0.0, high: Number = 1.0) -> Tensor:
        random = self.random
        return filled([low + (high - low) * random() for _ in range(math.prod(shape))], shape)

    def normal(self, *shape: int, mean: Number = 0.0, std: Number = 1.0) -> Tensor:
        """Box and Muller (1958): the radius sqrt(-2 log u) at the angle 2πv gives two normal numbers."""
        numbers: list[float] = []
        for _ in range(-(-math.prod(shape) // 2)):
            radius, angle = math.sqrt(-2 * math.log(1 - self.random())), 2 * math.pi * self.random()
            numbers += [mean + std * radius * math.cos(angle), mean + std * radius * math.sin(angle)]
        return filled(numbers[: math.prod(shape)], shape)

    def permutation(self, n: int) -> list[int]:
        """0 … n - 1 in an order that is as likely as any other (Fisher and Yates, Durstenfeld's form 1964)."""
        order = list(range(n))
        for last in range(n - 1, 0, -1):
            other = self.integer(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def shuffle(self, x: Tensor) -> Tensor:
        """The rows of `x` in another order; a copy."""
        return x[Tensor(self.permutation(len(x)), "int64")]


def filled(numbers: list[float], shape: tuple[int, ...]) -> Tensor:
    return Tensor.of(array("d", numbers), shape)


def chi_square(counts: list[int]) -> float:
    """Σ (count - expected)² / expected for bins equally likely: near `len(counts) - 1` if the numbers are uniform,
    far above if they favour some bins, far below if they are more even than chance."""
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 for count in counts) / expected


def serial_correlation(x: Tensor, lag: int = 1) -> float:
    """The correlation of each number with the one `lag` later: within ±3/sqrt(n) of 0, if they are independent."""
    if not 0 < lag < len(x):
        raise ValueError(f"lag must be from 1 to {len(x) - 1}, got {lag}")
    centred = x - x.mean()
    return ((centred[:-lag] * centred[lag:]).sum() / (centred * centred).sum()).item()
