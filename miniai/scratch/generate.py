"""47. A prompt becomes a PNG file: what is asked for is checked first, then painted, with the time left in view.

Names and defaults are those of `miniai generate`, in recipes/generate_request.py.
"""

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import miniai
from miniai.scratch.branches import n_cores
from miniai.scratch.pipeline import GUIDANCE_SCALE, STEPS, StableDiffusionPipeline
from miniai.scratch.png import write_png
from miniai.scratch.tensor import Tensor

PACKAGED_MODEL = Path(__file__).parents[1] / "models" / "emoji"
RANGES = {"steps": (1, 1000), "guidance_scale": (0, 100), "seed": (0, 2**63 - 1), "processes": (1, 2)}


@dataclass(frozen=True)
class GenerateRequest:
    """`model` is a folder; `out` a name, None for a free one made from the prompt; `processes` 1 or 2, None for as many
    as there are cores for."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = STEPS
    guidance_scale: int | float = GUIDANCE_SCALE
    model: Path = PACKAGED_MODEL
    out: Path | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"--{name.replace('_', '-')} {value} is out of range: give {low} to {high}")


def target(request: GenerateRequest) -> Path:
    """Where the picture goes. Raises ValueError, before anything slow has begun, where that cannot be."""
    out = request.out
    if out is None:
        stem = "-".join(re.findall(r"[^\W_]+", request.prompt.lower()))[:60] or "picture"
        numbers = range(2, 1_000_000)
        names = [f"{stem}.png"] if not Path(f"{stem}.png").exists() else (f"{stem}-{i}.png" for i in numbers)
        out = next(path for path in map(Path, names) if not path.exists())
    if out.suffix.lower() != ".png":
        raise ValueError(f"cannot write {out}: pictures are PNG files, give a name that ends in .png")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"cannot write {out}: it is a folder, or its folder is missing or not writable")
    return out


def generate(request: GenerateRequest, say: Callable[[str], None]) -> Path:
    """Paints what is asked for and writes it. `say` shows a line of progress. Raises ValueError or OSError for what the
    user can mend."""
    out = target(request)
    start = time.monotonic()
    try:
        image = painted(request, say)
        write_png(out, image, {"parameters": parameters_text(request, image.shape)})
    finally:
        say("\r".ljust(40) + "\r")  # leaves the line of progress empty
    say(f"seed {request.seed}, {time.monotonic() - start:.0f} s\n")
    return out


def painted(request: GenerateRequest, say: Callable[[str], None]) -> Tensor:
    """The picture, (3, h, w)."""
    say("\rreading the model ")
    n_processes = (request.processes or n_cores()) if request.guidance_scale > 1 else 1
    pipe = StableDiffusionPipeline.from_pretrained(request.model, n_processes)
    n_tokens = pipe.tokenizer.model_max_length - 2
    if len(pipe.tokenizer.encode(request.prompt)) > n_tokens:
        say(f"\rnotice: the prompt is longer than the model's {n_tokens} tokens; what is beyond them is cut off\n")
    start = time.monotonic()

    def after_step(i: int) -> None:
        left = (time.monotonic() - start) / (i + 1) * (request.steps - i - 1)
        say(f"\rstep {i + 1}/{request.steps}  {left:.0f} s left ".ljust(40))

    numbers = request.steps, request.guidance_scale, request.seed
    return pipe(request.prompt, request.negative_prompt, *numbers, after_step)


def parameters_text(request: GenerateRequest, shape: tuple[int, ...]) -> str:
    """The text that the A1111 web interface writes into its PNGs, and that other tools read there."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(
        f"Steps: {request.steps}, Sampler: DPM++ 2M, CFG scale: {request.guidance_scale:g}, Seed: {request.seed}, "
        f"Size: {shape[2]}x{shape[1]}, Model: {request.model.resolve().name}, RNG: CPU, "
        f"Version: miniai {miniai.__version__}"
    )
    return "\n".join(lines)
