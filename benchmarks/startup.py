"""From cold start to the answer: `miniai --help`, one bad request, and one picture with the packaged model.

    python benchmarks/startup.py [--model FOLDER]

Each command runs in a process of its own. Wall time is what a user waits; processor time hardly depends on what else
the machine does.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = {
    "miniai --help": ["--help"],
    "a bad request": ["generate", "a cat", "--n", "0"],
    "miniai generate, 20 steps": ["generate", "a smiling cat with sunglasses", "--seed", "0", "--steps", "20"],
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """(wall, processor) seconds of one run."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "miniai", *arguments], cwd=folder, capture_output=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a model; default: the packaged one")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}; {options.repeats} runs each\n")
    print("| command | wall, median, s | wall, best, s | processor, median, s |\n| --- | ---: | ---: | ---: |")
    for name, arguments in COMMANDS.items():
        model = ["--model", os.path.abspath(options.model)] if options.model and arguments[0] == "generate" else []
        runs = [measure(arguments + model) for _ in range(options.repeats + 1)][1:]
        walls, processor = zip(*runs, strict=True)
        print(
            f"| {name} | {statistics.median(walls):.2f} | {min(walls):.2f} | {statistics.median(processor):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
