"""The classifier of Fashion-MNIST, on a few hundred of its pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_fashion import CPU, DATA, tiny_classifier

from miniai.base.configs import config_from_dict
from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.recipes.fashion import save_model
from miniai.recipes.fashion_classifier import (
    FashionClassifierConfig,
    Strength,
    accuracy,
    load_classifier,
    log_probabilities,
    train_fashion_classifier,
)
from miniai.train.augment import RandomFlip, item_generators
from miniai.train.fashion_mnist import load_fashion_mnist
from miniai.train.inference import as_it_is, flipped, predict_with_views
from miniai.train.mixup import MixUp

SMALL = tiny_classifier()


def test_a_few_epochs_on_a_few_pictures_beat_chance_by_far(tmp_path: Path) -> None:
    results = train_fashion_classifier(tmp_path / "run", data=DATA, epochs=8, config=SMALL)
    assert results["accuracy"] > 0.45  # chance is 0.1
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    model, test = load_classifier(tmp_path / "run", CPU), load_fashion_mnist("test", DATA)
    assert accuracy(log_probabilities(model, test.scaled(), CPU), test.labels)["accuracy"] == results["accuracy"]
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


def test_a_run_from_before_a_number_had_a_name_goes_on(tmp_path: Path) -> None:
    """A config kept then lacks the field, whose default is what was done then."""
    train_fashion_classifier(tmp_path, data=DATA, epochs=0.2, config=SMALL)
    kept = json.loads((tmp_path / "config.json").read_text())
    del kept["stage"]["optimizer"]
    (tmp_path / "config.json").write_text(json.dumps(kept))
    train_fashion_classifier(tmp_path, data=DATA, epochs=0.2, config=SMALL, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["stage"]["optimizer"] == "adamw"


def test_the_more_epochs_the_more_the_pictures_are_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = FashionClassifierConfig()
    strengths = [config.strength(epochs) for epochs in (0.5, 5, 20, 50)]
    assert strengths[0] == strengths[1] == config.strengths[0]
    changed = torch.stack([mean_change(strength) for strength in strengths[1:]])
    assert (changed.diff() > 0.01).all()
    train_fashion_classifier(tmp_path, data=DATA, epochs=0.2, config=SMALL)
    assert f"strength, of 0.2 epochs: {SMALL.strengths[0]}" in capsys.readouterr().err
    kept = json.loads((tmp_path / "config.json").read_text())
    assert config_from_dict(FashionClassifierConfig, kept, "config.json") == SMALL
    with pytest.raises(ValueError, match="must begin at 0 and rise, not \\[10, 35\\]"):
        replace(config, strengths=config.strengths[1:])


def mean_change(strength: Strength) -> torch.Tensor:
    """How far the pictures are from themselves, on average, after what `strength` does to them beside flips."""
    pictures = load_fashion_mnist("train", DATA).scaled()[:64]
    changed = pictures
    for k, augmentation in enumerate(strength.augmentations()):
        if not isinstance(augmentation, RandomFlip):
            changed = augmentation(changed, item_generators(0, 0, list(range(64)), k))
    return (changed - pictures).abs().mean()


def test_a_training_with_mixup_learns_against_targets_that_are_no_certainties(tmp_path: Path) -> None:
    mixed = replace(SMALL, strengths=(Strength(0, crop=1, erase=0.25, patches=1, mix=0.5),))
    (mixup,) = [one for one in mixed.strength(8).callbacks(10) if isinstance(one, MixUp)]
    assert (mixup.alpha, mixup.n_classes, mixup.until) == (0.5, 10, 0.8)
    assert not any(isinstance(one, MixUp) for one in SMALL.strength(8).callbacks(10))
    results = train_fashion_classifier(tmp_path / "mixed", data=DATA, epochs=8, config=mixed)
    assert results["accuracy"] > 0.45  # chance is 0.1
    plain = replace(mixed, strengths=(replace(mixed.strengths[0], mix=0.0),))
    other = train_fashion_classifier(tmp_path / "plain", data=DATA, epochs=8, config=plain)
    assert other["loss"] < results["loss"]


def test_a_classifier_of_the_recipe_before_still_loads_but_does_not_go_on(tmp_path: Path) -> None:
    """Its config had `crop` and `erase` in place of `strengths`, and no `stem_channels`."""
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(block_out_channels=(4, 8), dropout=0.1)).eval()
    old = {"in_channels": 1, "n_classes": 10, "block_out_channels": [4, 8], "layers_per_block": 1, "dropout": 0.1}
    (tmp_path / "config.json").write_text(json.dumps({"model": old, "crop": 2, "erase": 0.2, "seed": 0}))
    save_model(model, tmp_path)
    x = torch.randn(2, 1, 28, 28)
    assert torch.allclose(load_classifier(tmp_path, CPU)(x), model(x), atol=1e-5)
    with pytest.raises(UserError, match="other numbers"):
        train_fashion_classifier(tmp_path, data=DATA, epochs=1, config=SMALL, resume=True)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="describes no classifier"):
        load_classifier(tmp_path, CPU)


def test_with_a_stem_every_level_halves_the_picture_and_an_odd_edge_counts() -> None:
    model = ResNet(ResNetConfig(block_out_channels=(4, 8), stem_channels=2, layers_per_block=2)).eval()
    assert len(model.blocks) == 2 * model.config.modules_per_level == 6
    x = torch.randn(2, 1, 14, 14)
    sizes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, out: sizes.append(tuple(out.shape[1:])))
    model(x)
    assert sizes == [(4, 7, 7)] * 3 + [(8, 4, 4)] * 3
    features = model.features(x)
    x[:, :, -1, -1] += 100
    assert not torch.equal(model.features(x), features)


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


def test_the_network_that_fid_is_judged_by_has_512_features_of_a_padded_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "fashion-classifier", "--data", str(DATA), "--out", str(tmp_path), "--epochs", "0.01"]
    assert run([*command, "--network", "six-level"]) == 0
    capsys.readouterr()
    judge = load_classifier(tmp_path, CPU)
    assert judge.blocks(judge.conv_in(torch.zeros(2, 1, 32, 32))).shape == (2, 512, 1, 1)
    assert run([*command[:4], "--out", str(tmp_path / "other"), "--network", "deep"]) == 2
    assert capsys.readouterr().err == "error: --network deep: there are pooled, wide, six-level\n"
    assert not (tmp_path / "other").exists()
