"""27. Data: images from IDX files (the format of MNIST), and batches of them in an order that follows from the seed.

A data set is anything with a length and items by index. A sampler says in which order; collation makes one batch of
many items; the loader brings them together, in worker processes if asked, whose count changes nothing in the batches.
"""

import gzip
import math
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from miniai.scratch.creation import stack
from miniai.scratch.lists import chunks
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor

IDX_CODES = {8: "B", 9: "b", 11: "h", 12: "i", 13: "f", 14: "d"}  # third byte of the file: what a number is


def read_idx(path: str | Path) -> tuple[array, tuple[int, ...]]:
    """(numbers, shape) of an IDX file, also one compressed with gzip. ValueError names the file and what is wrong."""
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError) as error:
            raise ValueError(f"{path}: the gzip data is cut off or damaged; download the file again") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_CODES:
        raise ValueError(f"{path}: not an IDX file (it should begin with 0, 0, a type and the number of dimensions)")
    n_dims, header = raw[3], 4 + 4 * raw[3]
    if len(raw) < header:
        raise ValueError(f"{path}: the header is cut off at {len(raw)} of {header} bytes; download the file again")
    shape = struct.unpack(f">{n_dims}I", raw[4:header])
    numbers = array(IDX_CODES[raw[2]])
    wanted = math.prod(shape) * numbers.itemsize
    if len(raw) - header != wanted:
        raise ValueError(f"{path}: shape {shape} needs {wanted} bytes, the file holds {len(raw) - header}")
    numbers.frombytes(raw[header:])
    if numbers.itemsize > 1 and struct.pack("=H", 1) != struct.pack(">H", 1):
        numbers.byteswap()  # the file has the greatest byte first
    return numbers, shape


@runtime_checkable
class Dataset(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


class ImageDataset:
    """(image, label) pairs; images are float64 (1, h, w), (x / 255 - mean) / std. An item is made when asked for: the
    bytes of the file are all that is kept."""

    def __init__(self, images: str | Path, labels: str | Path, mean: float = 0.0, std: float = 1.0) -> None:
        self.pixels, shape = read_idx(images)
        self.labels, label_shape = read_idx(labels)
        if len(shape) != 3 or len(label_shape) != 1:
            raise ValueError(f"{images} and {labels}: expected (n, h, w) and (n,), got {shape} and {label_shape}")
        for path, numbers in ((images, self.pixels), (labels, self.labels)):
            if numbers.typecode != "B":
                raise ValueError(f"{path}: expected whole numbers from 0 to 255, a byte each")
        if shape[0] != label_shape[0]:
            raise ValueError(f"{images} holds {shape[0]} images, {labels} holds {label_shape[0]} labels")
        self.size = shape[1:]
        self.values = [(byte / 255 - mean) / std for byte in range(256)]  # looked up: a pixel has only 256 values

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is out of range for a data set of {len(self)}")
        n = math.prod(self.size)
        pixels = map(self.values.__getitem__, self.pixels[i * n : (i + 1) * n])
        return Tensor.of(array("d", pixels), (1, *self.size)), self.labels[i]


def sequential(n: int) -> Iterator[int]:
    """A sampler: in order."""
    return iter(range(n))


def shuffled(n: int, seed: int, epoch: int) -> Iterator[int]:
    """A sampler: every index once, in an order that follows from seed and epoch alone."""
    return iter(Rng(seed, epoch).permutation(n))


def batches(indices: Iterable[int], batch_size: int, drop_last: bool = False) -> Iterator[list[int]]:
    """Lists of `batch_size` indices; `drop_last` leaves out a last one that is shorter."""
    return (batch for batch in chunks(indices, batch_size) if len(batch) == batch_size or not drop_last)


def collate(items: Sequence[Any]) -> Any:
    """Items to a batch: tensors are stacked, numbers become a tensor, tuples and dicts are collated part by part."""
    if not items:
        raise ValueError("collate got no items")
    first = items[0]
    if isinstance(first, Tensor):
        return stack(items)
    if isinstance(first, int | float):
        return Tensor(list(items))
    if isinstance(first, tuple):
        return tuple(collate(part) for part in zip(*items, strict=True))
    if isinstance(first, dict):
        return {key: collate([item[key] for item in items]) for key in first}
    return list(items)


class Fetch:
    """Indices to a batch; a class, not a closure, so that it can be sent to a worker process."""

    def __init__(self, dataset: Dataset, collate_fn: Callable[[Sequence[Any]], Any]) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn

    def __call__(self, indices: list[int]) -> Any:
        return self.collate_fn([self.dataset[i] for i in indices])


AT_WORK: list[Fetch] = []  # in a worker process alone: what it was started with


def start_worker(fetch: Fetch) -> None:
    """The data set is sent once, when a worker starts, and not with every batch."""
    AT_WORK.append(fetch)


def fetch_in_worker(indices: list[int]) -> Any:
    return AT_WORK[-1](indices)


class DataLoader:
    """Batches of `dataset`. With `seed`, shuffled anew for each epoch: call `epoch(i)`; plain iteration is epoch 0."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        n_workers: int = 0,
        collate_fn: Callable[[Sequence[Any]], Any] = collate,
    ) -> None:
        if not len(dataset):
            raise ValueError("the data set is empty")
        if batch_size < 1 or n_workers < 0:
            raise ValueError(f"batch_size must be at least 1, n_workers at least 0, got {batch_size} and {n_workers}")
        self.dataset, self.batch_size, self.seed, self.drop_last = dataset, batch_size, seed, drop_last
        self.n_workers, self.fetch = n_workers, Fetch(dataset, collate_fn)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Any]:
        n = len(self.dataset)
        indices = sequential(n) if self.seed is None else shuffled(n, self.seed, epoch)
        if not self.n_workers:
            yield from map(self.fetch, batches(indices, self.batch_size, self.drop_last))
            return
        with get_context("spawn").Pool(self.n_workers, start_worker, (self.fetch,)) as pool:
            waiting: deque[Any] = deque()
            for batch in batches(indices, self.batch_size, self.drop_last):
                waiting.append(pool.apply_async(fetch_in_worker, (batch,)))
                if len(waiting) > 2 * self.n_workers:  # workers run ahead, but not so far that batches fill the memory
                    yield waiting.popleft().get()
            while waiting:
                yield waiting.popleft().get()
