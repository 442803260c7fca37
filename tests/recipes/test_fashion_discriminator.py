"""Painted clothes kept by how much likelier they are among real ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fashion import CPU, DATA, tiny
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.base.weights import read_weights
from miniai.cli import run
from miniai.evaluate.density_ratio import fit_density_ratio
from miniai.nn.resnet import ResNetConfig
from miniai.recipes import fashion_discriminator
from miniai.recipes.evaluate_fashion import FashionWays, until_kept
from miniai.recipes.fashion_classifier import FashionClassifierConfig, load_classifier, train_fashion_classifier
from miniai.recipes.fashion_diffusion import train_fashion_diffusion
from miniai.recipes.fashion_discriminator import (
    FIRST_SEED,
    SEEDS_OF_ONE,
    FashionDiscriminatorConfig,
    load_discriminator,
    train_fashion_discriminator,
)
from miniai.recipes.fashion_judge import PaintUntilKept, clearness
from miniai.recipes.fashion_latent import load_painter
from miniai.recipes.fashion_painting import load_fashion_diffusion, paint
from miniai.train.fashion_mnist import load_fashion_mnist


@pytest.mark.parametrize(("cap", "share"), [(2.5, 0.5), (1.0, 0.8 * 0.625 / (0.8 * 0.625 + 0.2)), (1e-9, 0.8)])
def test_what_is_painted_too_often_is_kept_as_often_as_it_is(cap: float, share: float) -> None:
    """Four of five painted pictures are bright, and of real ones a half. From a cap on that no ratio is above, kept
    ones are as real ones; below it, they are on the way there."""

    def paint_mostly_bright(labels: Tensor, *, seed: int) -> Tensor:
        bright = torch.rand(len(labels), generator=make_generator(seed)) < 0.8
        return torch.where(bright, 1.0, -1.0)[:, None, None, None].expand(-1, 1, 6, 6)

    def ratio(images: Tensor) -> Tensor:
        return torch.where(images.mean((1, 2, 3)) > 0, 0.5 / 0.8, 0.5 / 0.2).double()

    def sure(images: Tensor) -> Tensor:
        return torch.tensor([9.0, -9.0]).expand(len(images), 2)

    until = PaintUntilKept(paint_mostly_bright, [sure], CPU, 0.5, ratio, cap)
    kept = until(torch.zeros(4000, dtype=torch.int64), seed=3)
    assert float((kept.mean((1, 2, 3)) > 0).float().mean()) == pytest.approx(share, abs=0.025)
    expected = 1 / (0.8 * min(1, 0.625 / cap) + 0.2 * min(1, 2.5 / cap))
    assert until.n_painted / 4000 == pytest.approx(expected, rel=0.03)


def test_the_unclear_is_not_kept_however_real_it_looks() -> None:
    def by_seed(labels: Tensor, *, seed: int) -> Tensor:
        return torch.full((len(labels), 1, 6, 6), 1.0 if seed > 10 else -1.0)

    def bright(images: Tensor) -> Tensor:
        return 9 * torch.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], 1)

    until = PaintUntilKept(by_seed, [bright], CPU, 0.5, lambda images: torch.full((len(images),), 1e9))
    assert (until(torch.zeros(3, dtype=torch.int64), seed=0) == 1).all()
    assert until.n_painted == 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Painters, told classes and not, and three classifiers, of a few steps each; and a discriminator."""
    folder = tmp_path_factory.mktemp("discriminated")
    config = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(8, 16)))
    config = replace(config, stage=replace(config.stage, batch_size=20, learning_rate=1e-2, ema=0.5))
    for name, seed in (("judge", 0), ("one", 1), ("two", 2)):
        train_fashion_classifier(folder / name, data=DATA, epochs=1, config=replace(config, seed=seed))
    for kind in ("conditional", "edm"):
        train_fashion_diffusion(kind, folder / kind, data=DATA, epochs=0.2, config=tiny(kind))
    assert run(training(folder, folder / "discriminator")) == 0
    return folder


def training(folder: Path, out: Path, *options: str, painter: str = "conditional") -> list[str]:
    names = ["--painter", str(folder / painter), "--by", str(folder / "one"), "--by", str(folder / "two")]
    numbers = ["--pictures", "90", "--sampler-steps", "3", "--reject-below", "0.1", "--ridge", "1"]
    return ["train", "fashion-discriminator", *names, "--out", str(out), "--data", str(DATA), *numbers, *options]


def evaluating(folder: Path, out: Path, *options: str) -> list[str]:
    names = ["--model", str(folder / "conditional"), "--classifier", str(folder / "judge"), "--data", str(DATA)]
    by = ["--reject-by", str(folder / "two"), "--reject-by", str(folder / "one"), "--reject-below", "0.1"]
    return ["evaluate", "fashion", *names, *by, "--n", "64", "--steps", "3", "--out", str(out), *options]


def test_it_is_fitted_to_clear_painted_pictures_and_as_many_real_ones(folder: Path) -> None:
    painter, own = load_fashion_diffusion(folder / "conditional", CPU)
    by = [load_classifier(folder / name, CPU) for name in ("one", "two")]
    labels = torch.arange(90) % 10
    painted = paint(painter, own, labels, seed=FIRST_SEED, n_steps=3, guidance_scale=1.0)
    painted = ((painted + 1) * 127.5).round() / 127.5 - 1
    assert torch.allclose(
        read_weights(folder / "discriminator" / "painted.safetensors")["pictures"] / 127.5 - 1, painted
    )
    clear = clearness(by, painted, labels, CPU) >= 0.1
    assert 0 < int(clear.sum()) < 90
    train = load_fashion_mnist("train", DATA).scaled(2)
    real = train[torch.linspace(0, len(train) - 1, 90).long()]

    def seen(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([one.features(images[:, :, 2:-2, 2:-2]) for one in by], 1)

    expected = fit_density_ratio(seen(real), seen(painted[clear]), 1)
    loaded = load_discriminator(folder / "discriminator", by[::-1], CPU)
    assert torch.allclose(loaded(real), expected(seen(real)), rtol=1e-3)
    assert loaded(real).log().mean() > 0.1
    assert loaded(painted[clear]).log().mean() < -0.1
    results = json.loads((folder / "discriminator" / "results.json").read_text())
    assert results["clear"] == pytest.approx(float(clear.float().mean()))
    assert results["kept"] == pytest.approx(float((loaded(painted[clear]) / 2).clamp(max=1).mean()), rel=1e-3)


def test_what_stopped_goes_on_to_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_discriminator, "PART", 40)
    load, calls = fashion_discriminator.load_painter, list[int]()

    class Stopping:
        def __init__(self, paint: Any) -> None:
            self.paint, self.args = paint, paint.args

        def __call__(self, labels: Tensor, *, seed: int, **options: Any) -> Tensor:
            calls.append(seed)
            if len(calls) == 2:
                raise KeyboardInterrupt
            painted: Tensor = self.paint(labels, seed=seed, **options)
            return painted

    monkeypatch.setattr(
        fashion_discriminator, "load_painter", lambda *names: (Stopping(load(*names)[0]), load(*names)[1])
    )
    assert run(training(folder, tmp_path / "d")) != 0
    assert not (tmp_path / "d" / "ratio.safetensors").exists()
    assert run(training(folder, tmp_path / "d")) == 2  # it asks for --resume
    assert run(training(folder, tmp_path / "d", "--resume")) == 0
    assert calls == [FIRST_SEED, FIRST_SEED + 40, FIRST_SEED + 40, FIRST_SEED + 80]
    kept, again = (read_weights(one / "ratio.safetensors") for one in (folder / "discriminator", tmp_path / "d"))
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-3)


def test_another_seed_paints_other_pictures(folder: Path, tmp_path: Path) -> None:
    assert run(training(folder, tmp_path / "d", "--seed", "1")) == 0
    painter, own = load_fashion_diffusion(folder / "conditional", CPU)
    first = paint(painter, own, torch.tensor([0]), seed=FIRST_SEED + SEEDS_OF_ONE, n_steps=3, guidance_scale=1.0)
    pictures = read_weights(tmp_path / "d" / "painted.safetensors")["pictures"]
    assert torch.allclose(pictures[:1] / 127.5 - 1, first, atol=0.005)


def test_an_evaluation_keeps_by_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, d = {}, str(folder / "discriminator")
    for name, options in (("clear", []), ("kept", ["--discriminator", d, "--discriminator-cap", "1"])):
        assert run(evaluating(folder, tmp_path / name, *options)) == 0
        found[name] = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert f"{found[name]['painted_for_each']:.2f} pictures painted for each" in capsys.readouterr().out
    assert 1 < found["clear"]["painted_for_each"] < found["kept"]["painted_for_each"]
    assert (found["clear"]["discriminator"], found["clear"]["discriminator_cap"]) == (None, None)
    assert (found["kept"]["discriminator"], found["kept"]["discriminator_cap"]) == (d, 1)
    sheets = [(tmp_path / name / "painted.png").read_bytes() for name in ("clear", "kept")]
    assert sheets[0] != sheets[1]


def test_the_cap_is_two_unless_another_is_asked_for(folder: Path) -> None:
    painter, config = load_painter(folder / "conditional", CPU)
    by = (folder / "one", folder / "two")
    for cap, expected in ((None, 2), (3.5, 3.5)):
        ways = FashionWays(reject_by=by, discriminator=folder / "discriminator", discriminator_cap=cap).filled(config)
        assert until_kept(painter, ways, 0.5, CPU).cap == expected


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    d, out = str(folder / "discriminator"), tmp_path / "none"
    for words, message in (
        (training(folder, out, painter="edm"), "is told no classes"),
        (training(folder, out, "--pictures", "19"), "--pictures 19 is out of range"),
        (training(folder, out, "--ridge", "0"), "--ridge 0.0 is not possible"),
        (training(folder, out, "--reject-below", "1.1"), "--reject-below 1.1 is out of range"),
        (training(folder, out, "--guidance-scale", "-1"), "--guidance-scale -1.0 is out of range"),
        (training(folder, out, "--seed", "9"), "--seed 9 is out of range"),
        (training(folder, out, "--sampler", "best"), "best"),
        (training(folder, out, "--by", str(folder / "one")), "names a classifier twice"),
        (training(folder, folder / "one"), "holds another training"),
        (evaluating(folder, out, "--discriminator-cap", "3"), "name a folder there"),
        (evaluating(folder, out, "--discriminator", d, "--discriminator-cap", "0.5"), "is out of range"),
        (evaluating(folder, out, "--discriminator", str(folder / "nowhere")), "nowhere"),
        ([*evaluating(folder, out)[:8], "--discriminator", d], "looks through classifiers"),
        ([*evaluating(folder, out)[:10], "--discriminator", d], "learned through other classifiers"),
    ):
        assert run(words) == 2, words
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1], said
        assert not out.exists()


def test_another_painter_than_it_learned_from_is_pointed_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    d = tmp_path / "d"
    shutil.copytree(folder / "discriminator", d)
    ways = FashionWays(reject_by=(folder / "one", folder / "two"), discriminator=d, discriminator_cap=2)
    painter, _ = load_painter(folder / "conditional", CPU)
    until_kept(painter, ways, 0.5, CPU)
    assert "another network" not in capsys.readouterr().err
    plan = json.loads((d / "discriminator.json").read_text())
    (d / "discriminator.json").write_text(json.dumps({**plan, "painter": "0" * 64}))
    until_kept(painter, ways, 0.5, CPU)
    assert f"note: {d} learned from pictures of another network" in capsys.readouterr().err


def test_pictures_of_which_none_is_clear_are_refused(folder: Path, tmp_path: Path) -> None:
    config = FashionDiscriminatorConfig(pictures=20, n_steps=2, reject_below=1.0)
    by = [folder / "one", folder / "two"]
    with pytest.raises(UserError, match="0 of 20 painted pictures are clear"):
        train_fashion_discriminator(folder / "conditional", by, tmp_path / "d", config=config, data=DATA)
