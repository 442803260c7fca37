"""Pictures painted again until a classifier sees their class, and figures over several draws."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from tiny_fashion import CPU, DATA, tiny
from torch import Tensor

from miniai.cli import run
from miniai.evaluate.fid import fid
from miniai.nn.resnet import ResNetConfig
from miniai.recipes.fashion_classifier import FashionClassifierConfig, load_classifier, train_fashion_classifier
from miniai.recipes.fashion_diffusion import train_fashion_diffusion
from miniai.recipes.fashion_judge import SEEDS_OF_A_TRY, Judge, PaintUntilKept, class_logits, features, named
from miniai.recipes.fashion_painting import load_fashion_diffusion, paint


class Painter:
    """Paints pictures of one brightness each; which, stands in a table by try and label."""

    def __init__(self, brightness: list[list[float]]) -> None:
        self.brightness, self.asked = brightness, list[tuple[list[int], int, dict[str, Any]]]()

    def __call__(self, labels: Tensor, *, seed: int, **options: Any) -> Tensor:
        self.asked.append((labels.tolist(), seed, options))
        values = [self.brightness[seed // SEEDS_OF_A_TRY][label] for label in labels.tolist()]
        return torch.tensor(values)[:, None, None, None].expand(-1, 1, 8, 8).clone()


def logit_of_brightness(images: Tensor) -> Tensor:
    """Each class is as likely, and the likelier beside a fourth one the brighter a picture is."""
    bright = images.mean((1, 2, 3))
    return torch.stack([bright, bright, bright, torch.full_like(bright, 1.1)], 1)


def test_what_is_not_clear_is_painted_again_and_the_clearest_is_kept() -> None:
    tries = [[1.0, -3.0, -2.0], [9.0, 8.0, -1.0], [9.0, 9.0, -1.5]]
    painter = Painter(tries)
    until = PaintUntilKept(painter, [logit_of_brightness], CPU, below=0.2, tries=3)
    kept = until(torch.tensor([0, 1, 2]), seed=5, churn=1.0)
    assert kept[:, 0, 0, 0].tolist() == [1.0, 8.0, -1.0]  # clear at once; at the second try; never, but at its best
    assert painter.asked == [
        ([0, 1, 2], 5, {"churn": 1.0}),
        ([1, 2], 5 + SEEDS_OF_A_TRY, {"churn": 1.0}),
        ([2], 5 + 2 * SEEDS_OF_A_TRY, {"churn": 1.0}),
    ]
    assert until.n_painted == 6
    assert (
        PaintUntilKept(Painter(tries), [logit_of_brightness], CPU, below=0.0)(torch.tensor([0, 1, 2]), seed=0).tolist()
        == Painter(tries)(torch.tensor([0, 1, 2]), seed=0).tolist()
    )


def test_classifiers_and_mirror_images_count_alike() -> None:
    """One sees the class in pictures whose left is bright, the other in none: a quarter of all views, until one comes
    that is bright on both sides."""

    def left(images: Tensor) -> Tensor:
        return 100 * torch.stack([images[..., :2].mean((1, 2, 3)), torch.zeros(len(images))], 1)

    def none(images: Tensor) -> Tensor:
        return torch.tensor([-100.0, 0.0]).expand(len(images), 2)

    one_side = torch.cat([torch.ones(1, 1, 8, 4), -torch.ones(1, 1, 8, 4)], 3)

    def paint(labels: Tensor, *, seed: int) -> Tensor:
        return one_side if seed < SEEDS_OF_A_TRY else torch.ones(1, 1, 8, 8)

    for below, n_painted in ((0.24, 1), (0.26, 2), (0.49, 2), (0.51, 10)):
        until = PaintUntilKept(paint, [left, none], CPU, below)
        until(torch.tensor([0]), seed=0)
        assert until.n_painted == n_painted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painter, two classifiers, and a painter that is told no classes, of a few steps each."""
    folder = tmp_path_factory.mktemp("judged")
    config = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(8, 16)))
    config = replace(config, stage=replace(config.stage, batch_size=20, learning_rate=1e-2, ema=0.5))
    for name, seed in (("judge", 0), ("other", 1)):
        train_fashion_classifier(folder / name, data=DATA, epochs=1, config=replace(config, seed=seed))
    for kind in ("conditional", "edm"):
        train_fashion_diffusion(kind, folder / kind, data=DATA, epochs=0.2, config=tiny(kind))
    return folder


def command(folder: Path, painter: str, out: Path, *options: str) -> list[str]:
    names = ["--model", str(folder / painter), "--classifier", str(folder / "judge"), "--data", str(DATA)]
    return ["evaluate", "fashion", *names, "--n", "64", "--out", str(out), *options]


def evaluation(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return found


def test_several_draws_have_the_mean_of_each_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(folder, "conditional", tmp_path / "both", "--draws", "2", "--seed", "7")) == 0
    printed = capsys.readouterr().out
    both = evaluation(tmp_path / "both")
    for number, seed in enumerate((7, 7 + 64)):
        assert run(command(folder, "conditional", tmp_path / str(seed), "--seed", str(seed))) == 0
        alone = evaluation(tmp_path / str(seed))
        assert alone["draws"] == [both["draws"][number]]
        assert alone["deviation_of_ratio"] is None
    ratios = [one["ratio"] for one in both["draws"]]
    assert ratios[0] != ratios[1]
    assert both["ratio"] == pytest.approx(fmean(ratios))
    assert both["deviation_of_ratio"] == pytest.approx(stdev(ratios))
    assert f"{stdev(ratios):.2f} its deviation over 2 draws" in printed
    assert both["read_as_asked"] == pytest.approx(fmean(one["read_as_asked"] for one in both["draws"]))
    assert (tmp_path / "both" / "painted.png").read_bytes() == (tmp_path / "7" / "painted.png").read_bytes()


def test_real_pictures_of_the_same_classes_stand_beside(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(folder, "conditional", tmp_path / "one")) == 0
    printed, found = capsys.readouterr().out, evaluation(tmp_path / "one")
    judge = Judge(folder / "judge", DATA, CPU)
    labels = torch.arange(64) % 10
    members = [(judge.train.labels == label).nonzero()[:, 0] for label in range(10)]
    counts = [7, 7, 7, 7, *[6] * 6]
    rows = torch.cat([own[torch.linspace(0, len(own) - 1, n).long()] for own, n in zip(members, counts, strict=True)])
    assert torch.equal(judge.train.labels[rows], labels.sort().values)
    real = judge.train.scaled(2)
    expected = fid(features(judge.network, real[rows], CPU), features(judge.network, judge.test.scaled(2), CPU))
    assert found["fid_of_real_by_class"] == pytest.approx(expected, rel=1e-4)
    right = (named(judge.network, real[rows], CPU) == judge.train.labels[rows]).float().mean()
    assert found["real_read_as_labelled"] == pytest.approx(float(right))
    assert f"their FID is {expected:.3f}" in printed
    assert run(command(folder, "edm", tmp_path / "untold")) == 0
    assert "fid_of_real_by_class" not in evaluation(tmp_path / "untold")


def test_rejection_is_by_the_other_classifier(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--reject-by", str(folder / "other")]
    assert run(command(folder, "conditional", tmp_path / "clear", *options, "--reject-below", "0.12")) == 0
    printed, found = capsys.readouterr().out, evaluation(tmp_path / "clear")
    assert (found["reject_by"], found["reject_below"]) == ([str(folder / "other")], 0.12)
    assert 1 < found["painted_for_each"] < 10
    assert f"{found['painted_for_each']:.2f} pictures painted for each" in printed
    model, config = load_fashion_diffusion(folder / "conditional", CPU)
    labels = torch.arange(64) % 10
    painted = paint(model, config, labels, seed=0)
    other = load_classifier(folder / "other", CPU)
    chances = sum(class_logits(other, way, CPU).softmax(1) for way in (painted, painted.flip(3)))
    chances = chances.gather(1, labels[:, None]) / 2
    assert 64 * (found["painted_for_each"] - 1) >= (chances < 0.12).sum() > 0
    assert run(command(folder, "conditional", tmp_path / "all", *options, "--reject-below", "0")) == 0
    plain = evaluation(tmp_path / "all")
    assert plain["painted_for_each"] == 1
    assert plain["ratio"] != found["ratio"]


def test_rejection_without_classifier_or_classes_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(folder / "other")
    for painter, options, line in (
        ("conditional", ["--reject-below", "0.3"], "name a classifier there"),
        ("conditional", ["--reject-by", other, "--reject-below", "1.5"], "--reject-below 1.5 is out of range"),
        ("conditional", ["--reject-by", str(folder / "judge")], "would see its own work"),
        ("edm", ["--reject-by", other], "told no classes to reject by"),
        ("conditional", ["--draws", "0"], "--draws 0 is out of range"),
    ):
        assert run(command(folder, painter, tmp_path / "none", *options)) == 2
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1
        assert not (tmp_path / "none").exists()
