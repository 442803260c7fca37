"""`python -m miniai.scratch train --data DIR`: the command line of this floor."""

import argparse
import sys
from pathlib import Path

from miniai.scratch.models import MODELS
from miniai.scratch.train import TrainConfig, open_split, train


def show(line: str) -> None:
    print(line, end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for what the user can mend, told in one line."""
    default = TrainConfig()
    parser = argparse.ArgumentParser("python -m miniai.scratch", description="Machine learning from nothing.")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "train", help="train a classifier on IDX files, such as Fashion-MNIST"
    )
    command.add_argument("--data", type=Path, required=True, help="folder of train-images-idx3-ubyte and the others")
    command.add_argument("--model", choices=sorted(MODELS), default=default.model)
    command.add_argument("--epochs", type=int, default=default.n_epochs)
    command.add_argument("--batch-size", type=int, default=default.batch_size)
    command.add_argument("--lr", type=float, default=default.max_lr, help="the peak of one cycle")
    command.add_argument("--seed", type=int, default=default.seed)
    given = parser.parse_args(arguments)
    try:
        config = TrainConfig(given.model, given.epochs, given.batch_size, given.lr, given.seed)
        share = train(config, open_split(given.data, "train"), open_split(given.data, "test"), show)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"test accuracy {100 * share:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
