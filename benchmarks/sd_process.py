"""Stable Diffusion 1.5 at full size in processes of their own: ours beside Diffusers, on the CPU.

    python benchmarks/sd_process.py [--repeats 3] [--folder FOLDER] [--dtype float32]

Start is the time from the start of the process to the first call of the U-Net, and to its end; memory is the whole
process's peak, loading included, for one picture of 512 by 512 in 2 steps. Ours is `miniai generate`. The weights are
random, in a folder that is written first (2.1 GB; in float32 4.3), and read once before anything is timed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel, UNetConfig
from miniai.recipes.model_card import machine
from miniai.recipes.training import initial_weights
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tokenizer import CLIPTokenizer

SCHEDULER = {  # Stable Diffusion 1.5's
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
# Each paints a picture with the model in argv[1], into argv[2], in the dtype of argv[4]; argv[3] is when it started.
OURS = """
import sys, time
from miniai.nn.unet import UNet2DConditionModel
def paint():
    from miniai.cli import run
    sys.exit(run(["generate", "a cat", "--model", sys.argv[1], "--dtype", sys.argv[4], "--steps", "2",
                  "--guidance-scale", "7.5", "--seed", "0", "--out", sys.argv[2]]))
"""
THEIRS = """
import sys, time
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
def paint():
    dtype = getattr(torch, sys.argv[4])
    pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=dtype, safety_checker=None)
    pipe("a cat", num_inference_steps=2).images[0].save(sys.argv[2])
"""
TO_FIRST_STEP = """
import os
step = UNet2DConditionModel.forward
def first_step(*arguments, **keywords):
    reached = time.time() - float(sys.argv[3])
    step(*arguments, **keywords)
    print("MEASURED", reached, time.time() - float(sys.argv[3]), flush=True)
    os._exit(0)
UNet2DConditionModel.forward = first_step
paint()
"""
PEAK = """
try:
    paint()
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("MEASURED", int(peak.split()[1]) * 1024, flush=True)
"""
PROGRAMS = {"Diffusers": THEIRS, "miniai": OURS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed starts of each, in turn")
    parser.add_argument("--folder", type=Path, help="a model folder, instead of a fresh one that is deleted again")
    parser.add_argument("--only", choices=["memory", "start"], help="one of the two tables")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args(arguments)
    print(f"{machine()}, {options.dtype}, 512×512\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or write_model(Path(scratch) / "model", getattr(torch, options.dtype))
        if options.only != "start":
            print("| process | peak memory, GB |\n| --- | ---: |")
            for name, program in PROGRAMS.items():
                [peak] = measured(program + PEAK, folder, scratch, options.dtype)
                print(f"| {name} | {peak / 1e9:.2f} |", flush=True)
            print()
        if options.only != "memory":
            starts(folder, scratch, options.repeats, options.dtype)


def write_model(folder: Path, dtype: torch.dtype) -> Path:
    """A model of Stable Diffusion 1.5's size with random weights."""
    tokenizer = CLIPTokenizer.train(["a cat"], 600, 77)
    with initial_weights(0):
        parts = CLIPTextModel(CLIPTextConfig()), UNet2DConditionModel(UNetConfig()), AutoencoderKL(VAEConfig())
    StableDiffusionPipeline(tokenizer, *parts, SCHEDULER).to(dtype).save_pretrained(folder)
    return folder


def starts(folder: Path, scratch: str, repeats: int, dtype: str) -> None:
    """Print how long each takes from the start of its process; the first round only warms the files up."""
    runs: dict[str, list[list[float]]] = {name: [] for name in PROGRAMS}
    for _ in range(repeats + 1):
        for name, program in PROGRAMS.items():
            runs[name].append(measured(program + TO_FIRST_STEP, folder, scratch, dtype))
    print(f"| start, median of {repeats} | first step reached, s | first step done, s |\n| --- | ---: | ---: |")
    for name, rounds in runs.items():
        reached, done = (statistics.median(times) for times in zip(*rounds[1:], strict=True))
        print(f"| {name} | {reached:.2f} | {done:.2f} |", flush=True)


def measured(program: str, folder: Path, scratch: str, dtype: str) -> list[float]:
    """Run a program in a process of its own and return the numbers that it prints."""
    out = os.path.join(scratch, "out.png")
    command = [sys.executable, "-c", program, str(folder), out, str(time.time()), dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("MEASURED")]
    if done.returncode != 0 or len(lines) != 1:
        raise RuntimeError(f"a measured process failed:\n{done.stdout}{done.stderr}")
    return [float(number) for number in lines[0]]


if __name__ == "__main__":
    main()
