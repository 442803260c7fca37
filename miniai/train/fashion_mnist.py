"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey pictures of clothes, 28×28, in ten classes; where to find it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from miniai.base.errors import UserError
from miniai.train.idx import find_idx, read_idx

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
Split = Literal["train", "test"]
PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
HUB_NAMES = ("zalando-datasets", "fashion_mnist")
HOW_TO_GET_IT = (
    "install Debian's package (apt-get install dataset-fashion-mnist), or put the four IDX files of "
    "github.com/zalandoresearch/fashion-mnist into a folder and name it with --data"
)


@dataclass(frozen=True)
class LabelledImages:
    """Grey pictures, 0 to 255, with their classes, 0 to 9; `source` says where they came from.

    >>> few = LabelledImages(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 9, 1]), "nowhere")
    >>> few.scaled(padding=2).shape, CLASSES[few.labels[1]]
    (torch.Size([3, 1, 32, 32]), 'Ankle boot')
    """

    images: UInt8[Tensor, "n 1 h w"]
    labels: Int64[Tensor, " n"]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def scaled(self, padding: int = 0) -> Float[Tensor, "n 1 h2 w2"]:
        """The pictures as float32 in [-1, 1], with `padding` black pixels on every side: 2 makes them 32×32."""
        images = torch.nn.functional.pad(self.images, (padding,) * 4)
        return images.float() / 127.5 - 1


def load_fashion_mnist(split: Split = "train", folder: str | os.PathLike[str] | None = None) -> LabelledImages:
    """The 60,000 training or 10,000 test pictures, in the files' order.

    Looked for in this order: `folder` alone, if given (`--data`); Debian's package; the Hugging Face cache, read by
    `datasets` (extra `data`). Nothing is downloaded. Raises UserError, saying where it looked and how to get the data,
    if it is not there, or if a file is damaged.

    >>> try:
    ...     load_fashion_mnist("test", "no/such/folder")
    ... except UserError as error:
    ...     print("looked in no/such/folder" in str(error), "apt-get install" in str(error))
    True True
    """
    places = [Path(folder)] if folder is not None else [DEBIAN]
    for place in places:
        images, labels = (find_idx(place, name) for name in _names(split))
        if images is not None and labels is not None:
            return _checked(read_idx(images), read_idx(labels), str(place))
    if folder is None:
        cached = cached_files(split)
        if cached:
            return _from_hugging_face(cached)
    looked = [str(place) for place in places] + ([] if folder is not None else [str(one) for one in cache_folders()])
    raise UserError(f"Fashion-MNIST is not there (looked in {', '.join(looked)}): {HOW_TO_GET_IT}")


def where_fashion_mnist_is(folder: str | os.PathLike[str] | None = None) -> list[tuple[str, bool]]:
    """Every place that `load_fashion_mnist` looks in, in order, and whether the whole data set is there."""
    places = [DEBIAN] if folder is None else [Path(folder)]
    names = [name for split in PREFIX for name in _names(split)]
    found = [(str(place), all(find_idx(place, name) for name in names)) for place in places]
    if folder is None:
        complete = bool(cached_files("train") and cached_files("test"))
        found += [(str(place), complete and place.is_dir()) for place in cache_folders()]
    return found


def cache_folders() -> list[Path]:
    """Where Hugging Face's programs keep this data set: the hub's downloads, and what `datasets` made of them."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    made = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    owner, name = HUB_NAMES
    return [hub / f"datasets--{owner}--{name}", hub / f"datasets--{name}", made / f"{owner}___{name}", made / name]


def cached_files(split: Split) -> list[Path]:
    """The files of `split` in the Hugging Face cache: Parquet as downloaded, or Arrow as made of it; [] if none."""
    for folder in cache_folders():
        for pattern in (f"snapshots/*/**/{split}-*.parquet", f"**/*{split}*.arrow"):
            found = sorted(folder.glob(pattern))
            if found:
                return [path for path in found if path.parent == found[0].parent]
    return []


def _from_hugging_face(files: list[Path]) -> LabelledImages:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{files[0]} needs the package `datasets` to be read: pip install 'miniai[data]'") from error
    try:
        parts: list[Any] = [
            datasets.Dataset.from_file(str(path))
            if path.suffix == ".arrow"
            else datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
            for path in files
        ]
        images = np.stack([np.asarray(image.convert("L")) for part in parts for image in part["image"]])
        labels = [label for part in parts for label in part["label"]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {files[0]} ({error}): delete it and get the data again") from error
    return _checked(torch.from_numpy(images), torch.tensor(labels), str(files[0].parent))


def _names(split: Split) -> tuple[str, str]:
    return f"{PREFIX[split]}-images-idx3-ubyte", f"{PREFIX[split]}-labels-idx1-ubyte"


def _checked(images: Tensor, labels: Tensor, source: str) -> LabelledImages:
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or images.dtype != torch.uint8:
        raise UserError(
            f"{source}: pictures {tuple(images.shape)} and labels {tuple(labels.shape)} do not fit together"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        raise UserError(f"{source}: labels must lie within 0 to 9: get the files again")
    return LabelledImages(images[:, None].contiguous(), labels.long(), source)
