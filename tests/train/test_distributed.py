"""Two processes on gloo are one with their batches joined: the same curve, no item twice, saved once, resumed."""

import json
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import distributed_training
import pytest
import torch

from miniai.base.errors import UserError
from miniai.train.checkpoint import checkpoints
from miniai.train.data import Loader
from miniai.train.distributed import Accelerate
from miniai.train.learner import Learner


def together(
    processes: ForkServerContext,
    folder: Path,
    name: str,
    n_epochs: int,
    stop_at: tuple[int | None, ...] = (None, None),
    batch_size: int = 4,
) -> list[dict[str, Any]]:
    """What each of two processes found."""
    arguments = (2, str(folder), name, n_epochs, list(stop_at), batch_size)
    running = [processes.Process(target=distributed_training.run, args=(rank, *arguments)) for rank in range(2)]
    for one in running:
        one.start()
    for one in running:
        one.join(240)
    assert [one.exitcode for one in running] == [0, 0]
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_as_one_does_save_once_and_resume(processes: ForkServerContext, tmp_path: Path) -> None:
    alone = distributed_training.train(tmp_path / "alone", 2)
    first, second = together(processes, tmp_path, "whole", 2)

    # the loss curve of one process, and the same weights
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["weights"] == second["weights"] == pytest.approx(alone["weights"], abs=1e-5)
    assert first["valid"]["loss"] == second["valid"]["loss"] == pytest.approx(alone["valid"]["loss"], rel=1e-5)

    # each process has its own half of every batch, and its own noise; none sees what another does
    for ours, theirs, joined in zip(first["items"], second["items"], alone["items"], strict=True):
        assert (len(ours), len(theirs)) == (2, 2)
        assert ours + theirs == joined
    per_epoch = [sum(first["items"][:5] + second["items"][:5], []), sum(first["items"][5:] + second["items"][5:], [])]
    assert [len(items) for items in per_epoch] == [len(set(items)) for items in per_epoch] == [20, 20]
    assert first["noise"] == alone["noise"]
    assert not set(first["noise"]) & set(second["noise"])

    # saved and logged by the first process alone
    assert (first["saves"], second["saves"]) == (1, 0)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-0000010.safetensors"]
    assert (first["recorded"], second["recorded"]) == (list(range(1, 11)), [])
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 12

    # stopped where one of them alone wants to, and resumed to the last bit
    (tmp_path / "broken").mkdir()
    stopped = together(processes, tmp_path / "broken", "first", 2, (None, 3))
    assert [one["step"] for one in stopped] == [3, 3]
    assert [one["stop_reason"] for one in stopped] == ["another process stops", "enough"]
    resumed = together(processes, tmp_path / "broken", "second", 2)
    assert [one["weights"] for one in resumed] == [first["weights"]] * 2
    assert resumed[0]["losses"] == first["losses"][3:]


def test_a_batch_that_processes_cannot_share_is_refused(processes: ForkServerContext, tmp_path: Path) -> None:
    for one in together(processes, tmp_path, "uneven", 1, batch_size=5):
        assert "2 processes need whole batches that they can share evenly" in one["error"]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_weights_parted_among_processes_are_refused_before_anything_is_trained(kind: str) -> None:
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    model = torch.nn.Linear(2, 1)
    accelerate = Accelerate(cpu=True)
    own = accelerate.accelerator.distributed_type
    data, optimizer = Loader(torch.ones(8, 2), 4, seed=0), torch.optim.SGD(model.parameters(), 0.1)
    learner = Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[accelerate])
    try:
        AcceleratorState().distributed_type = DistributedType[kind]  # as `accelerate config` would have it
        with pytest.raises(UserError, match=f"set to {kind}, which parts the weights"):
            learner.fit(1)
    finally:
        AcceleratorState().distributed_type = own
    assert learner.step == 0
    learner.fit(1)
    assert learner.step == 2


def test_the_shards_of_a_loader_are_its_batches_parted() -> None:
    loader = Loader(torch.arange(12.0), 6, seed=1)
    whole = list(loader.batches(0))
    parts = []
    for shard in ((0, 2), (1, 2)):
        loader.shard = shard
        parts.append(list(loader.batches(0)))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch, torch.cat([first, second]))
