"""Order and augmentation follow from (seed, epoch, index), whoever reads the items."""

import os
import signal
from typing import Any

import pytest
import torch
from small_training import NoisyPictures
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.train.data import Loader, TensorDataset, near


class Letters:
    """A map-style data set."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> str:
        return "abcdefghij"[index]


class Broken(Letters):
    def __getitem__(self, index: int) -> str:
        if index == 4:
            raise OSError("truncated picture")
        return super().__getitem__(index)


def joined(items: list[str]) -> str:
    return "".join(items)


def test_an_epoch_visits_every_item_once_in_an_order_of_its_own() -> None:
    loader = Loader(Letters(), 2, seed=3, collate=joined)
    first, again, second = ("".join(loader.batches(epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == list("abcdefghij")
    assert "".join(Loader(Letters(), 2, seed=4, collate=joined).batches(0)) != first
    order = torch.randperm(10, generator=make_generator(3, 1, 0))
    assert second == "".join("abcdefghij"[i] for i in order)


def test_on_a_cpu_data_are_near_where_they_are() -> None:
    pictures, letters = torch.arange(6).reshape(6, 1), Letters()
    kept = near((pictures, pictures), torch.device("cpu"))
    assert kept.tensors[0] is pictures
    assert near(letters, torch.device("cuda")) is letters  # only tensors are carried over at once


def test_without_shuffling_the_order_is_the_data_sets_own() -> None:
    loader = Loader(Letters(), 4, seed=0, shuffle=False, drop_last=False, collate=joined)
    assert list(loader.batches(5)) == ["abcd", "efgh", "ij"]
    assert len(loader) == 3
    loader = Loader(Letters(), 4, seed=0, shuffle=False, collate=joined)
    assert list(loader.batches(5)) == ["abcd", "efgh"]
    assert len(loader) == 2


def test_a_resumed_epoch_goes_on_with_the_very_batches_that_were_left() -> None:
    loader = Loader(Letters(), 2, seed=3, collate=joined)
    whole = list(loader.batches(2))
    for start in range(6):
        assert list(loader.batches(2, start=start)) == whole[start:]


def test_batches_before_the_start_are_never_read() -> None:
    read: list[int] = []

    class Recording(Letters):
        def __getitem__(self, index: int) -> str:
            read.append(index)
            return super().__getitem__(index)

    assert len(list(Loader(Recording(), 2, seed=3).batches(0, start=4))) == 1
    assert len(read) == 2


def test_tensors_in_memory_are_gathered_in_their_own_structure() -> None:
    numbers = torch.arange(6)
    for data in (numbers, (numbers, numbers * 10), {"x": numbers, "y": numbers * 10}):
        batches = list(Loader(data, 2, seed=1).batches(0))
        order = Loader(data, 2, seed=1).order(0).view(3, 2)
        for batch, indices in zip(batches, order, strict=True):
            x, y = (batch, batch * 10) if isinstance(batch, Tensor) else batch.values() if "x" in batch else batch
            assert torch.equal(x, indices)
            assert torch.equal(y, indices * 10)
    with pytest.raises(ValueError, match="one length"):
        TensorDataset((numbers, numbers[:3]))


def test_a_data_set_with_gather_gives_whole_batches() -> None:
    class Squares:
        def __len__(self) -> int:
            return 7

        def gather(self, indices: Tensor) -> Tensor:
            return indices**2

    loader = Loader(Squares(), 3, seed=0)
    assert torch.equal(torch.cat(list(loader.batches(1))), loader.order(1)[:6] ** 2)


def test_an_items_augmentation_depends_on_seed_epoch_and_index_only() -> None:
    def brightness(seed: int, epoch: int, batch_size: int) -> dict[int, Tensor]:
        found = {}
        for batch in Loader(NoisyPictures(), batch_size, seed=seed).batches(epoch):
            found |= dict(zip(batch["index"].tolist(), batch["image"][:, 0, 0, 0], strict=True))
        return found

    usual = brightness(1, 0, 4)
    assert len({value.item() for value in usual.values()}) == 24
    for same in (brightness(1, 0, 4), brightness(1, 0, 6)):
        assert usual == same
    for other in (brightness(1, 1, 4), brightness(2, 0, 4)):
        assert all(usual[index] != other[index] for index in usual)


def test_workers_started_by_spawn_give_the_same_batches_in_the_same_order() -> None:
    alone = Loader(NoisyPictures(), 4, seed=1)
    with_workers = Loader(NoisyPictures(), 4, seed=1, n_workers=2)
    state = torch.get_rng_state()
    unfinished = with_workers.batches(5)
    next(unfinished)  # an epoch that is cancelled does not leak into the next
    for epoch, start in ((0, 0), (1, 4)):
        theirs, ours = list(with_workers.batches(epoch, start)), list(alone.batches(epoch, start))
        assert len(theirs) == len(ours) == 6 - start
        for one, other in zip(theirs, ours, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["index"], other["index"])
    assert torch.equal(torch.get_rng_state(), state)


def test_two_epochs_can_be_read_at_once_with_and_without_workers() -> None:
    for n_workers in (0, 1):
        loader = Loader(NoisyPictures(), 6, seed=1, n_workers=n_workers)
        pairs = list(zip(loader.batches(0), loader.batches(1), strict=True))
        for epoch in (0, 1):
            found = torch.cat([pair[epoch]["index"] for pair in pairs])
            assert torch.equal(found, loader.order(epoch)), n_workers


class Deadly(Letters):
    """Item 4 kills the process that reads it, as the kernel does when memory runs out."""

    def __getitem__(self, index: int) -> str:
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_one_clear_line() -> None:
    loader = Loader(Deadly(), 5, seed=0, collate=joined, n_workers=1)
    with pytest.raises(UserError, match="a worker of the data loader died"):
        list(loader.batches(0))


def test_a_broken_item_is_named_with_its_cause() -> None:
    with pytest.raises(UserError, match="item 4 of the data set cannot be read: OSError: truncated picture"):
        list(Loader(Broken(), 2, seed=0).batches(0))


@pytest.mark.parametrize(("batch_size", "message"), [(11, "10 items make no batch of 11"), (0, "at least 1 item")])
def test_a_batch_size_that_makes_no_batch_is_refused(batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Loader(Letters(), batch_size, seed=0)


def test_an_empty_data_set_is_refused() -> None:
    for empty in (torch.zeros(0, 3), []):
        data: Any = empty
        with pytest.raises(UserError, match="0 items make no batch"):
            Loader(data, 1, seed=0, drop_last=False)
