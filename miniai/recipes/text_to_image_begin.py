"""How a training of text to image begins: what is asked for, and what its folder holds already. Nothing is written."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from miniai.base.configs import config_from_dict
from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.recipes.model_card import CARD
from miniai.recipes.text_to_image_config import SIZES, TextToImageConfig, gentler
from miniai.recipes.unet_stage import SAMPLE_PROMPTS

STAGES = ("vae", "clip", "latents", "unet", "words", "decoder")
NEEDS = {"latents": ("vae", "clip"), "unet": ("latents",), "words": ("latents", "unet"), "decoder": ("latents", "unet")}
BEGUN = "begun.json"  # what a training was begun with, for a resume
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
    if not saved.is_file():
        config = gentler(SIZES[size]) if going_on else SIZES[size]
        if config_file is not None:
            config = config_from_dict(TextToImageConfig, read_json(config_file), str(config_file))
        return config if seed is None else replace(config, seed=seed)
    if not resume:
        raise UserError(f"{out} holds a training already: add --resume to go on with it, or choose another folder")
    config = config_from_dict(TextToImageConfig, read_json(saved), str(saved))
    if seed not in (None, config.seed):
        raise UserError(f"the training in {out} has seed {config.seed}, not {seed}: leave --seed out")
    if size != "small" and (SIZES[size].unet, SIZES[size].vae) != (config.unet, config.vae):
        raise UserError(f"the training in {out} has other networks than --size {size}: leave it out")
    return config
