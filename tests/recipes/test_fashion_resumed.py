"""Every recipe on Fashion-MNIST, stopped in the middle of its steps, goes on to the same end bit for bit."""

import os
import signal
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fashion import DATA, tiny, tiny_autoencoder, tiny_classifier, tiny_latent

from miniai.base.files import read_json
from miniai.base.weights import read_weights
from miniai.recipes.fashion_autoencoder import train_fashion_autoencoder
from miniai.recipes.fashion_classifier import Strength, train_fashion_classifier
from miniai.recipes.fashion_diffusion import train_fashion_diffusion
from miniai.recipes.fashion_diffusion_config import KINDS
from miniai.recipes.fashion_latent import train_fashion_latent
from miniai.recipes.sweep import SweepConfig, run_sweep
from miniai.recipes.training import StageInterrupted
from miniai.train.checkpoint import checkpoints
from miniai.train.learner import Learner

CLASSIFIER = replace(tiny_classifier(), strengths=(Strength(0, crop=1, erase=0.25, patches=1, flip=0.5, mix=0.5),))
SWEEP = SweepConfig((20,), (0.003,), ("kaiming",), ("sgd", "adamw"), channels=(8, 16))  # of 10 steps each
RECIPES: dict[str, partial[object]] = {
    "classifier": partial(train_fashion_classifier, epochs=0.5, config=CLASSIFIER),
    **{kind: partial(train_fashion_diffusion, kind, epochs=0.4, config=tiny(kind)) for kind in KINDS},
    "autoencoder": partial(train_fashion_autoencoder, epochs=0.5, config=tiny_autoencoder()),
    "latent": partial(train_fashion_latent, epochs=0.5, autoencoder_epochs=0.3, config=tiny_latent()),
    "sweep": partial(run_sweep, config=SWEEP),
}


@pytest.mark.parametrize(
    ("name", "stop_at"),
    [*((name, 2) for name in RECIPES), ("latent", 5), ("sweep", 14)],  # these two train one network after another
)
def test_stopped_in_the_middle_and_resumed_it_ends_the_same_bit_for_bit(
    name: str, stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = partial(RECIPES[name], data=DATA, device="cpu")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with monkeypatch.context() as patch:
        taken = steps_taken(patch)
        train(whole)
    printed = capsys.readouterr().err.splitlines()
    for key, value in asdict(RECIPES[name].keywords["config"]).items():
        assert f"{key}: {value}" in printed  # each number of the recipe, before it trains
    with monkeypatch.context() as patch:
        steps_taken(patch, stop_at)
        with pytest.raises(StageInterrupted, match="go on with --resume"):
            train(parts)
    assert any(checkpoints(folder) for folder in parts.rglob("checkpoints"))
    with monkeypatch.context() as patch:
        resumed = steps_taken(patch)
        train(parts, resume=True)
    assert len(resumed) == len(taken) - stop_at
    assert stop_at < len(taken)
    assert_same_results(parts, whole)


def steps_taken(patch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Grows by one at each step of an optimizer; Ctrl-C is pressed during step `stop_at`."""
    taken: list[int] = []
    own = Learner.optimizer_step

    def counted(learner: Learner) -> None:
        taken.append(learner.step)
        if len(taken) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        own(learner)

    patch.setattr(Learner, "optimizer_step", counted)
    return taken


def assert_same_results(folder: Path, other: Path) -> None:
    def made(where: Path, pattern: str) -> list[str]:
        return sorted(
            str(path.relative_to(where)) for path in where.rglob(pattern) if path.parent.name != "checkpoints"
        )

    weights, results = made(other, "*.safetensors"), made(other, "result*.json")
    assert made(folder, "*.safetensors") == weights
    assert made(folder, "result*.json") == results
    assert weights + results
    for name in weights:
        ours, theirs = read_weights(folder / name), read_weights(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    for name in results:
        assert without_times(read_json(folder / name)) == without_times(read_json(other / name))


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("seconds", "minutes", "images_per_second")}
