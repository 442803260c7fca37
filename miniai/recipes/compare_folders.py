"""`miniai evaluate folders`: FID and KID of the pictures in two folders, on the features they are published on."""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.images import open_image, to_tensor
from miniai.evaluate.cache import FeatureKey, cached_features, fingerprint
from miniai.evaluate.fid import fid, kid
from miniai.evaluate.perceptual import features_in_batches

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FEWEST = 4  # pictures, for KID
MOST_PIXELS = 2**23  # of a batch, of any number of pictures: 100 MB in float32


def compare_folders(
    a: Path, b: Path, network: nn.Module, *, cache: Path, batch_size: int = 32, seed: int = 0
) -> dict[str, Any]:
    """FID, and KID with its deviation, between all pictures below `a` and all below `b`, on `network`'s output for
    pictures in [-1, 1]. What it saw of a folder is kept in `cache` until a picture or the network changes.

    Raises UserError for a folder with fewer than four pictures, or with one that cannot be read.
    """
    of_network = fingerprint(network)
    of_a, of_b = (folder_features(folder, network, of_network, cache, batch_size) for folder in (a, b))
    return {
        "a": str(a),
        "b": str(b),
        "n_a": len(of_a),
        "n_b": len(of_b),
        "fid": fid(of_a, of_b),
        **{f"kid_{name}": value for name, value in asdict(kid(of_a, of_b, seed=seed)).items()},
    }


def folder_features(
    folder: Path, network: nn.Module, of_network: str, cache: Path, batch_size: int
) -> Float[Tensor, "n d"]:
    """A row for each picture below `folder`, in the order of their paths."""
    paths = pictures_below(folder)
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    key = FeatureKey(data=digest.hexdigest(), preprocessing="RGB in [-1, 1]", network=of_network)

    def compute() -> Float[Tensor, "n d"]:
        return torch.cat([features_in_batches(network, batch) for batch in batches(paths, batch_size)])

    return cached_features(cache, key, compute)


def pictures_below(folder: Path) -> list[Path]:
    """Raises UserError if there is no such folder, or if it holds too few."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: check the path")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(found) < FEWEST:
        raise UserError(f"{folder} has {len(found)} pictures ({', '.join(SUFFIXES)}): at least {FEWEST} are needed")
    return found


def batches(paths: Sequence[Path], batch_size: int) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """The pictures in order, those of one size that follow one another together, large ones fewer at a time."""
    images = (to_tensor([open_image(path)]) for path in paths)
    for shape, alike in itertools.groupby(images, key=lambda image: image.shape):
        at_once = max(1, min(batch_size, MOST_PIXELS // (shape[-2] * shape[-1])))
        while some := list(itertools.islice(alike, at_once)):
            yield torch.cat(some)


def default_cache() -> Path:
    """`miniai/features` in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miniai" / "features"
