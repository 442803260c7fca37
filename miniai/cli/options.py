"""What several commands share: options, and how to read a list."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from miniai.base.errors import UserError

Model = Annotated[
    Path | None, typer.Option(help="Folder of a model in the Diffusers layout.", show_default="the packaged one")
]
Steps = Annotated[int, typer.Option(help="Denoising steps, 1 to 1000.")]
GuidanceScale = Annotated[
    float, typer.Option(help="How strongly the prompt rules, 0 to 100; up to 1 is no guidance and twice as fast.")
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="Guide only between these noise levels (sigma), such as 0.3 and 5: faster, and another picture.",
        show_default="everywhere",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="ddim, euler, euler_a, dpmpp_2m and others; 'Euler a' and 'DPM++ 2M Karras' work too.",
        show_default="the model's own",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:STRENGTH]", help="LoRA to paint with, 1 as strong as it was trained; several: give it again."
    ),
]
Embedding = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Learned word (textual inversion) for the prompt; several: give it again."),
]
AnyModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|FILE|ID",
        help="Model folder in the Diffusers layout, a single .safetensors or .ckpt file of Stable Diffusion 1.x or "
        "2.x, or the hub id of a model in the local Hugging Face cache.",
        show_default="the packaged one",
    ),
]
OtherVae = Annotated[Path | None, typer.Option(help="File or folder of another autoencoder.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="For a single file: folder with CLIP's vocab.json and merges.txt.", show_default="the cache's"),
]
Variant = Annotated[
    str | None, typer.Option(help="fp16: read the weights that a folder has by that name.", show_default="none")
]
PredictionType = Annotated[
    str | None,
    typer.Option(help="For a single file: epsilon or v_prediction.", show_default="as the file says or looks"),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16; auto is float16 on cuda, else float32.")]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the U-Net first (minutes): for cuda; on a CPU no faster than without, as measured.",
    ),
]
VaeTiling = Annotated[
    bool, typer.Option("--vae-tiling", help="Decode large pictures in tiles: less memory, and faint differences.")
]
VaeSlicing = Annotated[bool, typer.Option("--vae-slicing", help="Decode the pictures one by one: less memory.")]
HeldOut = Annotated[Path, typer.Option(help="Captioned pictures, of which a split named test was held out.")]
Evaluator = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a CLIP that took no part in training.",
        show_default="one that fits the data, or else one trained now",
    ),
]
EvaluatorMinutes = Annotated[float, typer.Option(help="Minutes to train the evaluator, if there is none.")]
Limit = Annotated[
    int | None, typer.Option(help="At most so many pictures, evenly spread.", show_default="all held out")
]


def _check_seed(seed: int) -> int:
    if not 0 <= seed < 2**62:
        raise UserError(f"--seed {seed} is out of range: give 0 to {2**62 - 1}")
    return seed


FirstSeed = Annotated[
    int, typer.Option(help="Seed of the first picture; the next ones count up.", callback=_check_seed)
]
TrainingSeed = Annotated[int, typer.Option(help="Seed of weights, order and noise.", callback=_check_seed)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")]
FashionData = Annotated[
    Path | None, typer.Option(help="Folder of Fashion-MNIST's IDX files.", show_default="Debian's, or Hugging Face's")
]
FashionTraining = Annotated[
    Path, typer.Option(help="Folder of the training: weights, config, log, curves, samples, results.")
]
FashionEpochs = Annotated[float, typer.Option(help="Passes over the 60,000 training pictures.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(option: str, text: str, whole: bool = False) -> list[int | float]:
    """Those in `text`, separated by commas. Raises UserError, naming `option`, for anything else."""
    try:
        found: list[int | float] = [int(word) if whole else float(word) for word in words(text)]
        if not all(map(math.isfinite, found)):
            raise ValueError
        return found
    except ValueError as error:
        kind = "whole numbers" if whole else "numbers"
        raise UserError(f"{option} {text!r} is not possible: give {kind}, separated by commas") from error


@contextmanager
def stage_stops() -> Iterator[None]:
    """A training that Ctrl-C has stopped says how to go on with it."""
    from miniai.recipes.training import StageInterrupted

    try:
        yield
    except StageInterrupted as stop:
        raise KeyboardInterrupt(str(stop)) from stop


def lines(path: Path) -> list[str]:
    """The prompts in a text file, one a line. Raises UserError if it cannot be read, or has none."""
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: give a text file in UTF-8, one prompt a line") from error
    if not any(found):
        raise UserError(f"{path} has no prompts: write one a line")
    return [line for line in found if line]
