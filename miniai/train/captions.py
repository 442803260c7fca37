"""Folders of captioned pictures: anyone's, in the two layouts that people have.

- Hugging Face ImageFolder: a `metadata.jsonl` or `metadata.csv` with `file_name` and `text` (and, here, optionally
  `captions`, a list of more), in the folder itself or in each of its split folders `train/`, `test/`, `validation/`;
- a `.txt` of the same name beside each picture, one caption a line, in all folders that have no such file.

What is hidden (".cache") is passed over. Everything that is wrong with a folder is found before training starts, and
told in one report.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.images import open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
OTHER_PICTURES = (".tif", ".tiff", ".avif", ".heic", ".jp2", ".svg", ".psd", ".ico", ".tga", ".jxl")
METADATA = ("metadata.jsonl", "metadata.csv")
HELD_OUT = frozenset(
    {"heldout", "held_out", "held-out", "test", "testing", "validation", "valid", "val", "dev", "eval"}
)
TOO_MANY = "more than the first line names"
MAX_LISTED = 20
N_THREADS = 2


@dataclass(frozen=True)
class CaptionedItem:
    """One picture: where it is, its captions (one or more, the main one first; one that stands there twice is twice as
    likely to be drawn), its split, and its other fields."""

    path: Path
    captions: tuple[str, ...]
    split: str = "train"
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The main caption."""
        return self.captions[0]

    @property
    def held_out(self) -> bool:
        """Whether the picture's split keeps it out of training."""
        return self.split.lower() in HELD_OUT


@dataclass(frozen=True)
class CaptionedFolder:
    """All pictures of a folder. `train` and `heldout` part them; a picture is in exactly one of the two."""

    root: Path
    items: tuple[CaptionedItem, ...]

    @property
    def train(self) -> tuple[CaptionedItem, ...]:
        """The pictures to train on."""
        return tuple(item for item in self.items if not item.held_out)

    @property
    def heldout(self) -> tuple[CaptionedItem, ...]:
        """The pictures of the splits test, validation and heldout (and their short names)."""
        return tuple(item for item in self.items if item.held_out)


def read_captioned_folder(folder: Path) -> CaptionedFolder:
    """Read the captions in `folder` and open every picture once; the order is that of the metadata, or by name.

    Raises UserError: the folder is missing or holds no captioned pictures, or, as one report whose first line says
    how much is wrong, every missing, unreadable or unknown picture, empty caption, duplicate or broken line in it
    (the first 20 of them by name).

    >>> for name, caption in (("apple", "a red apple"), ("pear", "a green pear")):
    ...     Image.new("RGB", (8, 8)).save(f"{name}.png")
    ...     _ = Path(f"{name}.txt").write_text(caption)
    >>> folder = read_captioned_folder(Path("."))
    >>> [item.text for item in folder.train], load_images(folder.train, 4).shape
    (['a red apple', 'a green pear'], torch.Size([2, 3, 4, 4]))
    """
    folder = Path(os.path.normpath(folder))
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; name a folder of captioned pictures, or build one with 'miniai data emoji'"
        )
    problems: list[str] = []
    tables = _metadata_files(folder)
    named: set[Path] = set()
    found = list(_from_metadata(folder, tables, named, problems))
    found += _from_text_files(folder, [table.parent for table in tables], problems)
    items = _without_duplicates(folder, found, problems)
    problems += _unlisted(folder, tables, named)
    items = _readable(folder, items, problems)
    if not items and not problems:
        raise UserError(
            f"{folder} holds no captioned pictures; it needs metadata.jsonl or metadata.csv (file_name, text), "
            "or a .txt beside each picture"
        )
    if problems:
        raise UserError(_report(folder, problems, len(items)))
    return CaptionedFolder(folder, tuple(items))


def load_images(items: Sequence[CaptionedItem], size: int, whole: bool = False) -> UInt8[Tensor, "n 3 h w"]:
    """The pictures as one uint8 tensor in memory, 0 to 255, h = w = size pixels.

    A picture of another size is scaled until its shorter edge has `size` pixels and then cropped to its centre; or, if
    it is to be seen `whole`, set on a white square and scaled with that.
    The tensor takes 3 * size^2 bytes a picture: 9,200 pictures of 64 pixels take 113 MB.
    """
    images = torch.empty(len(items), 3, size, size, dtype=torch.uint8)

    def load(index: int) -> None:
        picture = open_image(items[index].path)
        square = on_white_square(picture, size) if whole else centre_square(picture, size)
        images[index] = torch.from_numpy(np.array(square)).permute(2, 0, 1)

    with ThreadPoolExecutor(N_THREADS) as pool:
        for _ in pool.map(load, range(len(items))):
            pass
    return images


def on_white_square(image: Image.Image, size: int) -> Image.Image:
    """The picture, scaled so that its longer edge is `size` pixels, in the middle of a white square."""
    scale = size / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    square = Image.new("RGB", (size, size), "white")
    scaled = image.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return square


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The picture scaled so that its shorter edge is `size` pixels, and its middle square."""
    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(edge * scale)) for edge in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    per_column, per_row = image.width / width, image.height / height
    box = (left * per_column, top * per_row, (left + size) * per_column, (top + size) * per_row)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)  # a thin one would be huge before the crop


def visible_files(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden and in no hidden folder, by name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def split_of(folder: Path, path: Path) -> str:
    """The split that a picture of `folder` is in by where it stands."""
    top = path.relative_to(folder).parts[0].lower()
    return top if top in HELD_OUT else "train"


def _metadata_files(folder: Path) -> list[Path]:
    """The folder's own metadata file, or else those of its split folders."""
    own = [folder / name for name in METADATA if (folder / name).is_file()]
    if own:
        return own[:1]
    return [path for sub in sorted(folder.iterdir()) if sub.is_dir() for path in _metadata_files_in(sub)]


def _metadata_files_in(folder: Path) -> list[Path]:
    return [folder / name for name in METADATA if (folder / name).is_file()][:1]


def _from_metadata(folder: Path, tables: list[Path], named: set[Path], problems: list[str]) -> Iterator[CaptionedItem]:
    """The items of all good lines; `named` gathers every picture that any line names."""
    for table in tables:
        for where, row in _rows(folder, table, problems):
            try:
                named.add((table.parent / str(row.get("file_name"))).resolve())
                item = _item(folder, table, row)
            except (OSError, ValueError):  # a name that no file system has: a null byte, thousands of letters
                item = "file_name is not a file's name"
            if isinstance(item, str):
                problems.append(f"{where}: {item}")
            else:
                yield item


def _rows(folder: Path, table: Path, problems: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("metadata.jsonl, line 3", that line's fields) for every line that can be read."""
    name = table.relative_to(folder)
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{name}: cannot be read as UTF-8 text ({error})")
        return
    if table.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey=TOO_MANY)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for row in reader:
                yield f"{name}, line {reader.line_num}", row
        except csv.Error as error:
            problems.append(f"{name}, line {reader.line_num}: not CSV ({error})")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield f"{name}, line {number}", value
        else:
            problems.append(f"{name}, line {number}: not a JSON object")


def _item(folder: Path, table: Path, row: Mapping[str, Any]) -> CaptionedItem | str:
    """The item of a metadata line, or what is wrong with the line."""
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        return "no file_name"
    path = Path(os.path.normpath(table.parent / file_name))
    path.is_file()  # raises for a name that cannot be one
    if not path.is_relative_to(os.path.normpath(table.parent)):
        return f"{file_name} lies outside the folder"
    if TOO_MANY in row:
        return f"{file_name}: more fields than the first line names; a text with commas stands between quotes"
    more = row.get("captions") or []
    more = [more] if isinstance(more, str) else more
    if not isinstance(more, list):
        return f"{file_name}: captions is not a list"
    captions = [row.get("text"), *more] if row.get("text") is not None or not more else more
    if not all(isinstance(caption, str | None) for caption in captions):
        return f"{file_name}: a caption is no text"
    if not all(caption and caption.strip() for caption in captions):
        return f"{file_name}: empty caption" if "text" in row or more else f"{file_name}: no text"
    split, named = split_of(folder, path), row.get("split")
    if split == "train" and isinstance(named, str) and named.strip():
        split = named
    fields = {key: value for key, value in row.items() if key not in ("file_name", "text", "captions", "split")}
    texts = [caption.strip() for caption in captions]
    if len(texts) > len(more) and texts[0] in texts[1:]:
        del texts[texts.index(texts[0], 1)]  # the main one, which stands among the others as well
    return CaptionedItem(path, tuple(texts), split, fields)


def _from_text_files(folder: Path, without: list[Path], problems: list[str]) -> Iterator[CaptionedItem]:
    """The items that have a .txt beside them, in no folder of `without`."""
    names = [path for path in visible_files(folder) if not any(path.is_relative_to(other) for other in without)]
    texts = {path.with_suffix(""): path for path in names if path.suffix.lower() == ".txt"}
    pictures = [path for path in names if path.suffix.lower() in SUFFIXES]
    others = [path for path in names if path.suffix.lower() in OTHER_PICTURES]
    problems += [f"{path.relative_to(folder)}: unknown format, convert it to PNG or JPEG" for path in others]
    for path in pictures:
        text_file, name = texts.get(path.with_suffix("")), path.relative_to(folder)
        if text_file is None:
            problems.append(f"{name}: no caption ({path.with_suffix('.txt').name} is missing)")
            continue
        try:
            lines = [line.strip() for line in text_file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError):
            problems.append(f"{text_file.relative_to(folder)}: cannot be read as UTF-8 text")
            continue
        captions = tuple(line for line in lines if line)
        if captions:
            yield CaptionedItem(path, captions, split_of(folder, path))
        else:
            problems.append(f"{name}: empty caption")


def _without_duplicates(folder: Path, items: list[CaptionedItem], problems: list[str]) -> list[CaptionedItem]:
    first: dict[Path, CaptionedItem] = {}
    for item in items:
        if item.path in first:
            problems.append(f"{item.path.relative_to(folder)}: listed twice")
        first.setdefault(item.path, item)
    return list(first.values())


def _unlisted(folder: Path, tables: list[Path], named: set[Path]) -> list[str]:
    """Pictures beside the metadata that no line names: a caption was forgotten."""
    present = [p for table in tables for p in visible_files(table.parent) if p.suffix.lower() in SUFFIXES]
    return [
        f"{path.relative_to(folder)}: no caption (in no line of the metadata)"
        for path in present
        if path.resolve() not in named
    ]


def _readable(folder: Path, items: list[CaptionedItem], problems: list[str]) -> list[CaptionedItem]:
    """The items whose pictures open; the others become problems."""

    def check(item: CaptionedItem) -> str:
        name = item.path.relative_to(folder)
        if not item.path.is_file():
            return f"{name}: missing"
        try:
            open_image(item.path)
        except UserError as error:
            return str(error).replace(str(item.path), str(name))
        return ""

    with ThreadPoolExecutor(N_THREADS) as pool:
        found = list(pool.map(check, items))
    problems += [problem for problem in found if problem]
    return [item for item, problem in zip(items, found, strict=True) if not problem]


def _report(folder: Path, problems: list[str], n_good: int) -> str:
    n = len(problems)
    lines = [f"{folder}: {n} problem{'s' if n > 1 else ''} to mend before training ({n_good} pictures are fine):"]
    lines += [f"  {problem}" for problem in problems[:MAX_LISTED]]
    if n > MAX_LISTED:
        lines.append(f"  … and {n - MAX_LISTED} more")
    return "\n".join(lines)
