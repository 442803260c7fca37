"""Batches whose order and augmentation follow from (seed, epoch, index) alone: not from workers, not from a restart."""

import inspect
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator


@runtime_checkable
class GatherDataset(Protocol):
    """Data resident in memory, which can give a whole batch at once."""

    def __len__(self) -> int: ...

    def gather(self, indices: Int64[Tensor, " b"]) -> Any: ...


@runtime_checkable
class AugmentedDataset(Protocol):
    """Items that need chance: `augmented(index, generator)` draws from that generator alone."""

    def __len__(self) -> int: ...

    def augmented(self, index: int, generator: torch.Generator) -> Any: ...


class TensorDataset:
    """Tensors of equal length (one, a tuple, or a dict of them); a batch has the same structure.

    >>> TensorDataset({"x": torch.arange(4), "y": torch.arange(4) ** 2}).gather(torch.tensor([2, 3]))
    {'x': tensor([2, 3]), 'y': tensor([4, 9])}
    """

    def __init__(self, tensors: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        each = _values(tensors)
        lengths = {len(tensor) for tensor in each}
        if len(lengths) != 1:
            raise ValueError(f"the tensors of a data set need one length, not {sorted(lengths)}")
        self.n_items = lengths.pop()

    def __len__(self) -> int:
        return self.n_items

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.tensors, Tensor):
            return self.tensors[index]
        if isinstance(self.tensors, Mapping):
            return {name: tensor[index] for name, tensor in self.tensors.items()}
        return tuple(tensor[index] for tensor in self.tensors)

    def gather(self, indices: Int64[Tensor, " b"]) -> Any:
        if isinstance(self.tensors, Tensor):
            return _select(self.tensors, indices)
        if isinstance(self.tensors, Mapping):
            return {name: _select(tensor, indices) for name, tensor in self.tensors.items()}
        return tuple(_select(tensor, indices) for tensor in self.tensors)


def near(data: Any, device: torch.device) -> Any:
    """`data` in the GPU's own memory, if it is tensors and takes no more than a quarter of what is free there: batches
    then need not be carried over one by one. Else, and for other devices, as it is."""
    data = TensorDataset(data) if _is_tensors(data) else data
    if device.type != "cuda" or not isinstance(data, TensorDataset):
        return data
    n_bytes = sum(tensor.nbytes for tensor in _values(data.tensors))
    if n_bytes > torch.cuda.mem_get_info(device)[0] // 4:
        return data
    if isinstance(data.tensors, Mapping):
        return TensorDataset({name: tensor.to(device) for name, tensor in data.tensors.items()})
    tensors = tuple(tensor.to(device) for tensor in _values(data.tensors))
    return TensorDataset(tensors[0] if isinstance(data.tensors, Tensor) else tensors)


class Loader:
    """Batches of a data set, epoch by epoch.

    `data` is one of
    - tensors in memory: one, a tuple or a dict of them;
    - a data set with `augmented(index, generator) -> item`;
    - a data set with `gather(indices) -> batch`, for other data in memory;
    - a map-style data set: `len(data)`, `data[index] -> item`.
    Items are joined by `collate` (default: torch's `default_collate`), in `n_workers` processes if there are any.
    The order of epoch e follows from (seed, e) alone, the generator of an item from (seed, e, index).
    Two epochs, or an epoch and a look at another batch, can be read at once: workers are then started for the second.
    `shard` = (k, n) takes the k-th of n equal parts of each batch, for one of n processes; (0, 1) is all of it.
    Raises UserError if there is not one whole batch, for an item that cannot be read (naming its index), and for a
    worker that dies.

    >>> loader = Loader((torch.arange(6), torch.arange(6) ** 2), 2, seed=0)
    >>> all(torch.equal(y, x**2) for x, y in loader.batches(epoch=0)), len(loader)
    (True, 3)
    """

    def __init__(
        self,
        dataset_or_tensors: Any,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        collate: Callable[[list[Any]], Any] | None = None,
        n_workers: int = 0,
    ) -> None:
        data = dataset_or_tensors
        data = TensorDataset(data) if _is_tensors(data) else data
        self.dataset, self.batch_size, self.seed = data, batch_size, seed
        self.shuffle, self.drop_last, self.n_workers = shuffle, drop_last, n_workers
        self.collate = collate or default_collate
        self.shard = (0, 1)
        self._looked_up: tuple[tuple[Any, ...], list[Tensor]] | None = None
        self._workers: DataLoader | None = None
        self._reading: weakref.ref[Generator[Any, None, None]] | None = None  # the batches that `_workers` read now
        if batch_size < 1:
            raise UserError(f"a batch needs at least 1 item, not {batch_size}: choose a larger batch size")
        if len(self) == 0:
            raise UserError(
                f"{self.n_items} items make no batch of {batch_size}: add data or choose a smaller batch size"
            )

    @property
    def n_items(self) -> int:
        return len(self.dataset)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.n_items // self.batch_size if self.drop_last else -(-self.n_items // self.batch_size)

    def order(self, epoch: int) -> Int64[Tensor, " n"]:
        """The items in the order in which `epoch` visits them."""
        if not self.shuffle:
            return torch.arange(self.n_items)
        return torch.randperm(self.n_items, generator=make_generator(self.seed, epoch, 0))

    def indices(self, epoch: int, start: int = 0) -> list[Int64[Tensor, " b"]]:
        """The items of each batch of `epoch`, from number `start` on."""
        part, n_parts = self.shard
        chunks = self.order(epoch).split(self.batch_size)[start : len(self)]
        return [chunk.tensor_split(n_parts)[part] for chunk in chunks]

    def items_of(self, epoch: int, index: int) -> list[int]:
        """The items of batch number `index` of `epoch`; quick for one batch after the other."""
        key = (epoch, self.shard, self.seed, self.batch_size, self.shuffle, self.drop_last, self.n_items)
        if self._looked_up is None or self._looked_up[0] != key:
            self._looked_up = (key, self.indices(epoch))
        return self._looked_up[1][index].tolist()

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of `epoch`, from number `start` on (those before it are neither read nor made)."""
        chunks = self.indices(epoch, start)
        if hasattr(self.dataset, "gather") and not hasattr(self.dataset, "augmented"):
            return map(self.dataset.gather, chunks)
        if self.n_workers == 0:
            items = _Items(self.dataset, self.seed)
            return (self.collate([items[epoch, index] for index in chunk.tolist()]) for chunk in chunks)
        return self._from_workers(epoch, chunks)

    def _from_workers(self, epoch: int, chunks: Sequence[Tensor]) -> Iterator[Any]:
        keys = [[(epoch, index) for index in chunk.tolist()] for chunk in chunks]
        reading = None if self._reading is None else self._reading()
        if reading is not None and inspect.getgeneratorstate(reading) != inspect.GEN_CLOSED:
            # Those batches are still being read, and torch's workers have one place that they read at: start others.
            return self._watched(self._started(self._new_workers(keep=False), keys))
        if self._workers is None:
            self._workers = self._new_workers(keep=True)
        batches = self._watched(self._started(self._workers, keys))
        self._reading = weakref.ref(batches)
        return batches

    def _new_workers(self, *, keep: bool) -> DataLoader:
        return DataLoader(
            _Items(self.dataset, self.seed),
            batch_sampler=_Plan(),
            collate_fn=self.collate,
            num_workers=self.n_workers,
            multiprocessing_context="spawn",  # fork is unsafe once torch has started its threads
            persistent_workers=keep,  # a spawned worker takes seconds to import torch: keep it for all epochs
            worker_init_fn=_ignore_ctrl_c,
            generator=torch.Generator(),  # torch would otherwise draw from the global one
        )

    @staticmethod
    def _started(workers: DataLoader, keys: list[list[tuple[int, int]]]) -> Iterator[Any]:
        plan = workers.batch_sampler
        assert isinstance(plan, _Plan)
        plan.keys = keys
        with _same_child_handler():
            return iter(workers)

    def _watched(self, batches: Iterator[Any]) -> Generator[Any, None, None]:
        """The same, with a worker's error or death told in one line; the epoch after a death starts new workers."""
        try:
            yield from batches
        except UserError as error:  # torch has put the worker's whole traceback into it, and the line last
            raise UserError(
                str(error).rstrip().rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
            ) from error
        except (RuntimeError, OSError, EOFError) as error:
            told = "DataLoader worker (pid" in str(error)
            # A tensor comes through a connection to its worker, which breaks a moment before the death is known.
            cut_off = not isinstance(error, RuntimeError) and "in DataLoader worker process" not in str(error)
            if not (told or cut_off):
                raise
            self._workers = None
            raise UserError(
                "a worker of the data loader died (killed, or out of memory): resume the training, "
                "with fewer workers or a smaller batch if it happens again"
            ) from error


def batch_size_of(batch: Any) -> int:
    """The number of items in a batch: the length of the first tensor in it (nested dicts, lists and tuples); else 1.

    >>> batch_size_of({"image": torch.zeros(3, 2), "text": ["a", "b", "c"]})
    3
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)) and batch:
        return batch_size_of(batch[0])
    return 1


class _Items(torch.utils.data.Dataset):
    """Looks up (epoch, index), so that a worker knows the epoch without being told apart; pickles if `dataset` does."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.is_augmented = hasattr(dataset, "augmented")

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        try:
            if self.is_augmented:
                return self.dataset.augmented(index, make_generator(self.seed, epoch, index + 1))
            return self.dataset[index]
        except Exception as error:
            raise UserError(f"item {index} of the data set cannot be read: {type(error).__name__}: {error}") from error


class _Plan(Sampler):
    """The batches of one epoch, as lists of (epoch, index)."""

    def __init__(self) -> None:
        self.keys: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


@contextmanager
def _same_child_handler() -> Iterator[None]:
    """Take back the handler of SIGCHLD that torch sets inside: it would raise a worker's death wherever this process is
    just then, in a step or a callback. Without it torch finds the death where the next batch is waited for, in 5 s."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _ignore_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process finishes its step and needs its workers for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _select(tensor: Tensor, indices: Tensor) -> Tensor:
    return tensor.index_select(0, indices.to(tensor.device, non_blocking=True))


def _values(data: Any) -> list[Any]:
    if isinstance(data, Tensor):
        return [data]
    return list(data.values()) if isinstance(data, Mapping) else list(data)


def _is_tensors(data: Any) -> bool:
    if not isinstance(data, (tuple, Mapping)):
        return isinstance(data, Tensor)
    return bool(data) and all(isinstance(value, Tensor) for value in _values(data))
