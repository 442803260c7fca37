"""The folder of an emoji set: pictures are drawn into it, its metadata is written, and it takes its name when whole."""

import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm

from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.recipes.emoji_captions import captions
from miniai.recipes.emoji_concepts import Concept, Icon
from miniai.recipes.emoji_drawing import render, renderer
from miniai.recipes.emoji_sources import Source

SIZES = (16, 1024)
HELD_OUT_SHARE = 0.05

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Picture:
    """One picture to render and its line in metadata.jsonl. `split` is "train", "test" or "left out"."""

    concept: Concept
    style: str
    icon: Icon
    split: str

    @property
    def file_name(self) -> str:
        """Path inside the folder of the split."""
        return f"{self.style}/{self.concept.hexcode.lower()}.png"


def check_folder(out: Path, record: str, size: int, n_jobs: int) -> None:
    """Refuse what cannot be built, before anything is. `record` is the file whose presence says that a folder was built
    here and may be replaced."""
    if n_jobs < 1:
        raise UserError(f"{n_jobs} jobs draw nothing; give 1 or more")
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"size {size} is out of range; give {SIZES[0]} to {SIZES[1]} pixels")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is a file or a link; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / record).is_file():
        raise UserError(f"{out} holds files that were not built here and is left alone; name a new folder")
    renderer()


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to build a set in, beside `out`; it takes the place of `out` if all went well, and else it is gone."""
    temporary = out.absolute().parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    try:
        _make_temporary(temporary)
        yield temporary
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def falls_out(name: str) -> bool:
    """Whether what has this name is one of the 5 % that are held out: by a hash, the same in every build."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def in_parallel(make: Callable[[Item], Made], items: Sequence[Item], n_jobs: int, progress: bool) -> list[Made]:
    """What `make` makes of each, in threads: the renderer lets go of the interpreter. Ctrl-C stops it at once."""
    with ThreadPoolExecutor(n_jobs) as pool:
        making = pool.map(make, items)
        hidden = None if progress else True  # None: on a terminal alone it is not
        try:
            return list(tqdm(making, total=len(items), desc="drawing", unit="picture", disable=hidden))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # not after the queue


def _render_to(path: Path, picture: Picture, size: int) -> str:
    """Render into a file; the digest of the picture comes back, or "" and no file if nothing is to be seen in it."""
    try:
        data = render(picture.icon, size)
    except ValueError as error:
        raise UserError(f"{picture.style}: its icon {picture.icon.name} cannot be drawn ({error})") from error
    with Image.open(io.BytesIO(data)) as image:
        if image.convert("RGB").getcolors(1) is not None:  # one colour
            return ""
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def render_all(pictures: Iterable[Picture], folder: Path, size: int, n_jobs: int, progress: bool) -> list[Picture]:
    """Render all but those left out; a blank one, or a held-out one that also trains by another name, is dropped."""
    wanted = [picture for picture in pictures if picture.split != "left out"]
    paths = [folder / picture.split / picture.file_name for picture in wanted]
    for parent in {path.parent for path in paths}:
        make_folder(parent)
    pairs = list(zip(paths, wanted, strict=True))
    digests = in_parallel(lambda pair: _render_to(*pair, size), pairs, n_jobs, progress)
    trained = {digest for picture, digest in zip(wanted, digests, strict=True) if picture.split == "train"}
    kept = []
    for picture, path, digest in zip(wanted, paths, digests, strict=True):
        if picture.split == "test" and digest in trained:
            path.unlink()
        elif digest:
            kept.append(picture)
    return kept


def write_metadata(
    folder: Path, pictures: Iterable[Picture], packages: Mapping[str, Source], everyday_weight: int
) -> None:
    """One metadata.jsonl in each split's folder: where Hugging Face `datasets` looks for it."""
    lines: dict[str, list[str]] = {}
    for picture in pictures:
        concept, texts = picture.concept, captions(picture.concept, picture.style, everyday_weight)
        line = {
            "file_name": picture.file_name,
            "text": texts[0],
            "captions": texts,
            "style": picture.style,
            "concept": concept.hexcode,
            "label": concept.label,
            "group": concept.group,
            "subgroup": concept.subgroup,
            "split": picture.split,
            "licence": packages[picture.style].licence,
        }
        lines.setdefault(picture.split, []).append(json.dumps(line, ensure_ascii=False) + "\n")
    for split, texts in lines.items():
        (folder / split / "metadata.jsonl").write_text("".join(texts), encoding="utf-8")


def _make_temporary(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write in {folder.parent}: {(error.strerror or str(error)).lower()}") from error


def _put_in_place(built: Path, out: Path) -> None:
    """Give the finished folder its name; an older set of ours steps aside first and goes when the new one stands."""
    old = built.with_suffix(".old")
    if out.is_dir():
        os.replace(out, old)
    try:
        os.replace(built, out)
    except OSError as error:
        if old.exists():
            os.replace(old, out)
        raise UserError(f"cannot write {out}: {(error.strerror or str(error)).lower()}") from error
    with suppress(OSError):
        shutil.rmtree(old)
