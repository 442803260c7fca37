"""Short trainings of the VAE and of CLIP from nothing, by AdamW and by Muon: which learns more from as many pictures.

    miniai data emoji --out data/emoji-core --styles noto,twemoji,fluent-emoji-flat --groups core
    python benchmarks/stage_trials.py --data data/emoji-core --out runs/stage-trials      all; those done are kept
    python benchmarks/stage_trials.py vae vae-muon                                        these alone

Each sees the same pictures in the same order from the same first weights, and is judged on pictures held out: the VAE
by its errors of pixels and edges, CLIP by how often it finds the right caption of 32. The table goes to
`--out`/stage_trials.md.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from miniai.base.device import pick_device
from miniai.base.files import make_folder, write_json
from miniai.evaluate.retrieval import draw_candidates, largest_k, retrieved
from miniai.recipes.clip_stage import image_features, text_features, train_clip
from miniai.recipes.text_to_image_config import SMALL, StageConfig, TextToImageConfig
from miniai.recipes.training import StageRun
from miniai.recipes.vae_stage import edge_error, to_float, train_vae
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.captions import CaptionedFolder, load_images, read_captioned_folder

Change = Callable[[StageConfig], StageConfig]


def by(optimizer: Literal["adamw", "muon"], times: float = 1.0) -> Change:
    """The stage by that optimizer, at so many times its learning rate."""
    return lambda stage: replace(stage, optimizer=optimizer, learning_rate=times * stage.learning_rate)


TRIALS: dict[str, Change] = {
    "vae": by("adamw"),
    "vae-muon": by("muon"),
    "vae-muon-x3": by("muon", 3.0),
    "clip": by("adamw"),
    "clip-muon": by("muon"),
    "clip-muon-x3": by("muon", 3.0),
}


def try_vae(config: TextToImageConfig, folder: CaptionedFolder, run: StageRun) -> dict[str, float]:
    vae = train_vae(config, load_images(folder.train, config.image_size), run)
    target = to_float(load_images(folder.heldout, config.image_size).to(run.device))
    with torch.no_grad():
        painted = vae.decode(vae.encode(target).mode())
    return {"pixels": float((painted - target).abs().mean()), "edges": float(edge_error(painted, target))}


def try_clip(config: TextToImageConfig, folder: CaptionedFolder, run: StageRun) -> dict[str, float]:
    captions = [list(item.captions) for item in folder.train]
    texts = (text for of_picture in captions for text in of_picture)
    tokenizer = CLIPTokenizer.train(texts, config.vocab_size, config.window)
    images = load_images(folder.train, config.image_size)
    model = train_clip(config, images, captions, tokenizer, run, config.seed).to(run.device)
    named = [item.text for item in folder.heldout]
    candidates = draw_candidates(named, largest_k(named))
    seen = image_features(model, load_images(folder.heldout, config.image_size), run.device)
    right = retrieved(seen, text_features(model, tokenizer(named), run.device), candidates)
    return {"right caption": float(right.mean())}


def run_trial(name: str, folder: CaptionedFolder, out: Path, steps: dict[str, int], device: torch.device) -> None:
    """Train and measure, unless it is done."""
    if (out / name / "trial.json").is_file():
        return
    stage = name.partition("-")[0]
    config = SMALL
    if stage == "vae":
        config = replace(config, vae_stage=TRIALS[name](config.vae_stage))
    else:
        config = replace(config, clip_stage=TRIALS[name](config.clip_stage))
    run = StageRun(stage, make_folder(out / name), device, None, steps[stage])
    found = (try_vae if stage == "vae" else try_clip)(config, folder, run)
    write_json(out / name / "trial.json", {"name": name, **run.record(), "found": found})


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| trial | pictures | minutes | loss at the end | held out |", "| --- | ---: | ---: | ---: | --- |"]
    for result in results:
        found = ", ".join(f"{key} {value:.4f}" for key, value in result["found"].items())
        cells = [result["name"], f"{result['images']:,}", f"{result['minutes']:.1f}", f"{result['loss']:.4f}", found]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TRIAL", help=f"of {', '.join(TRIALS)}; all, if none is named")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-core"))
    parser.add_argument("--out", type=Path, default=Path("runs/stage-trials"))
    parser.add_argument("--vae-steps", type=int, default=300, help="batches of 24 pictures")
    parser.add_argument("--clip-steps", type=int, default=500, help="batches of 64 pictures")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in TRIALS]
    if unknown:
        parser.error(f"there is no trial {unknown[0]}: choose of {', '.join(TRIALS)}")
    folder, device = read_captioned_folder(asked.data), pick_device(asked.device)
    for name in asked.names or TRIALS:
        run_trial(name, folder, asked.out, {"vae": asked.vae_steps, "clip": asked.clip_steps}, device)
    done = [asked.out / name / "trial.json" for name in TRIALS]
    text = table([json.loads(path.read_text()) for path in done if path.is_file()])
    (asked.out / "stage_trials.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
