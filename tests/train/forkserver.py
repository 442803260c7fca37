"""Processes that start in milliseconds, forked from one that has imported torch and done nothing with it."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path


@contextmanager
def fork_server() -> Iterator[ForkServerContext]:
    """`context.Process(target=..., args=...)` for functions of `small_training`."""
    root, here = Path(__file__).parents[2], Path(__file__).parent
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), str(here)])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_training", "torch._dynamo"])  # the latter for torch.optim: a second
    try:
        first = context.Process(target=int)  # waits for the imports
        first.start()
        first.join(120)
        yield context
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
