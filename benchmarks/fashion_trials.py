"""Short trainings of the clothes' classifier with one thing changed each time, judged on training pictures kept aside.

    python benchmarks/fashion_trials.py --list            what there is to try
    python benchmarks/fashion_trials.py recipe no-flip    these, 4 minutes each on one core without AMX

Each sees the same pictures of the first 50,000 training pictures `--epochs` times; the last 10,000 judge it. The test
pictures are never looked at: they are for the recipe that comes out of this.
"""

import argparse
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from miniai.recipes.fashion_classifier import NETWORKS, FashionClassifierConfig, train_fashion_classifier
from miniai.recipes.model_card import machine
from miniai.train.fashion_mnist import LabelledImages, load_fashion_mnist

RECIPE = FashionClassifierConfig()
N_ASIDE = 10_000


def changed(**changes: Any) -> FashionClassifierConfig:
    """The recipe with other numbers for the lightest of its strengths, the one of short trainings."""
    return replace(RECIPE, strengths=(replace(RECIPE.strengths[0], **changes),))


def staged(**changes: Any) -> FashionClassifierConfig:
    return replace(RECIPE, stage=replace(RECIPE.stage, **changes))


def deep() -> FashionClassifierConfig:
    return replace(RECIPE, model=replace(RECIPE.model, layers_per_block=2))


TRIALS: dict[str, tuple[str, FashionClassifierConfig]] = {
    "recipe": ("the recipe as it stands", RECIPE),
    "no-flip": ("no picture is mirrored", changed(flip=0.0)),
    "no-change": ("no picture is mirrored or moved", changed(flip=0.0, crop=0)),
    "erase": ("patches of a quarter of the edge are erased", changed(patches=1)),
    "rate-0.2": ("kernels' rate 0.2", replace(RECIPE, kernel_rate=0.2)),
    "rate-0.05": ("kernels' rate 0.05", replace(RECIPE, kernel_rate=0.05)),
    "sharp": ("labels are not smoothed", replace(RECIPE, label_smoothing=0.0)),
    "batch-128": ("batches of 128", staged(batch_size=128)),
    "momentum": ("kernels' momentum 0.85 at rate 0.07", replace(RECIPE, kernel_momentum=0.85, kernel_rate=0.07)),
    "wide": ("levels of 64, 160, 320 channels", NETWORKS["wide"]),
    "deep": ("two residual blocks a level", deep()),
    "seed": ("another seed: what chance does", replace(RECIPE, seed=1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="trials, of --list")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    parser.add_argument("--pictures", type=int, default=16_000, help="of the training pictures")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's IDX files")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in TRIALS]:
        parser.error(f"unknown trial {unknown[0]!r}: see --list")
    if options.list or not options.names:
        print("\n".join(f"{name:10} {text}" for name, (text, _) in TRIALS.items()))
        return
    whole = load_fashion_mnist("train", options.data)
    print(f"{machine()}; {options.pictures:,} pictures, {options.epochs:g} epochs\n")
    print("| trial | what | accuracy | with mirror images | minutes |\n| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder) / "data"
        parts.mkdir()
        write_idx(parts, "train", part_of(whole, 0, min(options.pictures, len(whole) - N_ASIDE)))
        write_idx(parts, "t10k", part_of(whole, len(whole) - N_ASIDE, len(whole)))
        for name in options.names:
            text, config = TRIALS[name]
            found = train_fashion_classifier(Path(folder) / name, data=parts, epochs=options.epochs, config=config)
            right, both = (100 * found[key] for key in ("accuracy", "accuracy_with_mirror_images"))
            print(f"| {name} | {text} | {right:.2f} % | {both:.2f} % | {found['minutes']:.1f} |", flush=True)


def part_of(pictures: LabelledImages, first: int, end: int) -> LabelledImages:
    return LabelledImages(pictures.images[first:end], pictures.labels[first:end], pictures.source)


def write_idx(folder: Path, name: str, pictures: LabelledImages) -> None:
    """Two IDX files (LeCun's format, as MNIST's) of the names that the recipes look for."""
    for kind, values in (("images-idx3", pictures.images[:, 0]), ("labels-idx1", pictures.labels)):
        sizes = values.shape
        head = struct.pack(f">I{len(sizes)}I", 0x0800 + len(sizes), *sizes)
        (folder / f"{name}-{kind}-ubyte").write_bytes(head + values.to(torch.uint8).numpy().tobytes())


if __name__ == "__main__":
    main()
