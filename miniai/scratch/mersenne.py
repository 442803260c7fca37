"""44. The noise that PyTorch draws from a seed, so that a seed means the same picture here and there.

PyTorch's generator on the CPU is the Mersenne Twister (Matsumoto and Nishimura 1998), which Python's own `random` also
is; only what becomes of a seed, and of the numbers, differs.
"""

import math
import random
from array import array

from miniai.scratch.shapes import Shape
from miniai.scratch.tensor import Tensor

N_WORDS = 624
BLOCK = 16


def twister(seed: int) -> random.Random:
    """Python's generator in the state that `torch.Generator().manual_seed(seed)` has: 624 words, each made from the one
    before (Matsumoto and Nishimura's `init_genrand`, 2002). Only the lowest 32 bits of a seed count."""
    words = [seed & 0xFFFFFFFF]
    for i in range(1, N_WORDS):
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + i) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*words, N_WORDS), None))  # 3: the version of this layout; 624: all words are used up
    return generator


def randn(shape: Shape, seed: int) -> Tensor:
    """`torch.randn(shape, generator=torch.Generator().manual_seed(seed))`, for shapes of at least 16 numbers, to within
    float32's rounding."""
    n = math.prod(shape)
    if n < BLOCK:
        raise ValueError(f"at least {BLOCK} numbers are drawn as PyTorch draws them, not {n}")
    generator = twister(seed)

    def uniform(count: int) -> list[float]:
        """In [0, 1): the lowest 24 of 32 bits, as many as float32 holds."""
        return [(generator.getrandbits(32) & 0xFFFFFF) / 2**24 for _ in range(count)]

    numbers = uniform(n)
    for start in range(0, n - BLOCK + 1, BLOCK):
        numbers[start : start + BLOCK] = normal_block(numbers[start : start + BLOCK])
    if n % BLOCK:  # the last block overlaps the one before it, with fresh numbers
        numbers[-BLOCK:] = normal_block(uniform(BLOCK))
    return Tensor.of(array("d", numbers), shape)


def normal_block(uniform: list[float]) -> list[float]:
    """Box and Muller (1958): number i of the first half gives a radius, number i of the second an angle."""
    half = len(uniform) // 2
    radii = [math.sqrt(-2 * math.log(1 - u)) for u in uniform[:half]]
    angles = [2 * math.pi * u for u in uniform[half:]]
    cosines = [r * math.cos(angle) for r, angle in zip(radii, angles, strict=True)]
    return cosines + [r * math.sin(angle) for r, angle in zip(radii, angles, strict=True)]
