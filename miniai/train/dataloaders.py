"""A training and a validation loader together, from what people have: a Hugging Face DatasetDict, a folder, tensors."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.images import open_image
from miniai.train.captions import SUFFIXES, centre_square
from miniai.train.data import Loader
from miniai.train.transforms import CollateColumns, image_to_tensor

VALID_NAMES = ("validation", "valid", "val", "test")


@dataclass(frozen=True)
class DataLoaders:
    """`Learner(model, loaders.train, …, valid=loaders.valid)`."""

    train: Loader
    valid: Loader | None = None

    @classmethod
    def from_dd(
        cls,
        dataset_dict: Mapping[str, Any],
        batch_size: int,
        *,
        seed: int,
        columns: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        train: str = "train",
        valid: str | None = None,
        n_workers: int = 0,
    ) -> "DataLoaders":
        """Loaders of a `datasets.DatasetDict`, or of any mapping from split names to data sets whose items are dicts.

        - columns: what a batch holds, in this order; default: all of the data set's own, in theirs.
        - transform: of each item, such as `OnColumn("image", …)`; pictures become tensors in any case.
        - valid: the split to validate on; default: the first there is of validation, valid, val, test.

        With workers, transform and data set must pickle. Raises UserError for a split or column that is not there.

        >>> from datasets import Dataset, DatasetDict
        >>> parts = {"train": {"x": [0.0, 1.0, 2.0, 3.0], "y": [0, 1, 0, 1]}, "test": {"x": [4.0], "y": [0]}}
        >>> dataset_dict = DatasetDict({name: Dataset.from_dict(columns) for name, columns in parts.items()})
        >>> loaders = DataLoaders.from_dd(dataset_dict, 2, seed=0)
        >>> sorted(x for batch in loaders.train.batches(0) for x in batch[0].tolist())
        [0.0, 1.0, 2.0, 3.0]
        >>> next(iter(loaders.valid.batches(0)))[1]
        tensor([0])
        """
        if valid is None:
            valid = next((name for name in VALID_NAMES if name in dataset_dict and name != train), None)
        for name in (train, valid):
            if name is not None and name not in dataset_dict:
                raise UserError(f"the data has no split {name!r}: there are {', '.join(map(str, dataset_dict))}")
        own = _columns(dataset_dict[train])
        wanted = tuple(own if columns is None else columns)
        if missing := [name for name in wanted if transform is None and name not in own]:
            raise UserError(f"the data has no column {missing[0]!r}: there are {', '.join(own)}")
        collate = CollateColumns(wanted, transform)
        return cls.from_datasets(
            dataset_dict[train],
            None if valid is None else dataset_dict[valid],
            batch_size,
            seed=seed,
            collate=collate,
            n_workers=n_workers,
        )

    @classmethod
    def from_datasets(
        cls, train: Any, valid: Any | None, batch_size: int, *, seed: int, **keywords: Any
    ) -> "DataLoaders":
        """Loaders of two data sets, or of tensors, as Loader takes them; validation keeps its order and its last items.

        >>> x = torch.arange(10.0)
        >>> loaders = DataLoaders.from_datasets((x, x), (x[:3], x[:3]), 4, seed=0)
        >>> len(loaders.train), [len(batch[0]) for batch in loaders.valid.batches(0)]
        (2, [3])
        """
        loader = Loader(train, batch_size, seed=seed, **keywords)
        if valid is None:
            return cls(loader)
        return cls(loader, Loader(valid, batch_size, seed=seed, shuffle=False, drop_last=False, **keywords))


def _columns(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    return list(names) if names is not None else list(dataset[0])


class ImageFolder:
    """Pictures in one folder per class: `root/cat/1.png`, `root/dog/a/2.jpg`. Items are (picture, class number).

    A picture is (3, size, size), float32 in [-1, 1], cut to its middle square; `transform`, if given, comes after.
    Classes are in the order of their names, pictures of each class by path. Pickles, so that workers can read it.
    Raises UserError if the folder is missing or holds no such pictures; a damaged one when it is read, naming it.

    >>> from PIL import Image
    >>> for colour in ("red", "blue"):
    ...     (Path("colours") / colour).mkdir(parents=True)
    ...     Image.new("RGB", (9, 6), colour).save(f"colours/{colour}/1.png")
    >>> folder = ImageFolder("colours", size=4)
    >>> folder.classes, len(folder), folder[1][0][:, 0, 0].tolist(), folder[1][1]
    (('blue', 'red'), 2, [1.0, -1.0, -1.0], 1)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int,
        transform: Callable[[Float[Tensor, "3 h w"]], Tensor] | None = None,
    ) -> None:
        self.root, self.size, self.transform = Path(root), size, transform
        if not self.root.is_dir():
            raise UserError(f"{root} is not a folder; name a folder that holds one folder of pictures for each class")
        folders = sorted(one for one in self.root.iterdir() if one.is_dir() and not one.name.startswith("."))
        self.paths: list[Path] = []
        self.labels: list[int] = []
        names: list[str] = []
        for folder in folders:
            found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if found:
                self.paths += found
                self.labels += [len(names)] * len(found)
                names.append(folder.name)
        if not names:
            raise UserError(f"{root} holds no pictures in folders; it needs one folder of pictures for each class")
        self.classes = tuple(names)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = image_to_tensor(centre_square(open_image(self.paths[index]), self.size))
        return (image if self.transform is None else self.transform(image)), self.labels[index]
