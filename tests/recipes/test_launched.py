"""The command line under a launcher of several processes: one training, written once, like that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.base.weights import read_weights
from miniai.recipes.fashion_autoencoder import RESULTS, train_fashion_autoencoder
from miniai.recipes.text_to_image import train_text_to_image
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


def test_either_launcher_trains_as_one_process_with_the_same_batch_does(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = train_fashion_autoencoder(alone, data=DATA, epochs=EPOCHS)
    options = ("train", "fashion-autoencoder", "--data", str(DATA), "--epochs", str(EPOCHS), "--out", str(together))
    first = launched("accelerate launch", free_port(), *options, "--device", "cpu")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("dB on the test pictures") == 1  # one process speaks
    found = read_json(together / RESULTS)
    assert (found["steps"], found["images"]) == (expected["steps"], expected["images"]) == (3, 384)
    assert found["loss"] == pytest.approx(expected["loss"], rel=5e-3)
    assert found["psnr"] == pytest.approx(expected["psnr"], abs=0.05)
    weights, others = read_weights(alone / "model.safetensors"), read_weights(together / "model.safetensors")
    apart = torch.cat([(weights[name] - others[name]).flatten() for name in weights])
    assert apart.square().mean().sqrt() < 1e-3  # bfloat16 sums halves of a batch in another order
    assert [path.name for path in checkpoints(together / "checkpoints")] == ["step-0000003.safetensors"]

    # as if it had been killed before it was done
    for name in ("done.json", "model.safetensors", RESULTS):
        (together / name).unlink()
    again = launched("torchrun", free_port(), *options, "--device", "cpu", "--resume")
    assert again.returncode == 0, again.stderr
    resumed = read_weights(together / "model.safetensors")
    assert all(torch.equal(resumed[name], others[name]) for name in others)
    assert read_json(together / RESULTS)["psnr"] == found["psnr"]


def test_a_recipe_that_several_processes_cannot_share_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="trains in one process"):
        train_text_to_image(tmp_path, tmp_path / "out", steps=1)
