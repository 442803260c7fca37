"""The classifier of Fashion-MNIST, on a few hundred of its pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.recipes.fashion_classifier import (
    FashionClassifierConfig,
    accuracy,
    load_classifier,
    train_fashion_classifier,
)
from miniai.train.fashion_mnist import load_fashion_mnist
from miniai.train.inference import as_it_is, flipped, predict_with_views

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"
CPU = torch.device("cpu")
SMALL = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(16, 32)))
SMALL = replace(SMALL, stage=replace(SMALL.stage, batch_size=20, learning_rate=2e-2, ema=0.5))


def test_a_few_epochs_on_a_few_pictures_beat_chance_by_far(tmp_path: Path) -> None:
    results = train_fashion_classifier(tmp_path / "run", data=DATA, epochs=8, config=SMALL)
    assert results["accuracy"] > 0.45  # chance is 0.1
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    model, test = load_classifier(tmp_path / "run", CPU), load_fashion_mnist("test", DATA)
    assert accuracy(model, test, CPU)["accuracy"] == results["accuracy"]
    assert model.features(test.scaled()[:3]).shape == (3, 32)
    logits = model(test.scaled())
    assert results["accuracy"] == (logits.argmax(1) == test.labels).double().mean().item()
    both = predict_with_views(model, test.scaled(), (as_it_is, flipped)).argmax(1) == test.labels
    assert results["accuracy_with_mirror_images"] == both.double().mean().item()
    for name in ("loss.png", "rates.png", "mistakes.png"):
        assert (tmp_path / "run" / name).read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="finished training of 80 steps, and --epochs 9 makes 90"):
        train_fashion_classifier(tmp_path / "run", data=DATA, epochs=9, config=SMALL, resume=True)


def test_a_run_cut_short_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_fashion_classifier(tmp_path / "whole", data=DATA, epochs=1, config=SMALL)

    def die(*arguments: object) -> None:
        raise RuntimeError("the machine went away")

    monkeypatch.setattr("miniai.recipes.fashion_classifier.measure_norms", die)
    with pytest.raises(RuntimeError, match="went away"):
        train_fashion_classifier(tmp_path / "cut", data=DATA, epochs=1, config=SMALL)
    monkeypatch.undo()
    with pytest.raises(UserError, match="add --resume"):
        train_fashion_classifier(tmp_path / "cut", data=DATA, epochs=1, config=SMALL)
    again = train_fashion_classifier(tmp_path / "cut", data=DATA, epochs=1, config=SMALL, resume=True)
    assert again["accuracy"] == whole["accuracy"]
    weights = [load_classifier(tmp_path / name, CPU).state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_another_config_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    train_fashion_classifier(tmp_path, data=DATA, epochs=0.2, config=SMALL)
    with pytest.raises(UserError, match="other numbers"):
        train_fashion_classifier(tmp_path, data=DATA, epochs=0.2, config=replace(SMALL, seed=1), resume=True)


def test_a_resnet_begins_as_its_identity_paths() -> None:
    model = ResNet(ResNetConfig(in_channels=3, block_out_channels=(4, 8, 8), layers_per_block=2)).eval()
    x = torch.randn(2, 3, 9, 9)
    expected = torch.relu(model.norm_in(model.conv_in(x)))
    for block in model.blocks:
        expected = torch.relu(block.shortcut(expected))
    assert torch.equal(model.features(x), expected.mean((2, 3)))


def test_the_command_line_trains_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "fashion-mnist", "--data", str(DATA)]) == 0
    assert capsys.readouterr().out == f"found: {DATA}\n"
    nowhere = str(tmp_path / "nowhere")
    for command in (["data", "fashion-mnist"], ["train", "fashion-classifier", "--out", str(tmp_path / "out")]):
        assert run([*command, "--data", nowhere]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: Fashion-MNIST is not there")
        assert "apt-get install dataset-fashion-mnist" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
