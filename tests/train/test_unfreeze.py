"""Frozen groups stay exactly as they are, weight decay, averages of norms and resumes included."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from miniai.base.seeds import make_generator
from miniai.train.callback import Callback
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.schedule import Budget
from miniai.train.unfreeze import GradualUnfreeze

DATA = torch.randn(32, 4, generator=make_generator(1)) + 3


class States(Callback):
    """Everything that the model holds, after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def after_batch(self, learner: Learner) -> None:
        self.seen.append({name: value.clone() for name, value in learner.model.state_dict().items()})


def make_learner(folder: Path, steps: int, at: tuple[float, float] = (0.25, 0.5)) -> tuple[Learner, States]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return (model(batch) - 1).square().mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    states = States()
    unfreeze = GradualUnfreeze([[model[3]], [model[0], model[1]]], at)
    callbacks = [unfreeze, states, Checkpoint(folder, every_minutes=None), Budget(steps=steps)]
    return Learner(model, Loader(DATA, 4, seed=0), objective, optimizer, callbacks=callbacks), states


def test_each_group_begins_to_learn_when_it_should_and_stays_bit_equal_before(tmp_path: Path) -> None:
    learner, states = make_learner(tmp_path, 16)
    start = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.fit()

    def first_change(name: str) -> int:
        return next(i for i, one in enumerate(states.seen) if not torch.equal(one[name], start[name]))

    changes = {name: first_change(name) for name in start}
    assert {changes[f"5.{part}"] for part in ("weight", "bias")} == {0}
    assert {changes[f"3.{part}"] for part in ("weight", "bias")} == {4}
    assert {changes[name] for name in start if name[0] in "01"} == {8}  # statistics of the norm too
    assert all(module.training for module in learner.model.modules())


def test_a_resume_in_the_middle_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, _ = make_learner(tmp_path / "whole", 16)
    whole.fit()

    class Stop(Callback):
        order = 200

        def after_batch(self, learner: Learner) -> None:
            if learner.step == 6:
                raise KeyboardInterrupt

    cut, _ = make_learner(tmp_path / "cut", 16)
    cut.callbacks = [*cut.callbacks, Stop()]
    next(one for one in cut.callbacks if isinstance(one, Checkpoint)).every_steps = 6
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    again, _ = make_learner(tmp_path / "cut", 16)
    assert resume(again, tmp_path / "cut")
    assert again.step == 6
    again.fit()
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_groups_and_shares_must_fit_together() -> None:
    with pytest.raises(ValueError, match="each of 1 groups"):
        GradualUnfreeze([[nn.Linear(1, 1)]], [0.1, 0.2])
    with pytest.raises(ValueError, match="from 0 to 1"):
        GradualUnfreeze([[nn.Linear(1, 1)]], [1.5])
