"""IDX files good and bad, samplers, collation and loading by processes; mean shift."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_items import Broken
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch_oracle import assert_same, draw, few, ours, seeds

from miniai.scratch import meanshift
from miniai.scratch.creation import zeros
from miniai.scratch.data import DataLoader, ImageDataset, batches, collate, read_idx, shuffled
from miniai.scratch.tensor import Tensor


def write_idx(path: Path, values: np.ndarray, zipped: bool = False) -> Path:
    """As the format's author describes it: type, dimensions, sizes, numbers, each with its greatest byte first."""
    code = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}[values.dtype.name]
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    raw = header + values.astype(values.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_type_of_idx_file_is_read(tmp_path: Path, dtype: str, zipped: bool) -> None:
    values = np.arange(12).reshape(3, 2, 2).astype(dtype) * 10
    numbers, shape = read_idx(write_idx(tmp_path / "x.idx", values, zipped))
    assert shape == values.shape
    assert numbers.tolist() == values.flatten().tolist()


def test_a_bad_idx_file_is_named_with_its_fault(tmp_path: Path) -> None:
    path = write_idx(tmp_path / "x.idx", np.zeros((3, 4), np.uint8))
    whole = path.read_bytes()
    faults = {
        b"": "not an IDX file",
        b"<html>": "not an IDX file",
        whole[:6]: "the header is cut off at 6 of 12 bytes",
        whole[:-1]: r"shape \(3, 4\) needs 12 bytes, the file holds 11",
        whole + b"1": r"shape \(3, 4\) needs 12 bytes, the file holds 13",
        gzip.compress(whole)[:-9]: "the gzip data is cut off or damaged",
    }
    for raw, fault in faults.items():
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=f"x.idx: .*{fault}"):
            read_idx(path)


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    images = write_idx(tmp_path / "images.idx", np.arange(7 * 6, dtype=np.uint8).reshape(7, 2, 3))
    labels = write_idx(tmp_path / "labels.idx", np.arange(7, dtype=np.uint8) % 3)
    return ImageDataset(images, labels, mean=0.5, std=0.25)


def test_an_image_comes_with_its_label_and_its_scale(dataset: ImageDataset) -> None:
    image, label = dataset[4]
    assert label == 1
    assert_same(image, (torch.arange(24, 30).double().view(1, 2, 3) / 255 - 0.5) / 0.25)
    with pytest.raises(IndexError, match="index 7 is out of range for a data set of 7"):
        dataset[7]


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "images.idx", np.zeros((3, 2, 2), np.uint8))
    labels = write_idx(tmp_path / "labels.idx", np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="holds 3 images, .* holds 4 labels"):
        ImageDataset(images, labels)
    with pytest.raises(ValueError, match=r"expected \(n, h, w\) and \(n,\)"):
        ImageDataset(labels, images)
    write_idx(labels, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="labels.idx: expected whole numbers from 0 to 255"):
        ImageDataset(images, labels)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_hold_what_pytorchs_loader_gives(dataset: ImageDataset, drop_last: bool) -> None:
    loader = DataLoader(dataset, 3, drop_last=drop_last)
    plain = [
        (torch.tensor(image.tolist(), dtype=torch.float64), label) for image, label in (dataset[i] for i in range(7))
    ]
    theirs = torch.utils.data.DataLoader(plain, 3, drop_last=drop_last)
    found = list(loader)
    assert len(found) == len(loader) == len(theirs)
    for (images, labels), (their_images, their_labels) in zip(found, theirs, strict=True):
        assert_same(images, their_images)
        assert_same(labels, their_labels)


@few
@given(st.integers(1, 20), st.integers(1, 6), seeds, st.booleans())
def test_an_epoch_sees_every_item_once_in_an_order_of_its_own(n: int, size: int, seed: int, drop: bool) -> None:
    order = list(shuffled(n, seed, 0))
    assert sorted(order) == list(range(n))
    assert order == list(shuffled(n, seed, 0))
    assert sum(batches(order, size, drop), []) == (order[: n // size * size] if drop else order)


def test_worker_processes_change_nothing_but_who_does_the_work(dataset: ImageDataset) -> None:
    alone = DataLoader(dataset, 2, seed=3)
    shared = DataLoader(dataset, 2, seed=3, n_workers=2)
    for epoch in (0, 1):
        for (a, b), (c, d) in zip(alone.epoch(epoch), shared.epoch(epoch), strict=True):
            assert a.tolist() == c.tolist()
            assert b.tolist() == d.tolist()
    labels = [[label for _, batch in alone.epoch(epoch) for label in batch.tolist()] for epoch in (0, 1)]
    assert labels[0] != labels[1]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_an_item_that_cannot_be_read_stops_the_epoch_where_it_stands(n_workers: int) -> None:
    epoch = iter(DataLoader(Broken(), 2, n_workers=n_workers))
    assert next(epoch).tolist() == [0, 1]
    with pytest.raises(ValueError, match="item 2 is damaged"):
        next(epoch)


def test_collation_reaches_into_tuples_and_dicts() -> None:
    batch = collate([{"x": zeros(2), "y": (1, 0.5), "name": "a"}, {"x": zeros(2), "y": (2, 1.5), "name": "b"}])
    assert batch["x"].shape == (2, 2)
    assert batch["y"][0].tolist() == [1, 2]
    assert batch["y"][1].dtype == "float64"
    assert batch["name"] == ["a", "b"]


def test_a_loader_without_data_or_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        DataLoader([], 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        DataLoader([1], 0)
    with pytest.raises(ValueError, match="collate got no items"):
        collate([])
    with pytest.raises(RuntimeError, match="equal size"):
        collate([zeros(2), zeros(3)])


@pytest.mark.parametrize("kernel", [meanshift.gaussian, meanshift.triangular, meanshift.flat])
@settings(few, max_examples=10)
@given(st.integers(1, 9), st.integers(1, 3), seeds)
def test_a_step_of_mean_shift_is_the_weighted_mean_of_the_data(kernel, n: int, d: int, seed: int) -> None:
    x = draw((n, d), seed)
    distance = (x[:, None] - x).norm(dim=-1)
    weights = {
        meanshift.gaussian: (-0.5 * (distance / 1.5) ** 2).exp(),
        meanshift.triangular: (1 - distance / 1.5).clamp(0),
        meanshift.flat: (distance <= 1.5).double(),
    }[kernel]
    found = meanshift.mean_shift(ours(x), 1.5, kernel, max_steps=1)
    assert_same(found, weights @ x / weights.sum(1, keepdim=True), 1e-9)


@pytest.mark.parametrize("kernel", [meanshift.gaussian, meanshift.triangular, meanshift.flat])
def test_clusters_are_found_without_being_told_how_many(kernel) -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    x = centres.repeat(12, 1) + 0.5 * draw((36, 2))
    labels, peaks = meanshift.clusters(meanshift.mean_shift(ours(x), 2.5, kernel), 1.0)
    assert labels == [0, 1, 2] * 12
    for peak, centre in zip(peaks.tolist(), centres.tolist(), strict=True):
        assert peak == pytest.approx(centre, abs=0.6)


def test_points_on_a_peak_stay() -> None:
    x = Tensor([[1.0, 2.0], [1.0, 2.0]])
    assert meanshift.mean_shift(x, 1).tolist() == x.tolist()


def test_mean_shift_needs_points_and_a_bandwidth() -> None:
    with pytest.raises(ValueError, match=r"needs points \(n, d\)"):
        meanshift.mean_shift(zeros(0, 2), 1)
    with pytest.raises(ValueError, match="bandwidth and max_steps must be above 0, got 0"):
        meanshift.mean_shift(zeros(2, 2), 0)
