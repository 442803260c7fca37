"""IDX files, the format that MNIST and Fashion-MNIST come in: a header of sizes, then numbers; gzipped or not."""

import gzip
import math
import os
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from miniai.base.errors import UserError

# The third byte of the file says what the numbers are; all of them stand with their highest byte first.
KINDS = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_NUMBERS = 2**31


def read_idx(path: str | os.PathLike[str]) -> Shaped[Tensor, "..."]:
    """The numbers of an IDX file, in the shape and of the kind that its header says. Layout: yann.lecun.com/exdb/mnist.

    Raises UserError if the file is missing, not IDX, or holds more or fewer numbers than its header says.

    >>> raw = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))
    >>> n_bytes = Path("small-idx2-ubyte").write_bytes(raw)
    >>> read_idx("small-idx2-ubyte")
    tensor([[0, 1, 2],
            [3, 4, 5]], dtype=torch.uint8)
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _read(raw, path)
            with gzip.open(raw) as unzipped:
                return _read(unzipped, path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}): get the file again") from error


def _read(file: BufferedIOBase, path: str | os.PathLike[str]) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in KINDS or start[3] == 0:
        raise UserError(f"{path} is not an IDX file: get the file again")
    header = file.read(4 * start[3])
    kind = np.dtype(KINDS[start[2]])
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
    n_numbers = math.prod(shape)
    if len(header) < 4 * start[3] or n_numbers > MAX_NUMBERS:
        raise UserError(f"{path} is not an IDX file of a size that can be: get the file again")
    content = file.read(n_numbers * kind.itemsize + 1)  # one more, to see whether there is more
    if len(content) != n_numbers * kind.itemsize:
        much = "more" if len(content) > n_numbers * kind.itemsize else "fewer"
        raise UserError(f"{path} holds {much} numbers than the {n_numbers:,} its header says: get the file again")
    numbers = np.frombuffer(content, kind).reshape(shape)
    return torch.from_numpy(numbers.astype(kind.newbyteorder("=")))


def find_idx(folder: Path, name: str) -> Path | None:
    """`folder/name`, or the same with `.gz`, or with a dot where some downloads have it before "idx"; else None."""
    names = (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz")
    return next((folder / one for one in names if (folder / one).is_file()), None)
