"""IDX files, Fashion-MNIST where people have it, DatasetDicts, folders of pictures, and what pickles."""

import gzip
import pickle
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from miniai.base.errors import UserError
from miniai.train import fashion_mnist
from miniai.train.data import Loader
from miniai.train.dataloaders import DataLoaders, ImageFolder
from miniai.train.fashion_mnist import load_fashion_mnist, where_fashion_mnist_is
from miniai.train.idx import KINDS, read_idx
from miniai.train.transforms import CollateColumns, Compose, Normalise, OnColumn, Pad, Resize, ToTensor, image_to_tensor

REAL = Path(__file__).parents[1] / "data" / "fashion-mnist"


def idx_bytes(numbers: np.ndarray, code: int) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in numbers.shape)
    return bytes([0, 0, code, numbers.ndim]) + sizes + numbers.astype(KINDS[code]).tobytes()


@pytest.mark.parametrize("code", KINDS)
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_of_every_kind_are_read_zipped_or_not(tmp_path: Path, code: int, zipped: bool) -> None:
    numbers = np.arange(24).reshape(2, 3, 4)
    raw = idx_bytes(numbers, code)
    (tmp_path / "x").write_bytes(gzip.compress(raw) if zipped else raw)
    found = read_idx(tmp_path / "x")
    assert found.tolist() == numbers.tolist()
    assert found.numpy().dtype == np.dtype(KINDS[code]).newbyteorder("=")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "fewer numbers"),
        (lambda raw: raw + b"\0", "more numbers"),
        (lambda raw: b"PK" + raw[2:], "not an IDX file"),
        (lambda raw: raw[:2] + b"\x07" + raw[3:], "not an IDX file"),
        (lambda raw: raw[:6], "of a size that can be"),
        (lambda raw: raw[:4] + b"\xff" * 8 + raw[12:], "of a size that can be"),
        (lambda raw: gzip.compress(raw)[:-9], "get the file again"),
        (lambda raw: b"", "not an IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_is_wrong(tmp_path: Path, change: Any, message: str) -> None:
    (tmp_path / "x").write_bytes(change(idx_bytes(np.arange(6).reshape(2, 3), 8)))
    with pytest.raises(UserError, match=message) as error:
        read_idx(tmp_path / "x")
    assert str(tmp_path / "x") in str(error.value)


def test_the_real_pictures_are_read_from_a_named_folder() -> None:
    train, test = load_fashion_mnist("train", REAL), load_fashion_mnist("test", REAL)
    assert (train.images.shape, test.images.shape) == ((200, 1, 28, 28), (100, 1, 28, 28))
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # as every description of the data set shows
    assert set(train.labels.tolist()) == set(range(10))
    assert train.images.float().mean().item() == pytest.approx(72.9, abs=5)  # of all 60,000
    scaled = train.scaled(padding=2)
    assert scaled.shape == (200, 1, 32, 32)
    assert (scaled.min().item(), scaled.max().item()) == (-1.0, 1.0)
    assert torch.equal(scaled[:, :, 0], torch.full((200, 1, 32), -1.0))


def test_the_debian_folder_comes_before_the_cache_and_a_named_folder_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", REAL)
    assert load_fashion_mnist().source == str(REAL)
    assert where_fashion_mnist_is()[0] == (str(REAL), True)
    with pytest.raises(UserError) as error:
        load_fashion_mnist("train", tmp_path)
    assert f"looked in {tmp_path})" in str(error.value)
    assert where_fashion_mnist_is(tmp_path) == [(str(tmp_path), False)]
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist") as error:
        load_fashion_mnist()
    assert str(tmp_path / "hf" / "hub") in str(error.value)


def test_the_hugging_face_cache_is_read_as_downloaded_and_as_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "made"))
    real = load_fashion_mnist("test", REAL)
    pictures = [Image.fromarray(one[0].numpy()) for one in real.images[:12]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    whole = datasets.Dataset.from_dict({"image": pictures, "label": real.labels[:12].tolist()}, features=features)

    made = tmp_path / "made" / "zalando-datasets___fashion_mnist" / "default" / "0.0.0" / "abc"
    whole.save_to_disk(str(tmp_path / "saved"))
    made.mkdir(parents=True)
    next((tmp_path / "saved").glob("*.arrow")).rename(made / "fashion_mnist-test.arrow")
    found = load_fashion_mnist("test")
    assert (found.source, torch.equal(found.images, real.images[:12])) == (str(made), True)
    assert torch.equal(found.labels, real.labels[:12])

    downloaded = tmp_path / "hub" / "datasets--zalando-datasets--fashion_mnist" / "snapshots" / "abc" / "fashion_mnist"
    downloaded.mkdir(parents=True)
    whole.to_parquet(str(downloaded / "test-00000-of-00001.parquet"))
    found = load_fashion_mnist("test")
    assert (found.source, torch.equal(found.images, real.images[:12])) == (str(downloaded), True)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", REAL)
    assert load_fashion_mnist("test").source == str(REAL)  # before the cache, where both are there
    assert load_fashion_mnist("test", REAL).source == str(REAL)


def test_a_dataset_dict_makes_loaders_whose_batches_are_its_columns() -> None:
    real = load_fashion_mnist("train", REAL)
    pictures = [Image.fromarray(one[0].numpy()) for one in real.images[:20]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    whole = datasets.Dataset.from_dict({"image": pictures, "label": real.labels[:20].tolist()}, features=features)
    parts = datasets.DatasetDict({"train": whole.select(range(14)), "test": whole.select(range(14, 20))})
    loaders = DataLoaders.from_dd(parts, 4, seed=3)
    assert loaders.valid is not None
    images, labels = next(iter(loaders.train.batches(0)))
    order = loaders.train.order(0)[:4]
    assert torch.equal(images, real.scaled()[order])
    assert torch.equal(labels, real.labels[order])
    assert torch.equal(torch.cat([batch[1] for batch in loaders.valid.batches(0)]), real.labels[14:20])
    padded = DataLoaders.from_dd(
        parts, 4, seed=3, columns=("image",), transform=OnColumn("image", Compose((ToTensor(), Pad(2)))), valid="train"
    )
    assert torch.equal(next(iter(padded.train.batches(0)))[0], real.scaled(2)[order])
    for wrong, message in (({"train": "training"}, "no split 'training'"), ({"columns": ("img",)}, "no column 'img'")):
        with pytest.raises(UserError, match=message):
            DataLoaders.from_dd(parts, 4, seed=3, **wrong)
    assert len(pickle.loads(pickle.dumps(loaders.train.dataset))) == 14


def test_folders_of_pictures_are_classes_by_name(tmp_path: Path) -> None:
    for place, colour in (
        ("cat/b.png", "red"),
        ("cat/sub/a.png", "lime"),
        ("ape/x.jpg", "blue"),
        (".git/y.png", "red"),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), colour).save(tmp_path / place)
    (tmp_path / "empty").mkdir()
    folder = ImageFolder(tmp_path, 4, transform=Pad(1))
    assert folder.classes == ("ape", "cat")
    assert [path.name for path in folder.paths] == ["x.jpg", "b.png", "a.png"]
    image, label = folder[1]
    assert (image.shape, label) == ((3, 6, 6), 1)
    assert image[:, 3, 3].tolist() == [1.0, -1.0, -1.0]
    (tmp_path / "ape" / "z.png").write_text("no picture")
    with pytest.raises(UserError, match=r"item 1 of the data set cannot be read: UserError: .*z\.png"):
        list(Loader(ImageFolder(tmp_path, 4), 4, seed=0).batches(0))
    for wrong, message in ((tmp_path / "empty", "no pictures in folders"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(UserError, match=message):
            ImageFolder(wrong, 4)


TRANSFORMS = [
    ToTensor(),
    Pad(2),
    Resize(8),
    Normalise((0.5,), (0.5,)),
    Compose((Pad(1), Resize(4))),
    OnColumn("image", Pad(1)),
    CollateColumns(("image", "label"), OnColumn("image", Pad(1))),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: type(one).__name__)
def test_transforms_and_collation_pickle_and_come_back_equal(transform: Any) -> None:
    assert pickle.loads(pickle.dumps(transform)) == transform


class Items:
    """A data set of dicts, for spawned workers."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Image.new("L", (2, 2), index), "label": index}


def test_spawned_workers_transform_and_collate_the_same_batches() -> None:
    collate = CollateColumns(("image", "label"), OnColumn("image", Compose((ToTensor(), Pad(1)))))
    alone = Loader(Items(), 2, seed=1, collate=collate)
    workers = Loader(Items(), 2, seed=1, collate=collate, n_workers=1)
    for one, other in zip(alone.batches(0), workers.batches(0), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_pictures_become_tensors_in_their_own_number_of_channels() -> None:
    assert image_to_tensor(Image.new("L", (3, 2), 255)).tolist() == [[[1.0] * 3] * 2]
    assert image_to_tensor(Image.new("RGBA", (3, 2), (255, 0, 0, 255)))[:, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_columns_of_numbers_and_lists_become_tensors_of_the_models_own_type() -> None:
    rows = {
        "score": [0.5, 1.5, 2.5, 3.5],
        "box": [[0.0, 1.0, 2.0]] * 4,
        "grid": [[[1, 2], [3, 4]]] * 4,
        "words": [["a", "b"], ["c"], [], ["d"]],
    }
    whole = datasets.Dataset.from_dict(rows).cast_column("score", datasets.Value("float32"))
    loaders = DataLoaders.from_dd({"train": whole}, 4, seed=0, columns=tuple(rows))
    score, box, grid, words = next(iter(loaders.train.batches(0)))
    assert (score.dtype, box.dtype, grid.dtype) == (torch.float32, torch.float32, torch.int64)
    assert (box.shape, grid.shape) == ((4, 3), (4, 2, 2))
    assert sorted(words) == [[], ["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([[1, 2], [1, 2, 3]], r"column 'x' makes no batch \(shapes \(2,\) and \(3,\)\)"),
        ([1, None], r"column 'x' makes no batch \(NoneType and int\)"),
        ([date(2026, 1, 1)] * 2, r"column 'x' makes no batch \(date\)"),
    ],
)
def test_a_column_that_makes_no_batch_is_named(values: list[Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        CollateColumns(("x",))([{"x": value} for value in values])


def test_pictures_of_data_sets_look_as_those_of_folders() -> None:
    levels = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    grey = image_to_tensor(Image.fromarray(levels))
    assert grey.shape == (1, 4, 4)
    assert torch.allclose(grey[0], torch.from_numpy((levels >> 8).astype(np.float32)) / 127.5 - 1)
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert torch.equal(image_to_tensor(clear), torch.ones(3, 2, 2))
