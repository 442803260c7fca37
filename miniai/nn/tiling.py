"""Pictures too large for the memory, in tiles that overlap and fade into one another, as in Diffusers' AutoencoderKL.

Each tile goes through the network alone: a picture in tiles is not quite the picture in one piece.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Map = Float[Tensor, "_ _ _ _"]


def in_tiles(network: Callable[[Map], Map], x: Map, side: int, overlap: float, out_side: int) -> Map:
    """The outputs of `network` on tiles of x, `side` high and wide, put together again.

    - overlap: the share of a tile that lies under the next, over which one fades into the other.
    - out_side: of the output for a whole tile.

    >>> picture = torch.rand(1, 3, 40, 56)
    >>> blurred = in_tiles(lambda tile: torch.nn.functional.avg_pool2d(tile, 2), picture, 16, 0.25, 8)
    >>> blurred.shape, torch.allclose(blurred, torch.nn.functional.avg_pool2d(picture, 2))
    (torch.Size([1, 3, 20, 28]), True)
    """
    step = max(1, int(side * (1 - overlap)))
    seam = int(out_side * overlap)
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[2], step):
        row: list[Tensor] = []
        for j, left in enumerate(range(0, x.shape[3], step)):
            tile = network(x[:, :, top : top + side, left : left + side])
            if above:
                tile = faded(above[j], tile, seam, dim=2)
            if row:
                tile = faded(row[-1], tile, seam, dim=3)
            row.append(tile)
        rows.append(torch.cat([tile[:, :, : out_side - seam, : out_side - seam] for tile in row], dim=3))
        above = row
    return torch.cat(rows, dim=2)


def faded(before: Map, after: Map, seam: int, dim: int) -> Map:
    """`after`, into whose first `seam` rows (or columns) the last ones of `before` fade."""
    seam = min(before.shape[dim], after.shape[dim], seam)
    ramp = torch.arange(seam, device=after.device, dtype=after.dtype) / max(seam, 1)
    ramp = ramp.view([-1 if i == dim else 1 for i in range(4)])
    last = before.narrow(dim, before.shape[dim] - seam, seam)
    mixed = last * (1 - ramp) + after.narrow(dim, 0, seam) * ramp
    return torch.cat([mixed, after.narrow(dim, seam, after.shape[dim] - seam)], dim=dim)
