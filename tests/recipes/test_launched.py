"""The command line under a launcher of several processes: one training, written once, like that of one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.base.weights import read_weights
from miniai.recipes import fashion_autoencoder as recipe
from miniai.recipes.fashion_autoencoder import RESULTS, AutoencoderObjective, train_fashion_autoencoder
from miniai.recipes.text_to_image import train_text_to_image
from miniai.recipes.training import StageInterrupted
from miniai.train.checkpoint import checkpoints

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"
EPOCHS = 3  # of 200 pictures in batches of 128: three steps
LAUNCHERS = {
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
}


def launched(launcher: str, port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = {"torchrun": "--master_port", "accelerate launch": "--main_process_port"}[launcher]
    command = [sys.executable, "-m", *LAUNCHERS[launcher], place, str(port), "-m", "miniai", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_either_launcher_trains_as_one_process_with_the_same_batch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together, halfway = (tmp_path / name for name in ("alone", "together", "halfway"))
    expected = train_fashion_autoencoder(alone, data=DATA, epochs=EPOCHS)
    options = ("train", "fashion-autoencoder", "--data", str(DATA), "--epochs", str(EPOCHS), "--device", "cpu", "--out")
    whole = launched("accelerate launch", free_port(), *options, str(together))
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("dB on the test pictures") == 1  # one process speaks
    assert_same_training(together, alone, expected)
    assert [path.name for path in checkpoints(together / "checkpoints")] == ["step-0000003.safetensors"]

    # begun by one process, gone on with by two
    monkeypatch.setattr(recipe, "AutoencoderObjective", StoppedInItsFirstStep)
    with pytest.raises(StageInterrupted, match="stopped at step 1"):
        train_fashion_autoencoder(halfway, data=DATA, epochs=EPOCHS)
    assert steps_of_losses(halfway)[0] == [1]
    resumed = launched("torchrun", free_port(), *options, str(halfway), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("dB on the test pictures") == 1
    assert_same_training(halfway, alone, expected)


class StoppedInItsFirstStep(AutoencoderObjective):
    """By Ctrl-C, which lets it finish the step."""

    def __call__(self, *arguments: Any) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return super().__call__(*arguments)


def assert_same_training(together: Path, alone: Path, expected: dict[str, Any]) -> None:
    """The same loss at each step, and in the end the same results and weights, up to bfloat16's rounding of the sums
    of half a batch each."""
    steps, losses = steps_of_losses(together)
    own_steps, own_losses = steps_of_losses(alone)
    assert steps == own_steps == [1, 2, 3]
    assert losses == pytest.approx(own_losses, rel=5e-3)
    assert own_losses[2] < 0.98 * own_losses[0]  # a curve that two other steps would not give
    found = read_json(together / RESULTS)
    assert (found["steps"], found["images"]) == (expected["steps"], expected["images"]) == (3, 384)
    assert found["psnr"] == pytest.approx(expected["psnr"], abs=0.05)
    weights, others = (read_weights(folder / "model.safetensors") for folder in (alone, together))
    apart = torch.cat([(weights[name] - others[name]).flatten() for name in weights])
    assert apart.square().mean().sqrt() < 1e-3


def steps_of_losses(folder: Path) -> tuple[list[int], list[float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def test_a_recipe_that_several_processes_cannot_share_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="trains in one process"):
        train_text_to_image(tmp_path, tmp_path / "out", steps=1)
