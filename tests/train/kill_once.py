"""A training that is killed (SIGKILL) at one random moment, then resumed to its end."""

import random
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

from same_end import steps_saved
from small_training import run

SECONDS_PER_STEP = 0.002


@dataclass(frozen=True)
class Kill:
    """When it came: `seconds` after the process started, with `n_saved` steps in the newest checkpoint, `while_writing`
    if the temporary file of the next one was left behind; `at_the_end` if the training was over before it came."""

    seconds: float
    n_saved: int
    while_writing: bool
    at_the_end: bool


def whole_training(processes: ForkServerContext, folder: Path, n_steps: int) -> float:
    """Train undisturbed in a process of its own; returns the seconds it took."""
    start = time.monotonic()
    process = processes.Process(target=run, args=(str(folder), n_steps, SECONDS_PER_STEP))
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - start


def kill_and_resume(
    processes: ForkServerContext, folder: Path, n_steps: int, seconds: float, chance: random.Random
) -> Kill:
    """Train in `folder`, kill at a moment within the `seconds` that a whole training takes, train on to the end."""
    moment = chance.uniform(0, seconds)
    process = processes.Process(target=run, args=(str(folder), n_steps, SECONDS_PER_STEP))
    process.start()
    process.join(moment)
    at_the_end = process.exitcode is not None
    process.kill()
    process.join()
    left_behind = any((folder / "checkpoints").glob(".*.tmp"))
    kill = Kill(moment, steps_saved(folder), left_behind, at_the_end)
    whole_training(processes, folder, n_steps)
    return kill
