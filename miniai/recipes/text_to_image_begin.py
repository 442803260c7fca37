"""How a training of text to image begins: what is asked for, and what its folder holds already. Nothing is written."""

import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from miniai.base.configs import config_from_dict
from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.diffusion.sampling import sampler_from_file, schedule_config
from miniai.recipes.generate_request import MAX_SEED, check_ranges
from miniai.recipes.model_card import CARD
from miniai.recipes.text_to_image_config import SIZES, TextToImageConfig, gentler
from miniai.recipes.training import refuse_inpainting
from miniai.recipes.unet_stage import SAMPLE_PROMPTS
from miniai.sd.folder import SCHEDULER, Components

STAGES = ("vae", "clip", "latents", "unet", "words", "decoder")
NEEDS = {"latents": ("vae", "clip"), "unet": ("latents",), "words": ("latents", "unet"), "decoder": ("latents", "unet")}
BEGUN = "begun.json"  # what a training was begun with, for a resume
LATENTS = Path("stages", "latents", "latents.safetensors")
PICTURES = "pictures.json"  # beside the latents: what they were made of
N_SAMPLE_PROMPTS = 16


def start_of_run(out: Path, resume: bool, data: Path) -> dict[str, Any]:
    """What the training in `out` was begun with; says so where there is none, or where it had other data."""
    path = out / BEGUN
    kept = read_json(path) if resume and path.is_file() else {}
    if resume and not (out / "config.json").is_file():
        print(f"{out} holds no training to go on with: this is a new one", file=sys.stderr)
    if kept and Path(kept["data"]).resolve() != data.resolve():
        print(f"the training in {out} was begun on {kept['data']}: what is finished stays as it is", file=sys.stderr)
    return kept


def digest(images: UInt8[Tensor, "n 3 h w"], captions: Sequence[Sequence[str]]) -> str:
    """Of pixels and captions, in their order."""
    found = hashlib.sha256(repr([list(texts) for texts in captions]).encode())
    for part in images.split(1024):
        found.update(part.numpy().data)
    return found.hexdigest()


def refuse_other_pictures(out: Path, own: str) -> None:
    """Raise UserError if the latents in `out` were made of other pictures or captions: what is learned from both would
    take one for the other."""
    path, latents = out / LATENTS.with_name(PICTURES), out / LATENTS
    if latents.is_file() and path.is_file() and read_json(path) != {"sha256": own}:
        raise UserError(
            f"the pictures or captions are not those that the latents in {out} were made of: choose another folder as "
            "--out for these"
        )


def config_like(start: Components, config: TextToImageConfig, where: Path) -> TextToImageConfig:
    """`config` with the shapes and the noise schedule of a model that exists, in the folder `where`."""
    vae, unet = start.vae.config, start.unet.config
    refuse_inpainting(unet, where)
    sampler = sampler_from_file(start.scheduler_config, SCHEDULER)
    return replace(
        config,
        image_size=unet.sample_size * vae.factor,
        window=start.tokenizer.model_max_length,
        vocab_size=len(start.tokenizer),
        vae=vae,
        text=start.text_encoder.config,
        vision=replace(config.vision, image_size=unet.sample_size * vae.factor),
        unet=unet,
        schedule=schedule_config(start.scheduler_config, sampler, SCHEDULER),
    )


def check_budget(minutes: float | None, steps: int | None) -> None:
    """Raise UserError unless one of the two is given, and above 0."""
    if (minutes is None) == (steps is None):
        raise UserError("give either --minutes, of training in all, or --steps, of each stage")
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"--minutes {minutes:g} is not possible: give a number above 0")
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps} is not possible: give a number above 0")


def is_written(out: Path) -> bool:
    """Whether `out/model` is of what the stages have made: its card, written last, is younger than all that."""
    card = out / "model" / CARD
    made = [path.stat().st_mtime_ns for path in (out / "stages").rglob("*.safetensors")]
    return card.is_file() and bool(made) and max(made) < card.stat().st_mtime_ns


def sample_prompts(data: Path, captions: Sequence[Sequence[str]]) -> list[str]:
    """What grids of samples show: for emoji always the same things, else captions from all over the data."""
    if (data / "emoji.json").is_file():
        return list(SAMPLE_PROMPTS)
    n = min(N_SAMPLE_PROMPTS, len(captions))
    return [captions[i * len(captions) // n][0] for i in range(n)]


def checked_stages(stages: Sequence[str]) -> tuple[str, ...]:
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise UserError(f"unknown stage {', '.join(unknown) or 'none'}: there are {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in stages)


def config_of(
    out: Path, resume: bool, size: str, config_file: Path | None, seed: int | None, going_on: bool
) -> TextToImageConfig:
    """That of the training in `out`; else from the file, or of that size, gentler if it goes on from a model."""
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}: there are {', '.join(SIZES)}")
    saved = out / "config.json"
    given = (
        None if config_file is None else config_from_dict(TextToImageConfig, read_json(config_file), str(config_file))
    )
    if not saved.is_file():
        config = given or (gentler(SIZES[size]) if going_on else SIZES[size])
        config = config if seed is None else replace(config, seed=seed)
        check_ranges(("--seed", config.seed, 0, MAX_SEED, ""))
        return config
    if not resume:
        raise UserError(f"{out} holds a training already: add --resume to go on with it, or choose another folder")
    config = config_from_dict(TextToImageConfig, read_json(saved), str(saved))
    if seed not in (None, config.seed):
        raise UserError(f"the training in {out} has seed {config.seed}, not {seed}: leave --seed out")
    if given is not None and _with_networks_of(config, given, going_on) != config:
        raise UserError(f"the training in {out} has another config than {config_file}: leave --config out")
    of_size = (SIZES[size].unet, SIZES[size].vae, SIZES[size].unet_stage.batch_size)
    if size != "small" and of_size != (config.unet, config.vae, config.unet_stage.batch_size):
        raise UserError(f"the training in {out} has other networks or batches than --size {size}: leave it out")
    return config


def _with_networks_of(config: TextToImageConfig, given: TextToImageConfig, going_on: bool) -> TextToImageConfig:
    """`given` with the seed of `config`, and with all that the model decides that a training goes on from."""
    decided = ("image_size", "window", "vocab_size", "vae", "text", "vision", "unet", "schedule") if going_on else ()
    return replace(given, **{name: getattr(config, name) for name in (*decided, "seed")})
