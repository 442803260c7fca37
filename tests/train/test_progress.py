"""What is logged is exact, what is shown is true, and both read the loss as seldom as they may."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.train.callback import Callback
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.metrics import Mean, Metrics
from miniai.train.progress import Progress, Recorder, _clock
from miniai.train.schedule import Budget


def squares(model: nn.Module, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    prediction = model(batch)
    return {"loss": prediction.square().mean(), "largest": prediction.max(), "prediction": prediction}


def make_learner(*callbacks: Callback, valid: bool = False) -> Learner:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    data = torch.randn(40, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rest = Loader(data[:6], 4, seed=0, drop_last=False) if valid else None
    return Learner(model, Loader(data, 4, seed=0), squares, optimizer, valid=rest, callbacks=callbacks)


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_step(self, learner: Learner) -> None:
        self.seen.append(learner.loss.item())


def test_the_recorder_keeps_every_kth_step_and_the_file_says_the_same(tmp_path: Path) -> None:
    losses, recorder = Losses(), Recorder(tmp_path / "new" / "log.jsonl", every=4)
    make_learner(losses, recorder, valid=True).fit(2)
    assert recorder.history["loss"] == ([4, 8, 12, 16, 20], [losses.seen[i - 1] for i in (4, 8, 12, 16, 20)])
    assert set(recorder.history) == {"loss", "largest", "loss_smooth", "lr", "valid_loss", "valid_largest"}
    assert recorder.history["valid_loss"][0] == [10, 20]
    lines = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 10, 12, 16, 20, 20]
    assert [line["loss"] for line in lines if "loss" in line] == recorder.history["loss"][1]
    assert lines[2] == {
        "step": 10,
        "epoch": 0,
        "valid_loss": recorder.history["valid_loss"][1][0],
        "valid_largest": recorder.history["valid_largest"][1][0],
    }


def test_the_smooth_loss_is_the_weighted_mean_of_all_losses() -> None:
    losses, recorder = Losses(), Recorder(every=1, beta=0.8)
    make_learner(losses, recorder).fit(1)
    weights = [0.8 ** (10 - i) for i in range(1, 11)]
    expected = sum(w * loss for w, loss in zip(weights, losses.seen, strict=True)) / sum(weights)
    assert recorder.smooth_loss() == pytest.approx(expected, rel=1e-5)
    assert recorder.history["loss_smooth"][1][0] == pytest.approx(losses.seen[0], rel=1e-6)


def test_a_resumed_log_is_cut_back_to_its_checkpoint_and_a_new_one_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = Recorder(path, every=1)
    make_learner(first).fit(1)
    state, whole = first.state_dict(), path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"step": 11, "torn')
    second = Recorder(path)
    second.load_state_dict(state)
    second.before_fit(make_learner())
    second.cleanup(make_learner())
    assert path.read_bytes() == whole
    assert second.history == first.history
    third = Recorder(path)
    third.before_fit(make_learner())
    third.cleanup(make_learner())
    assert path.read_bytes() == b""


@pytest.mark.parametrize("loss", ["missing", "shorter"])
def test_a_log_that_was_lost_is_one_clear_line(loss: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "log.jsonl", every=1)
    make_learner(recorder).fit(1)
    recorder.path.unlink() if loss == "missing" else recorder.path.write_bytes(b"{}\n")
    with pytest.raises(UserError, match="log.jsonl"):
        make_learner(recorder).fit(1)


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    recorder = Recorder(every=1)
    make_learner(recorder, valid=True).fit(1)
    recorder.plot(tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 50


def test_progress_in_a_file_is_plain_lines_with_loss_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    learner = make_learner(Progress(every_seconds_in_a_file=0.0, label="unet"), Budget(steps=7), valid=True)
    learner.fit()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert "\r" not in "".join(lines)
    assert lines[4].startswith("unet step 5 · loss ")
    assert " images/s · 0:00 left" in lines[4]
    assert f"loss {learner.loss.item():.4f}" in lines[-1]


def test_progress_on_a_terminal_is_one_bar(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    make_learner(Progress(every_seconds=0.0)).fit(1)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "100.0%" in shown
    assert "step 10 · loss" in shown


def test_time_left_is_what_the_pace_or_the_minutes_leave() -> None:
    progress = Progress()
    learner = make_learner(progress, Budget(steps=100))
    progress.before_fit(learner)
    start = progress._first[0]
    assert progress._seconds_left(learner, start + 30, 0.25) == pytest.approx(90)
    budget = Budget(minutes=1.0)
    budget.load_state_dict({"seconds": 45.0})
    assert progress._seconds_left(make_learner(budget), start + 30, 0.0) == pytest.approx(15)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.4, "1:15"), (3600, "1:00:00"), (7325, "2:02:05")])
def test_the_clock_reads_like_a_clock(seconds: float, text: str) -> None:
    assert _clock(seconds) == text


def test_the_loss_is_read_only_when_it_is_shown_or_logged(monkeypatch: Any) -> None:
    """On a GPU each reading waits for all the work before it."""
    reads: list[int] = []
    item = Tensor.item
    monkeypatch.setattr(Tensor, "item", lambda self: reads.append(1) or item(self))
    make_learner(Recorder(every=5), Progress()).fit(1)
    # Two logged steps of loss, largest and smooth loss, and the last line of the progress.
    assert len(reads) == 2 * 3 + 1


class LargestError:
    """Speaks the protocol and nothing else."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.value = 0.0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.value = max(self.value, (prediction - target).abs().max().item())

    def compute(self) -> Tensor:
        return torch.tensor(self.value)


def test_metrics_see_the_validation_alone_and_start_anew_in_each() -> None:
    def inputs(learner: Learner) -> tuple[Tensor, Tensor]:
        return learner.outputs["prediction"], learner.batch.sum(1, keepdim=True)

    recorder = Recorder()
    learner = make_learner(Metrics({"worst": LargestError()}, inputs), recorder, valid=True)
    learner.fit(2)
    data = torch.cat(list(learner.valid.batches(0)))
    expected = (learner.model(data) - data.sum(1, keepdim=True)).abs().max().item()
    assert learner.valid_scalars["worst"] == pytest.approx(expected, rel=1e-6)
    assert recorder.history["valid_worst"][1][1] == pytest.approx(expected, rel=1e-6)
    assert learner.validate()["worst"] == pytest.approx(expected, rel=1e-6)  # on its own too


def test_the_mean_is_over_numbers_not_batches() -> None:
    mean = Mean()
    mean.update(torch.tensor([1.0, 2.0, 3.0]))
    mean.update(torch.tensor([10.0]))
    assert mean.compute() == 4.0
    mean.reset()
    assert mean.compute() != mean.compute()  # NaN
