"""A training that is killed, interrupted or out of disk goes on as if nothing had been."""

import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_once import kill_and_resume, whole_training
from same_end import assert_same_end, steps_saved
from small_training import make_learner, run

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.train.callback import Callback, CallbackError, CancelBatchException
from miniai.train.callbacks import Every, SingleBatch
from miniai.train.checkpoint import Checkpoint, checkpoints, resume, save_checkpoint
from miniai.train.data import Loader
from miniai.train.ema import EMA
from miniai.train.learner import Learner

N_STEPS = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    make_learner(folder, N_STEPS).fit()
    return folder


def start(processes: ForkServerContext, folder: Path, n_steps: int, seconds_per_step: float) -> ForkServerProcess:
    process = processes.Process(target=run, args=(str(folder), n_steps, seconds_per_step))
    process.start()
    return process


@pytest.mark.parametrize("seed", [0, 1])
def test_a_training_killed_at_random_moments_ends_bit_equal(
    seed: int, tmp_path: Path, whole: Path, processes: ForkServerContext
) -> None:
    chance = random.Random(seed)
    killed_after: list[int] = []  # the steps of the newest checkpoint at each kill
    process = start(processes, tmp_path, N_STEPS, seconds_per_step=0.005)
    while process.exitcode is None:
        # A machine may be slow: first comes so much progress, and then the random moment.
        target = steps_saved(tmp_path) + 5 * chance.choice([0, 1, 1, 2])
        while steps_saved(tmp_path) < target and process.is_alive():
            time.sleep(0.002)
        process.join(chance.uniform(0.0, 0.06))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed_after.append(steps_saved(tmp_path))
            process = start(processes, tmp_path, N_STEPS, seconds_per_step=0.005)
    assert process.exitcode == 0
    assert len({step for step in killed_after if 0 < step < N_STEPS}) >= 2, killed_after
    assert_same_end(tmp_path, whole, N_STEPS)


def test_one_kill_at_any_moment_of_the_training_changes_nothing(
    tmp_path: Path, whole: Path, processes: ForkServerContext
) -> None:
    """A few of those that benchmarks/fifty_kills.py does fifty of."""
    chance, seconds = random.Random(5), whole_training(processes, tmp_path / "timed", N_STEPS)
    kills = [kill_and_resume(processes, tmp_path / str(i), N_STEPS, seconds, chance) for i in range(3)]
    for i in range(3):
        assert_same_end(tmp_path / str(i), whole, N_STEPS)
    assert not all(kill.at_the_end for kill in kills)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_finishes_its_step_writes_a_checkpoint_and_resumes_bit_equal(
    number: signal.Signals, tmp_path: Path, whole: Path, processes: ForkServerContext
) -> None:
    process = start(processes, tmp_path, N_STEPS, seconds_per_step=0.02)
    deadline = time.monotonic() + 60
    while not steps_saved(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)  # between two of the regular checkpoints
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 0
    learner = make_learner(tmp_path, N_STEPS)
    assert resume(learner, tmp_path / "checkpoints")
    assert 0 < learner.step < N_STEPS
    learner.fit()
    assert_same_end(tmp_path, whole, N_STEPS)


class StopAt(Callback):
    """Fails at a given step, as a power cut would."""

    order = 200

    def __init__(self, step: int) -> None:
        self.step = step

    def after_batch(self, learner: Learner) -> None:
        if learner.step == self.step:
            raise KeyboardInterrupt


def train_until(folder: Path, step: int) -> Learner:
    learner = make_learner(folder, N_STEPS)
    learner.callbacks.append(StopAt(step))
    with pytest.raises(KeyboardInterrupt):
        learner.fit()
    return learner


def go_on(folder: Path) -> None:
    learner = make_learner(folder, N_STEPS)
    assert resume(learner, folder / "checkpoints")
    learner.fit()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_short, cut_in_the_header, empty, flip_one_bit])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(damage: Any, tmp_path: Path, whole: Path) -> None:
    train_until(tmp_path, 23)
    newest, previous = checkpoints(tmp_path / "checkpoints")
    assert (newest.name, previous.name) == ("step-0000020.safetensors", "step-0000015.safetensors")
    damage(newest)
    learner = make_learner(tmp_path, N_STEPS)
    with pytest.warns(UserWarning, match="step-0000020.safetensors is passed over"):
        assert resume(learner, tmp_path / "checkpoints")
    assert learner.step == 15
    learner.fit()
    assert_same_end(tmp_path, whole, N_STEPS)


def test_a_damaged_checkpoint_that_was_passed_over_does_not_push_out_good_ones(tmp_path: Path) -> None:
    train_until(tmp_path, 23)
    empty(checkpoints(tmp_path / "checkpoints")[0])
    learner = make_learner(tmp_path, N_STEPS)
    with pytest.warns(UserWarning, match="passed over"):
        resume(learner, tmp_path / "checkpoints")
    next(c for c in learner.callbacks if isinstance(c, Checkpoint)).save(learner)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-0000015.safetensors"]


def test_when_every_checkpoint_is_damaged_the_error_says_so(tmp_path: Path) -> None:
    train_until(tmp_path, 23)
    for path in checkpoints(tmp_path / "checkpoints"):
        empty(path)
    learner = make_learner(tmp_path, N_STEPS)
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(UserError, match="no checkpoint in .* can be"):
        resume(learner, tmp_path / "checkpoints")


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_with_one_line_and_leaves_the_previous_checkpoint(tmp_path: Path, whole: Path) -> None:
    learner = make_learner(tmp_path, N_STEPS)
    limit = files_of_at_most(6_000)  # under one checkpoint, above the log

    class FillTheDisk(Callback):
        order = 79

        def after_batch(self, learner: Learner) -> None:
            if learner.step == 15 and learner.training:
                limit.__enter__()

    learner.callbacks.append(FillTheDisk())
    try:
        with pytest.raises(UserError, match="cannot write .*step-0000015.safetensors"):
            learner.fit()
    finally:
        limit.__exit__(None, None, None)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-0000005.safetensors",
        "step-0000010.safetensors",
    ]
    go_on(tmp_path)
    assert_same_end(tmp_path, whole, N_STEPS)


def test_a_disk_that_takes_half_a_line_of_the_log_stops_the_training_before_a_checkpoint_counts_on_it(
    tmp_path: Path, whole: Path
) -> None:
    learner = make_learner(tmp_path, N_STEPS)
    limits: list[AbstractContextManager[None]] = []

    class NoRoom(Callback):
        """Only while the log is written."""

        order = 59

        def after_step(self, learner: Learner) -> None:
            if learner.step == 15:
                limits.append(files_of_at_most((tmp_path / "log.jsonl").stat().st_size + 30))
                limits[0].__enter__()

        def after_batch(self, learner: Learner) -> None:
            while limits:
                limits.pop().__exit__(None, None, None)

    no_room = NoRoom()
    learner.callbacks.append(no_room)
    try:
        with pytest.raises(UserError, match="cannot write the log .*log.jsonl"):
            learner.fit()
    finally:
        no_room.after_batch(learner)
    assert steps_saved(tmp_path) == 10
    go_on(tmp_path)
    assert_same_end(tmp_path, whole, N_STEPS)


def test_an_error_before_a_checkpoint_names_the_callback_that_failed_and_keeps_the_previous_one(tmp_path: Path) -> None:
    class Clumsy(Callback):
        def before_save(self, learner: Learner) -> None:
            if learner.step == 10:
                raise ZeroDivisionError("by 0")

    learner = make_learner(tmp_path, N_STEPS)
    learner.callbacks.append(Clumsy())
    with pytest.raises(CallbackError, match=r"^callback Clumsy failed in before_save: ZeroDivisionError: by 0$"):
        learner.fit()
    assert steps_saved(tmp_path) == 5


def test_a_resumed_fused_optimizer_keeps_the_memory_layout_of_its_weights(tmp_path: Path) -> None:
    train_until(tmp_path, 23)
    learner = make_learner(tmp_path, N_STEPS)
    resume(learner, tmp_path / "checkpoints")
    weight = learner.model[0].weight  # type: ignore[index]
    assert not weight.is_contiguous()
    assert learner.optimizer.state[weight]["exp_avg"].stride() == weight.stride()


def test_no_checkpoint_means_false_and_an_untouched_learner(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, N_STEPS)
    assert resume(learner, tmp_path / "nothing") is False
    assert learner.step == 0


def test_a_new_training_refuses_a_folder_with_another_ones_checkpoints(tmp_path: Path) -> None:
    train_until(tmp_path, 7)
    with pytest.raises(UserError, match="earlier training"):
        make_learner(tmp_path, N_STEPS).fit()


def test_a_checkpoint_of_another_model_or_seed_is_refused_by_name(tmp_path: Path) -> None:
    train_until(tmp_path, 7)
    other = make_learner(tmp_path, N_STEPS)
    other.model.append(torch.nn.Linear(2, 2))  # type: ignore[operator]
    with pytest.raises(UserError, match="step-0000005.safetensors lacks 5.bias"):
        resume(other, tmp_path / "checkpoints")
    other = make_learner(tmp_path, N_STEPS)
    other.seed = 8
    with pytest.raises(UserError, match="seed 7, not 8"):
        resume(other, tmp_path / "checkpoints")


def test_a_checkpoint_of_another_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    train_until(tmp_path, 7)
    other = make_learner(tmp_path, N_STEPS)
    kind = type(other.optimizer).__name__
    other.optimizer = torch.optim.SGD(other.model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(UserError, match=f"was trained by {kind}, not SGD"):
        resume(other, tmp_path / "checkpoints")


class SkipFirst(Callback):
    """The first two batches bring no step."""

    def before_batch(self, learner: Learner) -> None:
        if (learner.epoch, learner.step) == (0, 0) and learner.batch_index < 2:
            raise CancelBatchException


def test_a_training_stopped_before_its_first_step_goes_on(tmp_path: Path) -> None:
    def start(*callbacks: Callback) -> Learner:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        checkpoint = Checkpoint(tmp_path, every_minutes=1e-9, every_steps=100)
        data = Loader(torch.randn(12, 2, generator=make_generator(3)), 2, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return Learner(
            model,
            data,
            lambda m, x, g: m(x).square().mean(),
            optimizer,
            callbacks=[SkipFirst(), checkpoint, *callbacks],
        )

    start(SingleBatch()).fit(1)
    learner = start()
    assert resume(learner, tmp_path)
    assert (learner.step, learner.batch_index) == (0, 1)
    learner.fit(1)
    assert learner.step == 4


def test_every_steps_writes_once_a_step_also_where_several_batches_make_one(tmp_path: Path) -> None:
    class Half(Callback):
        def after_backward(self, learner: Learner) -> None:
            if learner.batch_index % 2 == 0:
                raise CancelBatchException

    class Count(Checkpoint):
        n_saved = 0

        def save(self, learner: Learner) -> Path:
            self.n_saved += 1
            return super().save(learner)

    learner = make_learner(tmp_path, 12)
    count = Count(tmp_path / "counted", every_minutes=None, every_steps=1)
    learner.callbacks += [Half(), count]
    learner.fit()
    assert (learner.step, count.n_saved) == (12, 12)


def test_another_batch_size_warns_and_starts_the_epoch_again(tmp_path: Path) -> None:
    train_until(tmp_path, 7)
    learner = make_learner(tmp_path, N_STEPS)
    learner.train.batch_size = 6
    with pytest.warns(UserWarning, match="trained on other batches"):
        resume(learner, tmp_path / "checkpoints")
    assert (learner.step, learner.epoch, learner.batch_index) == (5, 0, 0)


def test_a_callback_without_a_saved_state_is_named_in_a_warning(tmp_path: Path) -> None:
    train_until(tmp_path, 7)
    learner = make_learner(tmp_path, N_STEPS)
    learner.callbacks.append(EMA(0.5))
    with pytest.warns(UserWarning, match="callback EMA-2 is not resumed"):
        resume(learner, tmp_path / "checkpoints")


def test_only_the_newest_checkpoints_are_kept(whole: Path) -> None:
    assert [path.name for path in checkpoints(whole / "checkpoints")] == [
        "step-0000060.safetensors",
        "step-0000055.safetensors",
    ]


def test_a_checkpoint_every_few_minutes_is_written_in_between_steps(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, 12)
    timed = Checkpoint(tmp_path / "timed", every_minutes=1e-9, keep=100)
    learner.callbacks.append(timed)
    learner.fit()
    assert len(checkpoints(tmp_path / "timed")) == 12


def test_gradients_that_outlive_a_batch_are_resumed_too(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, 12)
    learner.model[0].weight.grad = torch.randn(8, 3, 3, 3)  # type: ignore[index]
    save_checkpoint(learner, tmp_path / "step-0000001.safetensors")
    other = make_learner(tmp_path, 12)
    assert resume(other, tmp_path)
    assert torch.equal(other.model[0].weight.grad, learner.model[0].weight.grad)  # type: ignore[index]
    assert other.model[0].bias.grad is None  # type: ignore[index]


def test_a_sample_grid_between_steps_does_not_change_the_training(tmp_path: Path, whole: Path) -> None:
    learner = make_learner(tmp_path, N_STEPS)
    learner.callbacks.append(Every(lambda learner: learner.model(torch.randn(2, 3, 8, 8)), n_steps=7))
    learner.fit()
    assert_same_end(tmp_path, whole, N_STEPS)
