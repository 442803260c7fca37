"""Faults of data and of workers in the middle of a training: one line, and the resumed training ends bit-equal."""

import os
import signal
from pathlib import Path

import pytest
import torch
from same_end import assert_same_end, steps_saved
from small_training import NoisyPictures, make_learner
from torch import Tensor

from miniai.base.errors import UserError
from miniai.train.checkpoint import resume
from miniai.train.data import Loader
from miniai.train.learner import Learner

N_STEPS = 18


class OnceFaulty(NoisyPictures):
    """Its 34th reading, in the second epoch, goes wrong, but only once: the file `mended` remembers."""

    def __init__(self, mended: Path, kills: bool) -> None:
        super().__init__()
        self.mended, self.kills, self.n_read = mended, kills, 0

    def augmented(self, index: int, generator: torch.Generator) -> dict[str, Tensor | int]:
        self.n_read += 1
        if self.n_read == 34 and not self.mended.exists():
            self.mended.touch()
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("the picture is truncated: put it back")
        return super().augmented(index, generator)


def training(folder: Path, data: NoisyPictures, n_workers: int) -> Learner:
    learner = make_learner(folder, N_STEPS)
    learner.train = Loader(data, 4, seed=3, n_workers=n_workers)
    return learner


BROKEN_ITEM = r"item \d+ of the data set cannot be read: UserError: the picture is truncated: put it back"
DEAD_WORKER = r"a worker of the data loader died \(killed, or out of memory\): resume the training.*"


@pytest.mark.parametrize(
    ("kills", "n_workers", "line"),
    [(False, 0, BROKEN_ITEM), (False, 1, BROKEN_ITEM), (True, 1, DEAD_WORKER)],
    ids=["broken item", "broken item in a worker", "dead worker"],
)
def test_a_broken_item_or_a_dead_worker_stops_with_one_line_and_a_resume_ends_bit_equal(
    kills: bool, n_workers: int, line: str, tmp_path: Path
) -> None:
    whole, broken, data = tmp_path / "whole", tmp_path / "broken", OnceFaulty(tmp_path / "mended", kills)
    make_learner(whole, N_STEPS).fit()
    with pytest.raises(UserError, match=rf"^{line}$"):  # no newline is matched by the dots
        training(broken, data, n_workers).fit()
    assert 0 < steps_saved(broken) < N_STEPS
    again = training(broken, data, n_workers=0)  # whoever reads the items
    assert resume(again, broken / "checkpoints")
    again.fit()
    assert_same_end(broken, whole, N_STEPS)
