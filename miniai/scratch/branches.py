"""45. Guidance asks the U-Net twice at each step, with and without the prompt: two processes can answer at once.

Each has the whole U-Net, so that all that goes between them is one small map each way; shared rows of every product
would send them hundreds of times.
"""

import os
import signal
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from miniai.scratch.tensor import Tensor
from miniai.scratch.unet import UNet2DConditionModel


def n_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Branches:
    """`Branches(folder)(x_t, timestep, contexts)` is the U-Net's prediction for each context, one after another."""

    def __init__(self, folder: Path) -> None:
        self.unet = UNet2DConditionModel.from_pretrained(folder)
        self.config = self.unet.config

    def __call__(self, x: Tensor, timestep: float, contexts: list[Tensor]) -> list[Tensor]:
        return [self.unet(x, timestep, context) for context in contexts]


class TwoProcesses(Branches):
    """The first of two contexts goes to a helper process."""

    def __init__(self, folder: Path) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.helper = context.Process(target=serve, args=(folder, theirs), daemon=True)
        self.helper.start()
        theirs.close()
        super().__init__(folder)  # both read the folder at the same time

    def __call__(self, x: Tensor, timestep: float, contexts: list[Tensor]) -> list[Tensor]:
        if len(contexts) < 2:
            return super().__call__(x, timestep, contexts)
        try:
            self.connection.send((x, timestep, contexts[0]))
            own = super().__call__(x, timestep, contexts[1:])
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise OSError("the second process has ended; if memory is short, ask for --processes 1") from error
        if isinstance(answer, Exception):
            raise answer
        return [answer, *own]


def serve(folder: Path, connection: Connection) -> None:
    """The helper: answers until whoever asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        unet = UNet2DConditionModel.from_pretrained(folder)
    except (ValueError, OSError):
        return  # the process that asks reads the same files, and tells what is wrong with them
    while True:
        try:
            asked = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            connection.send(unet(*asked))
        except ValueError as error:
            connection.send(error)
