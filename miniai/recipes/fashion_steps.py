"""`miniai evaluate fashion-steps`: FID of painted clothes over the number of steps, for several samplers, as a plot."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_records, write_json
from miniai.diffusion.pictures import plot_quality
from miniai.diffusion.sampling import find_sampler, n_calls
from miniai.evaluate.cache import fingerprint
from miniai.recipes.fashion_diffusion_config import N_CLASSES
from miniai.recipes.fashion_judge import Judge
from miniai.recipes.fashion_latent import load_painter
from miniai.recipes.fashion_painting import check_distilled, ladder_for

RESULTS, PLOT = "fid-steps.json", "fid-steps.png"
PAINTED_AS = 2  # raised whenever the same networks and numbers come to paint other pictures


def fashion_steps(
    model: Path,
    classifier: Path,
    *,
    samplers: Sequence[str],
    step_counts: Sequence[int],
    data: Path | None = None,
    out: Path | None = None,
    n: int = 2048,
    guidance_scale: int | float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Paint `n` pictures by each of `samplers` in each of `step_counts`; returns what `out/fid-steps.json` then says,
    and `out/fid-steps.png` shows, over the calls of the network. `out` is `model` by default.

    The file is written after each, and what stands in it with the same weights, pictures, number, seed and guidance is
    not painted again: a broken run goes on. Records of others stay. Raises UserError for a folder without a finished
    training and, before anything is painted, for samplers or numbers of steps that are not there or not its own.
    """
    methods = [find_sampler(name) for name in samplers]
    if not methods or not step_counts or min(step_counts) < 1:
        raise UserError("--samplers and --steps need at least one each, and steps above 0")
    place = pick_device(device)
    paint, config = load_painter(model, place)
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    for method in methods:
        for n_steps in step_counts:
            check_distilled(config, method.name, n_steps, scale)
            ladder_for(config, method, n_steps)
    judge = Judge(classifier, data, place)
    folder = out or model
    make_folder(folder)
    path = folder / RESULTS
    same: dict[str, Any] = {"model": str(model.resolve()), "classifier": str(classifier.resolve())}
    networks = [fingerprint(one) for one in (*paint.args, judge.network) if isinstance(one, torch.nn.Module)]
    pictures = [fingerprint(judge.train.images), fingerprint(judge.test.images)]
    of = hashlib.sha256(repr([networks, pictures, PAINTED_AS]).encode()).hexdigest()
    same |= {"n": n, "seed": seed, "guidance_scale": scale, "of": of}
    kept = read_records(path)
    others = [one for one in kept if not same.items() <= one.items()]
    found = [one for one in kept if same.items() <= one.items()]
    for name, method in zip(samplers, methods, strict=True):
        for n_steps in step_counts:
            this = {"sampler": name, "steps": n_steps, "calls": n_calls(method, n_steps), **same}
            if any(this.items() <= one.items() for one in found):
                continue
            labels = torch.arange(n) % N_CLASSES
            painted = paint(labels, seed=seed, sampler=name, n_steps=n_steps, guidance_scale=guidance_scale)
            found.append({**this, **judge.fid(painted)})
            write_json(path, others + found)
    lines: dict[str, dict[int, int | float]] = {}
    for one in found:
        lines.setdefault(one["sampler"], {})[one["calls"]] = one["fid"]
    plot_quality(folder / PLOT, lines, real=found[0]["fid_of_real"], xlabel="calls of the network")
    return found
