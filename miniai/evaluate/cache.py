"""Features and statistics that took minutes to compute, kept in a file under a name that says what they are of.

The name is made of the data, the preprocessing and the network: change any of them and it is another file, so that a
stale one is never taken for a fresh one.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.base.weights import read_metadata, read_weights, write_weights
from miniai.evaluate.fid import Moments, moments


@dataclass(frozen=True)
class FeatureKey:
    """What features are of: any text or `fingerprint` for each of the three.

    >>> key = FeatureKey(data="test images", preprocessing="padded to 32, [-1, 1]", network="classifier 1")
    >>> key.file_name() == FeatureKey("test images", "padded to 32, [-1, 1]", "classifier 1").file_name()
    True
    >>> key.file_name() == FeatureKey("test images", "padded to 32, [0, 1]", "classifier 1").file_name()
    False
    """

    data: str
    preprocessing: str
    network: str

    def file_name(self, kind: str = "features") -> str:
        """What is kept, features or their moments, and a name in 24 hexadecimal digits."""
        text = "\0".join((self.data, self.preprocessing, self.network))
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def fingerprint(of: Tensor | Mapping[str, Tensor] | nn.Module) -> str:
    """SHA-256 of the names, kinds, shapes and bytes of a tensor, a dict of them, or all weights of a module.

    >>> zeros, ones = torch.zeros(2), torch.ones(2)
    >>> fingerprint(zeros) == fingerprint(zeros.clone()), fingerprint(zeros) == fingerprint(ones)
    (True, False)
    """
    named = {"": of} if isinstance(of, Tensor) else of.state_dict() if isinstance(of, nn.Module) else of
    digest = hashlib.sha256()
    for name, tensor in named.items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def cached(
    folder: str | os.PathLike[str],
    key: FeatureKey,
    compute: Callable[[], Mapping[str, Tensor]],
    kind: str = "features",
) -> dict[str, Tensor]:
    """What `compute()` gave for `key` when it was first asked for; from then on read from `folder`. What is of another
    `kind` has a file of its own.

    A damaged file, or one that says it is of something else, is computed anew. Raises UserError if the folder cannot be
    made or written.
    """
    path = Path(folder) / key.file_name(kind)
    if path.is_file():
        try:
            if {name: read_metadata(path).get(name) for name in asdict(key)} == asdict(key):
                return read_weights(path)
        except UserError:
            pass  # damaged: computed anew below, and overwritten
    make_folder(path.parent)  # before the work, which is lost if it cannot be kept
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
    write_weights(path, tensors, asdict(key))
    return tensors


def cached_features(
    folder: str | os.PathLike[str], key: FeatureKey, compute: Callable[[], Float[Tensor, "n d"]]
) -> Float[Tensor, "n d"]:
    """Features of `key`, for KID and FID alike.

    >>> key = FeatureKey("a", "b", "c")
    >>> first = cached_features("cache", key, lambda: torch.ones(3, 2))
    >>> torch.equal(cached_features("cache", key, lambda: torch.zeros(3, 2)), first)
    True
    """
    return cached(folder, key, lambda: {"features": compute()})["features"]


def cached_moments(
    folder: str | os.PathLike[str], key: FeatureKey, compute: Callable[[], Float[Tensor, "n d"]]
) -> Moments:
    """Mean and covariance of the features of `key`: all that FID needs, and much smaller than the features.

    >>> key = FeatureKey("a", "b", "c")
    >>> cached_moments("cache", key, lambda: torch.tensor([[1.0], [3.0]])).mean.item()
    2.0
    """

    def both() -> dict[str, Tensor]:
        found = moments(compute())
        return {"mean": found.mean, "covariance": found.covariance}

    tensors = cached(folder, key, both, "moments")
    return Moments(tensors["mean"], tensors["covariance"])
