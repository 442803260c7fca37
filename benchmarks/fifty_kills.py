"""Fifty trainings, each killed (SIGKILL) at a random moment of its length and resumed: do they all end bit-equal?

python benchmarks/fifty_kills.py           50 kills, a few minutes on one core
python benchmarks/fifty_kills.py --n 500   as many as you like

Weights, optimizer, averages, counters and the log must be those of a training that was never disturbed, bit for bit.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests" / "train")]

from forkserver import fork_server  # noqa: E402 (they stand beside the tests)
from kill_once import Kill, kill_and_resume, whole_training  # noqa: E402
from same_end import assert_same_end  # noqa: E402

N_STEPS = 60  # a checkpoint every 5, two of them kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fifty_kills.md", help="where the table goes")
    options = parser.parse_args()
    chance, kills, began = random.Random(options.seed), [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, fork_server() as processes:
        folder = Path(temporary)
        seconds = whole_training(processes, folder / "whole", N_STEPS)
        for number in range(options.n):
            killed = folder / str(number)
            kills.append(kill_and_resume(processes, killed, N_STEPS, seconds, chance))
            assert_same_end(killed, folder / "whole", N_STEPS)  # an AssertionError ends the script
    text = table(kills, seconds, time.monotonic() - began)
    options.out.write_text(text, encoding="utf-8")
    print(text, end="")


def table(kills: list[Kill], seconds: float, total_seconds: float) -> str:
    from miniai.recipes.model_card import machine  # here, because every process that is to be killed reads this file

    met = [kill for kill in kills if not kill.at_the_end]
    rows = {
        "trainings killed at a random moment and resumed": len(kills),
        "ended bit-equal to the one never disturbed": len(kills),
        "met before the first checkpoint": sum(kill.n_saved == 0 for kill in met),
        "met later": sum(kill.n_saved > 0 for kill in met),
        "of these, in the middle of writing a checkpoint": sum(kill.while_writing for kill in met),
        "came when the training was just over": len(kills) - len(met),
    }
    head = f"{machine()}; {N_STEPS} steps each, {seconds:.2f} s undisturbed; {total_seconds / 60:.1f} minutes in all\n"
    lines = "\n".join(f"| {name} | {count} |" for name, count in rows.items())
    return f"{head}\n| `kill -9` | count |\n| --- | ---: |\n{lines}\n"


if __name__ == "__main__":
    main()
