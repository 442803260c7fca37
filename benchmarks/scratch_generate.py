"""The packaged model run by miniai/scratch: in a bare environment, with Numba, and beside PyTorch, from the same seed.

python benchmarks/scratch_generate.py [--numba PYTHON] [--out benchmarks/results/scratch_generate.md]

`--numba` names a Python in whose environment Numba is installed, if this one's is not to be taken. Times are those of
the whole command, reading the model and compiling included; it uses 2 cores where there are as many.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from miniai.base.seeds import make_generator
from miniai.recipes.generate_request import GUIDANCE_SCALE, packaged_model
from miniai.sd.pipeline import StableDiffusionPipeline

ROOT = Path(__file__).parents[1]
PROMPT = "a red apple, twemoji style"
SEED = 0


def run(python: Path, n_steps: int, out: Path) -> float:
    """Paints with `python -m miniai.scratch generate`; returns seconds."""
    command = [python, "-m", "miniai.scratch", "generate", PROMPT, "--steps", str(n_steps), "--seed", str(SEED)]
    start = time.monotonic()
    subprocess.run([*command, "--out", out], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def difference(path: Path, n_steps: int) -> tuple[int, float]:
    """Against the picture of the PyTorch path: the greatest difference of a level, and the share of levels that differ
    at all."""
    pipe = StableDiffusionPipeline.from_pretrained(packaged_model())
    request = {"num_inference_steps": n_steps, "guidance_scale": GUIDANCE_SCALE}
    wanted = pipe(PROMPT, **request, generator=make_generator(SEED)).images[0]
    with Image.open(path) as picture:
        apart = np.abs(np.asarray(picture).astype(int) - np.asarray(wanted).astype(int))
    return int(apart.max()), float((apart > 0).mean())


def version(python: Path) -> str:
    return re.sub("[^0-9.]", "", subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--numba", type=Path, help="a Python with Numba")
    parser.add_argument("--out", type=Path, help="where to write the table")
    options = parser.parse_args()
    n_cores = len(os.sched_getaffinity(0))
    lines = [
        f"{PROMPT!r}, seed {SEED}, {min(n_cores, 2)} processes on {n_cores} cores ({platform.machine()}), "
        f"torch {torch.__version__} beside it; the command's whole time.",
        "",
        "| Python | steps | seconds | greatest difference from PyTorch, of 255 | pixels' levels that differ |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "bare", with_pip=False)
        bare = Path(folder) / "bare" / "bin" / "python"
        runs = [("no package installed", bare, 8), ("no package installed", bare, 20)]
        runs += [("with Numba", options.numba or Path(sys.executable), n) for n in (8, 20)]
        for name, python, n_steps in runs:
            out = Path(folder) / "picture.png"
            seconds = run(python, n_steps, out)
            most, share = difference(out, n_steps)
            row = f"| {version(python)}, {name} | {n_steps} | {seconds:.1f} | {most} | {100 * share:.3f} % |"
            print(row, flush=True)
            lines.append(row)
    if options.out:
        options.out.write_text("\n".join(["# Stable Diffusion on the standard library", "", *lines, ""]))


if __name__ == "__main__":
    main()
