"""Which training pictures a picture is most like: what is memory, and what is not."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

_CHUNK = 256


@dataclass(frozen=True)
class Nearest:
    """For each query its k nearest in the bank: their indices (n, k) and distances (n, k), the nearest first."""

    indices: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]


def nearest_by_feature(queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], k: int = 1) -> Nearest:
    """Nearest by cosine distance, 1 - cos: 0 (same direction) to 2 (opposite). Of equals, the first in the bank."""
    unit_queries = torch.nn.functional.normalize(queries.double(), dim=-1)
    unit_bank = torch.nn.functional.normalize(bank.double(), dim=-1)
    return _first_k(torch.cat([(1 - part @ unit_bank.T).clamp(min=0) for part in unit_queries.split(_CHUNK)]), k)


def nearest_by_pixel(queries: UInt8[Tensor, "n 3 h w"], bank: UInt8[Tensor, "m 3 h w"], k: int = 1) -> Nearest:
    """Nearest by root mean square difference of pixels, in parts of the range: 0 (equal) to 1 (black and white).

    >>> bank = torch.tensor([0, 100, 200], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    >>> found = nearest_by_pixel(torch.full((1, 3, 2, 2), 151, dtype=torch.uint8), bank, k=2)
    >>> found.indices, found.distances.round(decimals=3)
    (tensor([[2, 1]]), tensor([[0.1920, 0.2000]], dtype=torch.float64))
    """
    squares = torch.cat(
        [
            torch.cat([_square_differences(part, chunk) for chunk in bank.split(_CHUNK)], dim=1)
            for part in queries.split(_CHUNK)
        ]
    )
    return _first_k((squares / queries[0].numel()).sqrt() / 255, k)


def _square_differences(a: UInt8[Tensor, "n 3 h w"], b: UInt8[Tensor, "m 3 h w"]) -> Float[Tensor, "n m"]:
    """Sums over pixels, through |a|^2 + |b|^2 - 2 a.b, which is exact: all of it is whole numbers below 2^53."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T


def _first_k(distances: Float[Tensor, "n m"], k: int) -> Nearest:
    if not 1 <= k <= distances.shape[1]:
        raise ValueError(f"there are {distances.shape[1]} pictures to be near to, so k cannot be {k}")
    ordered, indices = distances.sort(dim=1, stable=True)
    return Nearest(indices[:, :k], ordered[:, :k])
