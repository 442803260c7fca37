"""The command line of this floor.

python -m miniai.scratch train --data DIR                    a classifier of small grey images
python -m miniai.scratch generate "a red apple" --steps 8    a picture from a prompt
"""

import argparse
import secrets
import sys
from pathlib import Path

from miniai.scratch.generate import GenerateRequest, generate
from miniai.scratch.models import MODELS
from miniai.scratch.train import TrainConfig, open_split, train


def show(line: str) -> None:
    print(line, end="", file=sys.stderr, flush=True)


def arguments_parser() -> argparse.ArgumentParser:
    default, request = TrainConfig(), GenerateRequest("")
    parser = argparse.ArgumentParser("python -m miniai.scratch", description="Machine learning from nothing.")
    commands = parser.add_subparsers(dest="command", required=True)
    default_of = " (default: %(default)s)"
    command = commands.add_parser("train", help="train a classifier on IDX files, such as Fashion-MNIST")
    command.add_argument("--data", type=Path, required=True, help="folder of train-images-idx3-ubyte and the others")
    command.add_argument("--model", choices=sorted(MODELS), default=default.model, help="what learns" + default_of)
    command.add_argument("--epochs", type=int, default=default.n_epochs, help="passes over the pictures" + default_of)
    command.add_argument("--batch-size", type=int, default=default.batch_size, help="pictures a step" + default_of)
    command.add_argument(
        "--lr", type=float, default=default.max_lr, help="learning rate at the peak of one cycle" + default_of
    )
    command.add_argument("--seed", type=int, default=default.seed, help="of weights and order" + default_of)
    command = commands.add_parser("generate", help="paint a picture with Stable Diffusion")
    command.add_argument("prompt", help="what to paint, in words")
    command.add_argument("--negative-prompt", default="", help="what the picture should not be")
    command.add_argument("--seed", type=int, help="the same seed gives the same picture; a fresh one by default")
    command.add_argument("--steps", type=int, default=request.steps, help="denoising steps" + default_of)
    command.add_argument(
        "--guidance-scale",
        type=float,
        default=request.guidance_scale,
        help="how strongly the prompt rules; up to 1 is no guidance" + default_of,
    )
    command.add_argument(
        "--model", type=Path, default=request.model, help="folder in the Diffusers layout; by default the packaged one"
    )
    command.add_argument("--out", type=Path, help="name of the PNG file; made from the prompt by default")
    command.add_argument("--processes", type=int, help="1 or 2; by default as many as there are cores for")
    return parser


def run_train(given: argparse.Namespace) -> str:
    config = TrainConfig(given.model, given.epochs, given.batch_size, given.lr, given.seed)
    share = train(config, open_split(given.data, "train"), open_split(given.data, "test"), show)
    return f"test accuracy {100 * share:.2f} %"


def run_generate(given: argparse.Namespace) -> str:
    asked = {name: value for name, value in vars(given).items() if name != "command"}
    asked["seed"] = secrets.randbelow(2**32) if given.seed is None else given.seed
    return str(generate(GenerateRequest(**asked), show))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for what the user can mend, told in one line; 130 where the user has stopped it."""
    given = arguments_parser().parse_args(arguments)
    try:
        print({"train": run_train, "generate": run_generate}[given.command](given))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
