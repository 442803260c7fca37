"""Keywords handed on are shown, and the debugger opens where it is asked to."""

import inspect
import os
import pdb
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniai.train.data import Loader
from miniai.train.habits import Debug, delegates
from miniai.train.learner import Learner
from miniai.train.train_learner import TrainLearner


def test_a_train_learner_shows_the_keywords_of_a_learner_and_takes_them() -> None:
    shown = inspect.signature(TrainLearner.__init__).parameters
    for name in ("valid", "callbacks", "seed"):
        assert shown[name].default == inspect.signature(Learner.__init__).parameters[name].default
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert "keywords" not in shown
    model = nn.Linear(1, 1)
    data = Loader((torch.zeros(4, 1), torch.zeros(4, 1)), 4, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert TrainLearner(model, data, nn.functional.mse_loss, optimizer, seed=7).seed == 7


def test_only_a_function_with_keywords_can_hand_them_on() -> None:
    def closed(x: int) -> int:
        return x

    with pytest.raises(ValueError, match="closed takes no"):
        delegates(print)(closed)


def make_learner(debug: Debug) -> Learner:
    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return model(batch).square().mean()

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Learner(model, Loader(torch.ones(12, 2), 4, seed=0), objective, optimizer, callbacks=[debug])


def test_the_debugger_opens_once_where_asked_and_sees_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def hook() -> None:
        frame = sys._getframe(1)
        seen.append((frame.f_locals["learner"].step, frame.f_code.co_name))

    monkeypatch.setattr(sys, "breakpointhook", hook)
    debug = Debug("after_step", when=lambda learner: learner.step >= 2)
    make_learner(debug).fit(2)
    assert seen == [(2, "_look")]
    assert debug.opened_at == 2
    with pytest.raises(ValueError, match="no event 'after_lunch'"):
        Debug("after_lunch")


def test_pdb_takes_commands_and_lets_the_training_go_on(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(sys, "breakpointhook", lambda: debugger.set_trace(sys._getframe(1)))
    read, write = os.pipe()
    os.write(write, b"p learner.step\nc\n")
    os.close(write)
    with os.fdopen(read) as commands:
        debugger = pdb.Pdb(stdin=commands, stdout=sys.stderr, nosigint=True)
        learner = make_learner(Debug("before_batch", when=lambda learner: learner.step == 1))
        learner.fit(1)
    assert "(Pdb) 1" in capfd.readouterr().err
    assert learner.step == 3
