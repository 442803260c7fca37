"""How long should weights be averaged? One short training of the text-to-image U-Net, and many averages of it.

    miniai data emoji --out data/emoji-core --styles noto,twemoji,fluent-emoji-flat --groups core
    python benchmarks/ema_length.py --data data/emoji-core --out runs/ema-length --steps 300
    python benchmarks/ema_length.py --data data/emoji-core --out runs/ema-constant --steps 300 --constant

Trains as `trials.py` does, with snapshots of two averages on the way, and reconstructs the others from them afterwards
(`miniai.train.post_hoc_ema`). Each is measured as a trial is: its error on the held-out pictures at three noise levels,
then it paints their captions for the judge. `--constant` leaves the learning rate where it is after the warm-up. The
table goes to `--out`/ema_length.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from trial_bench import BASE, LEVELS, Bench, Trained, Trial

from miniai.base.device import pick_device
from miniai.base.files import write_json
from miniai.recipes.evaluator import SHIPPED
from miniai.recipes.text_to_image_config import TextToImageConfig
from miniai.train.post_hoc_ema import AverageSnapshots, PowerEMA, reconstruct

WIDTHS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25)
OWN = "the recipe's own"


def constant(config: TextToImageConfig) -> TextToImageConfig:
    return replace(config, unet_stage=replace(config.unet_stage, decay_from=1.0))


def measure(bench: Bench, trained: Trained, place: Path, name: str) -> dict[str, Any]:
    return {"name": name} | bench.errors(trained) | bench.judge(trained, place)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| width | error in x0 at {', '.join(map(str, LEVELS))} | error of pixels | right caption | style | FID |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        errors = [", ".join(f"{e:.4f}" for e in row[key].values()) for key in ("errors", "pixel_errors")]
        figures = [f"{row[k]['generated']:.{n}f}" for k, n in (("retrieval", 3), ("style", 3), ("fid", 2))]
        lines.append(f"| {' | '.join([row['name'], *errors, *figures])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji-core"))
    parser.add_argument("--out", type=Path, default=Path("runs/ema-length"))
    parser.add_argument("--steps", type=int, default=300, help="batches of 128 pictures")
    parser.add_argument("--clip-steps", type=int, default=600, help="batches of 64 pairs that the CLIP sees")
    parser.add_argument("--constant", action="store_true", help="the learning rate does not fall at the end")
    parser.add_argument("--clip", type=Path, help="one that is trained already, such as runs/trials/clip")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    bench = Bench(
        asked.data, asked.out, asked.steps, asked.clip_steps, 0, pick_device(asked.device), SHIPPED, BASE, asked.clip
    )
    bench.prepare()
    averages = [PowerEMA(0.05), PowerEMA(0.10)]
    keep = AverageSnapshots(asked.out / "averages", averages, every_steps=max(1, asked.steps // 40))
    trial = Trial("averages of many widths", constant) if asked.constant else Trial("averages of many widths")
    trained = bench.train(trial, asked.out / "training", callbacks=[*averages, keep])
    rows = [measure(bench, trained, asked.out / "own", OWN)]
    for width in WIDTHS:
        weights = trained.model.state_dict() | reconstruct(asked.out / "averages", width)
        trained.model.load_state_dict(weights)
        rows.append(measure(bench, trained, asked.out / f"width-{width}", f"{width:.2f}"))
        write_json(asked.out / "ema_length.json", rows)
        (asked.out / "ema_length.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
