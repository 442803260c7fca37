"""The card beside a trained model: what it was trained on, for how long, on what, and how to do it again."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from miniai.base.device import processor_name
from miniai.base.files import atomic_file
from miniai.recipes.text_to_image_config import TextToImageConfig

CARD = "README.md"
MB = 1e6


def write_model_card(
    folder: Path,
    config: TextToImageConfig,
    data_card: str,
    records: Sequence[Mapping[str, Any]],
    how_to: Sequence[str],
    evaluation: str = "",
    init: Path | None = None,
) -> Path:
    """Write `folder/README.md` beside a model's parts.

    - data_card: what the data set says of itself and its licences, as Markdown.
    - records: what each stage says of itself, see `StageRun.record`.
    - how_to: the commands that make the model again, one after the other.
    - evaluation: the table that `miniai evaluate text-to-image` printed, as Markdown.
    - init: the model that the training went on from, if any.
    """
    parts = ["unet", "vae", "text_encoder"]
    sizes = {part: sum(file.stat().st_size for file in (folder / part).glob("*.safetensors")) for part in parts}
    origin = "from nothing" if init is None else f"on from `{init}`"
    lines = [
        "# A small text-to-image model",
        "",
        f"Stable Diffusion in small: pictures of {config.image_size}×{config.image_size} pixels from prompts of up to "
        f"{config.window - 2} tokens. Trained {origin} by `miniai train text-to-image`; any Stable Diffusion "
        "program that reads the Diffusers layout can load this folder.",
        "",
        "| part | file size, MB (float16) |",
        "| --- | ---: |",
        *(f"| {part} | {size / MB:.1f} |" for part, size in sizes.items()),
        f"| all | {sum(sizes.values()) / MB:.1f} |",
        "",
        f"Latents: {config.vae.latent_channels}×{config.latent_size}×{config.latent_size}, of mean 0 and deviation 1. "
        f"The U-Net predicts {config.schedule.prediction_type.replace('_prediction', '')}.",
        "",
        "## Training",
        "",
        "| stage | parameters | steps | pictures seen | minutes | loss at the end |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {r['stage']} | {r['parameters']:,} | {r['steps']:,} | {r['images']:,} | {r['minutes']} | {r['loss']} |"
            for r in records
        ),
        "",
        f"Machine: {machine()}. To train it again:",
        "",
        "```",
        *how_to,
        "```",
        "",
    ]
    if evaluation:
        lines += ["## Evaluation", "", evaluation.strip(), ""]
    lines += ["## Data and licences", "", data_card.strip(), ""]
    path = folder / CARD
    with atomic_file(path) as file:
        file.write("\n".join(lines).encode())
    return path


def machine() -> str:
    """The processor or GPU that torch computes on here, and torch's version."""
    n_threads = torch.get_num_threads()
    cores = f"{n_threads} thread{'s' if n_threads > 1 else ''} of {processor_name()}"
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else cores
    return f"{where}, torch {torch.__version__}"


def data_card(data: Path, n_pictures: int) -> str:
    """The data set's own card without its title, or a line that says there is none."""
    card = data / "README.md"
    if not card.is_file():
        return f"{n_pictures:,} captioned pictures; their folder has no card."
    text = card.read_text(errors="replace").strip()
    return "\n".join(line for line in text.splitlines() if not line.startswith("# "))


def commands(
    data: Path,
    out: Path,
    minutes: float | None,
    steps: int | None,
    init: Path | None = None,
    stages: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[str]:
    """What to type to train the model again, with such `options`; for an emoji set, how to build that too."""
    record, lines = data / "emoji.json", []
    if record.is_file():
        built = json.loads(record.read_text())
        chosen = f" --groups {shlex.quote(','.join(built['groups']))}" if built.get("groups") else ""
        chosen += "".join(f" --{extra}" for extra in ("combinations", "colours") if built.get(extra))
        weight = built.get("everyday_weight", 1)
        chosen += f" --everyday-weight {weight}" if weight != 1 else ""
        lines.append(f"miniai data emoji --out {_typed(data)} --styles {','.join(built['counts'])}{chosen}")
    start = "" if init is None else f" --init {_typed(init)}"
    start += f" --stages {','.join(stages)}" if init is not None and "vae" in stages else ""
    budget = f"--minutes {minutes:.0f}" if steps is None else f"--steps {steps}"
    rest = " ".join([budget, *options])
    return [*lines, f"miniai train text-to-image --data {_typed(data)} --out {_typed(out)}{start} {rest}"]


def _typed(path: Path) -> str:
    """As it must be typed in a shell."""
    return shlex.quote(str(path))
