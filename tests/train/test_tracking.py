"""Trackers log what a training says, without a network, and close whatever happens."""

import csv
from pathlib import Path

import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.train.callback import Callback
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.tracking import CSVLog, TensorBoard, Tracker, WandB


def make_learner(*callbacks: Callback, valid: bool = False) -> Learner:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return model(batch).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = Loader(torch.randn(32, 4, generator=make_generator(1)), 8, seed=0)
    return Learner(model, loader, objective, optimizer, valid=loader if valid else None, callbacks=callbacks)


def logged(tracker: Tracker) -> Learner:
    learner = make_learner(tracker, valid=True)
    learner.fit(2)
    return learner


def rows(path: Path) -> list[tuple[int, str, float]]:
    with path.open(newline="") as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def test_the_csv_log_holds_each_number_once_also_after_a_resume_from_an_earlier_step(tmp_path: Path) -> None:
    learner = logged(CSVLog(tmp_path / "sub" / "log.csv", every=2))
    found = rows(tmp_path / "sub" / "log.csv")
    assert [(step, name) for step, name, _ in found] == [
        (2, "loss"),
        (2, "lr"),
        (4, "loss"),
        (4, "lr"),
        (4, "valid/loss"),
        (6, "loss"),
        (6, "lr"),
        (8, "loss"),
        (8, "lr"),
        (8, "valid/loss"),
    ]
    assert found[-1][2] == learner.valid_scalars["loss"]
    with (tmp_path / "sub" / "log.csv").open("a") as file:
        file.write("9,lo")  # killed while it wrote
    again = make_learner(CSVLog(tmp_path / "sub" / "log.csv", every=2), valid=True)
    again.step, again.epoch = 4, 1
    again.fit(2)
    assert [row[:2] for row in rows(tmp_path / "sub" / "log.csv")] == [row[:2] for row in found]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder .*file"):
        logged(CSVLog(tmp_path / "file" / "log.csv"))


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    learner = logged(TensorBoard(tmp_path, every=2))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "valid/loss"}
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]
    assert events.Scalars("valid/loss")[-1].value == pytest.approx(learner.valid_scalars["loss"], rel=1e-6)


def test_wandb_keeps_an_offline_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path))
    logged(WandB(tmp_path, every=2, config={"batch_size": 8}))
    runs = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    wandb.teardown()  # its own process writes the last of it
    content = runs[0].read_bytes()
    for text in (b"valid/loss", b"batch_size", b"first_step"):
        assert text in content
    with pytest.raises(ValueError, match="offline, online or disabled"):
        WandB(tmp_path, mode="cloud")


def test_a_failing_training_still_closes_its_trackers(tmp_path: Path) -> None:
    class Clumsy(Callback):
        def after_step(self, learner: Learner) -> None:
            if learner.step == 3:
                raise UserError("enough")

    log = CSVLog(tmp_path / "log.csv", every=1)
    with pytest.raises(UserError, match="enough"):
        make_learner(log, Clumsy()).fit(1)
    assert log._file is None
    assert [step for step, name, _ in rows(tmp_path / "log.csv") if name == "loss"] == [1, 2]
    make_learner(log, valid=True).validate()  # outside a fit: not logged, and no error
