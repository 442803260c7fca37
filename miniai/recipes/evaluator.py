"""The judge of a text-to-image model: a CLIP of another seed, which took no part in its training.

It sees the training pictures of a data set and never the held-out ones, so that both the painted and the real held-out
pictures are new to it.
"""

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json, write_json
from miniai.nn.clip import CLIPModel, CLIPTextModel
from miniai.recipes.clip_stage import image_features, text_features, train_clip
from miniai.recipes.text_to_image import load_clip, save_clip
from miniai.recipes.text_to_image_config import SIZES
from miniai.recipes.training import StageRun
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.captions import CaptionedFolder, load_images

SHIPPED = Path(__file__).parent.parent / "models" / "evaluator"
SEED = 1_000_003  # of no training that starts from a small seed
RECORD = "evaluator.json"


@dataclass(frozen=True)
class Evaluator:
    """A CLIP on `device`, its tokenizer, and the record of how it came to be. Pictures it sees have `image_size`."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    device: torch.device
    folder: Path
    record: dict[str, Any]

    @property
    def image_size(self) -> int:
        return self.model.config.vision_config.image_size

    def see(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features of pictures: unit vectors times the root of their length d, so that a coordinate is about 1."""
        features = image_features(self.model, images, self.device)
        return features * features.shape[1] ** 0.5

    def read(self, texts: list[str]) -> Float[Tensor, "n d"]:
        """Features of texts, on the same scale."""
        features = text_features(self.model, self.tokenizer(texts), self.device)
        return features * features.shape[1] ** 0.5


def find_evaluator(
    data: CaptionedFolder,
    device: torch.device,
    *,
    minutes: float | None = 15.0,
    steps: int | None = None,
    size: str = "small",
) -> Evaluator:
    """The evaluator in the package, if the pictures that it learned from are by name those that `data` has for
    training; or the one beside the data, if the captions are the same too; or else one that is trained now, there.

    minutes, steps: how long to train, if it must be (one of them); size: of the CLIP, a name in `SIZES`.
    """
    shipped = read_json(SHIPPED / RECORD)
    if shipped["names"] == names_fingerprint(data):
        return load_evaluator(SHIPPED, device)
    beside = data.root.resolve().with_name(f"{data.root.resolve().name}-evaluator")
    if (beside / RECORD).is_file() and read_json(beside / RECORD).get("data") == data_fingerprint(data):
        return load_evaluator(beside, device)
    train_evaluator(data, beside, device, minutes=minutes, steps=steps, size=size)
    return load_evaluator(beside, device)


def train_evaluator(
    data: CaptionedFolder,
    out: Path,
    device: torch.device,
    *,
    minutes: float | None = 15.0,
    steps: int | None = None,
    size: str = "small",
    seed: int = SEED,
) -> None:
    """Train a CLIP and its tokenizer on the training pictures of `data` and write it to `out`.

    A training that was interrupted goes on where it stopped, if it was for the same data.
    """
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}: there are {', '.join(SIZES)}")
    config, fingerprint = SIZES[size], data_fingerprint(data)
    started = {"data": fingerprint, "size": size, "seed": seed}
    training = out / "training"
    try:
        if training.is_dir() and (not (training / RECORD).is_file() or read_json(training / RECORD) != started):
            shutil.rmtree(training)
    except OSError as error:
        raise UserError(f"cannot empty the folder {training}: {(error.strerror or str(error)).lower()}") from error
    make_folder(training)
    write_json(training / RECORD, started)
    print(f"training an evaluator of {len(data.train):,} pictures in {out}", file=sys.stderr)
    captions = [list(item.captions) for item in data.train]
    tokenizer = CLIPTokenizer.train((text for texts in captions for text in texts), config.vocab_size, config.window)
    run = StageRun("evaluator", training, device, None if steps else minutes, steps)
    model = train_clip(config, load_images(data.train, config.image_size), captions, tokenizer, run, seed)
    save_clip(out, model.cpu(), tokenizer)
    names = names_fingerprint(data)
    write_json(out / RECORD, started | {"names": names, "pictures": len(captions), **run.record()})
    shutil.rmtree(training)


def data_fingerprint(data: CaptionedFolder) -> str:
    """A digest of the training pictures' names and captions: equal for two builds of one data set."""
    digest = hashlib.sha256()
    for item in data.train:
        for part in (item.path.relative_to(data.root).as_posix(), *item.captions):
            digest.update(part.encode() + b"\0")
        digest.update(b"\0")
    return digest.hexdigest()


def names_fingerprint(data: CaptionedFolder) -> str:
    """A digest of the training pictures' names alone, in any order; captions may change meanwhile."""
    names = sorted(item.path.relative_to(data.root).as_posix() for item in data.train)
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def refuse_own_clip(evaluator: Evaluator, text_encoder: CLIPTextModel) -> None:
    """Raises UserError if the evaluator's text encoder is the painter's: it would judge its own pupil."""
    own = text_encoder.text_model.embeddings.token_embedding.weight
    judge = evaluator.model.text_model.embeddings.token_embedding.weight
    if own.shape == judge.shape and torch.equal(own.half().cpu(), judge.half().cpu()):
        raise UserError(f"{evaluator.folder} is the CLIP that the model was trained with: name one of another training")


def load_evaluator(folder: Path, device: torch.device) -> Evaluator:
    """The evaluator in `folder`, which holds what `save_clip` writes. Raises UserError if it cannot be read."""
    model, tokenizer = load_clip(folder)
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    return Evaluator(model.to(device), tokenizer, device, folder, record)
