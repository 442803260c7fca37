"""Refinement of networks that paint clothes, tiny ones, on a few hundred pictures of Fashion-MNIST."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fashion import CPU, DATA, tiny

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.base.weights import read_weights
from miniai.cli import run
from miniai.diffusion.discriminative import DiscriminativeObjective
from miniai.recipes.fashion import save_model
from miniai.recipes.fashion_diffusion import FashionObjective, train_fashion_diffusion
from miniai.recipes.fashion_diffusion_config import KINDS
from miniai.recipes.fashion_distil import distil_fashion
from miniai.recipes.fashion_painting import load_fashion_diffusion, paint, to_patches
from miniai.recipes.fashion_refine import FashionRefineConfig, RefineObjective, own_pictures, refine_fashion
from miniai.recipes.training import StageInterrupted
from miniai.train.fashion_mnist import load_fashion_mnist

FEW = FashionRefineConfig(rounds=2, pictures=24, steps=3, n_steps=2)
FEW = replace(FEW, stage=replace(FEW.stage, batch_size=16))


@pytest.fixture(scope="module")
def painters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painters")
    for kind in KINDS:
        train_fashion_diffusion(kind, folder / kind, data=DATA, epochs=0.1, config=tiny(kind))
    return folder


@pytest.fixture(scope="module")
def refined(painters: Path) -> Path:
    return refine_fashion(painters / "conditional", painters / "refined", config=FEW, data=DATA)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_fashion_diffusion(folder, CPU)[0].state_dict()


def test_each_round_learns_from_the_pictures_of_the_one_before(painters: Path, refined: Path) -> None:
    painter, seeds = painters / "conditional", (10_000_000, 20_000_000)
    for before, name, seed in zip((painter, refined / "round-1"), ("round-1", "round-2"), seeds, strict=True):
        model, config = load_fashion_diffusion(before, CPU)
        labels = torch.arange(24) % 10
        own = paint(model, config, labels, seed=seed, n_steps=2, guidance_scale=1.0)
        kept = read_weights(refined / name / "painted.safetensors")["pictures"]
        assert kept.dtype == torch.uint8
        torch.testing.assert_close(kept.float() / 127.5 - 1, own, rtol=0, atol=0.51 / 127.5)
        assert any(not torch.equal(value, weights(before)[key]) for key, value in weights(refined / name).items())
        assert (refined / name / "loss.png").is_file()
        assert list((refined / name / "samples").glob("*.png"))
    torch.testing.assert_close(weights(refined), weights(refined / "round-2"), rtol=0, atol=0)
    model, config = load_fashion_diffusion(refined, CPU)
    assert config == replace(tiny("conditional"), init=str(painter))  # it paints as before, and says what it was


def test_another_seed_is_other_pictures(painters: Path, refined: Path, tmp_path: Path) -> None:
    config = replace(FEW, rounds=1, seed=3)
    refine_fashion(painters / "conditional", tmp_path / "other", config=config, data=DATA)
    one, other = (
        read_weights(folder / "round-1" / "painted.safetensors")["pictures"] for folder in (refined, tmp_path / "other")
    )
    same = (one == other).flatten(1).all(1)
    assert not same.any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "conditional"])
def test_every_recipe_of_pixels_can_be_refined(kind: str, painters: Path, tmp_path: Path) -> None:
    out = refine_fashion(painters / kind, tmp_path / kind, config=replace(FEW, rounds=1), data=DATA)
    model, config = load_fashion_diffusion(out, CPU)
    assert paint(model, config, torch.arange(2), seed=0).isfinite().all()
    assert not torch.equal(weights(out)["conv_in.weight"], weights(painters / kind)["conv_in.weight"])


def test_the_network_comes_to_find_real_pictures_likelier_than_its_own(painters: Path, tmp_path: Path) -> None:
    """Which the painter itself does not, being what it is measured by."""
    config = replace(FEW, rounds=1, pictures=64, steps=30)
    config = replace(config, stage=replace(config.stage, learning_rate=2e-3))
    out = refine_fashion(painters / "edm", tmp_path / "edm", config=config, data=DATA)
    painter, own = load_fashion_diffusion(painters / "edm", CPU)
    images = load_fashion_mnist("test", DATA)
    painted = own_pictures(tmp_path / "others", painter, own, torch.arange(64) % 10, seed=5, n_steps=2)
    errors = DiscriminativeObjective(FashionObjective(own), painter, beta=0.05)
    kinds = (images.scaled(2)[:64], painted.float() / 127.5 - 1)
    real, fake = ((to_patches(kind, own.patch_size), torch.zeros(64, dtype=torch.long)) for kind in kinds)
    losses = [
        errors(load_fashion_diffusion(folder, CPU)[0], (real, fake), make_generator(1)).item()
        for folder in (painters / "edm", out)
    ]
    assert losses[0] == pytest.approx(2 * 0.6931, rel=1e-3)
    assert losses[1] < losses[0] - 0.05


def test_painted_pictures_come_with_the_class_that_they_were_painted_for(
    painters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, own = load_fashion_diffusion(painters / "conditional", CPU)
    labels = torch.arange(40) % 10
    painted = labels[:, None, None, None].expand(40, 4, 14, 14) / 10.0
    objective = RefineObjective(FEW, own, torch.nn.Identity(), painted, labels)
    drawn: list[torch.Tensor] = []

    def keep(self: DiscriminativeObjective, network: Any, batch: Any, generator: torch.Generator) -> torch.Tensor:
        drawn.extend(batch[1])
        return torch.zeros(())

    monkeypatch.setattr(DiscriminativeObjective, "__call__", keep)
    objective(torch.nn.Identity(), (torch.zeros(16, 4, 14, 14), torch.full((16,), 3)), make_generator(0))
    assert len(drawn[1].unique()) > 3
    assert torch.equal((10 * drawn[0][:, 0, 0, 0]).round().long(), drawn[1])


def test_a_broken_refinement_goes_on_and_ends_in_the_same_weights(
    painters: Path, refined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "refined"

    def dies_in_the_second(model: Any, out: Path) -> None:
        if out.name == "round-2":
            raise StageInterrupted("the machine went away")
        save_model(model, out)

    monkeypatch.setattr("miniai.recipes.fashion_refine.save_model", dies_in_the_second)
    with pytest.raises(StageInterrupted):
        refine_fashion(painters / "conditional", folder, config=FEW, data=DATA)
    monkeypatch.undo()
    with pytest.raises(UserError, match="not finished"):
        load_fashion_diffusion(folder, CPU)
    with pytest.raises(UserError, match="add --resume"):
        refine_fashion(painters / "conditional", folder, config=FEW, data=DATA)
    for other in ({"rounds": 3}, {"beta": 0.1}, {"pictures": 25}):
        with pytest.raises(UserError, match="has other numbers"):
            refine_fashion(painters / "conditional", folder, config=replace(FEW, **other), data=DATA, resume=True)
    with pytest.raises(UserError, match="has other numbers"):  # another painter
        refine_fashion(refined, folder, config=FEW, data=DATA, resume=True)
    kept = [(folder / "round-1" / "model.safetensors"), (folder / "round-2" / "painted.safetensors")]
    times = [path.stat().st_mtime_ns for path in kept]
    refine_fashion(painters / "conditional", folder, config=FEW, data=DATA, resume=True)
    assert [path.stat().st_mtime_ns for path in kept] == times  # finished: not made again
    torch.testing.assert_close(weights(folder), weights(refined), rtol=0, atol=0)


def test_the_command_says_where_the_refined_network_is(
    painters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "refined"
    options = ["--painter", str(painters / "edm"), "--out", str(out), "--data", str(DATA), "--device", "cpu"]
    numbers = ["--rounds", "1", "--pictures", "16", "--steps", "2", "--sampler", "euler", "--sampler-steps", "2"]
    assert run(["train", "fashion-refine", *options, *numbers]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"round-1"}
    assert run(["train", "fashion-refine", *options, *numbers]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert run(["train", "fashion-refine", *options, *numbers, "--resume"]) == 0


REFUSED = {
    "--rounds 0 is out of range": ["--rounds", "0"],
    "--pictures 0 is out of range": ["--pictures", "0"],
    "--steps 0 is out of range": ["--steps", "0"],
    "--sampler-steps 0 is out of range": ["--sampler-steps", "0"],
    "--seed -1 is out of range": ["--seed", "-1"],
    "--beta nan": ["--beta", "nan"],
    "--alpha 0": ["--alpha", "0"],
    "--learning-rate inf": ["--learning-rate", "inf"],
    "unknown sampler 'magic'": ["--sampler", "magic"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_numbers_that_cannot_be_are_one_line_and_leave_nothing(
    line: str, painters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--painter", str(painters / "edm"), "--out", str(out), "--data", str(DATA), *REFUSED[line]]
    assert run(["train", "fashion-refine", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert not out.exists()


def test_painters_of_another_kind_and_folders_in_use_are_refused(painters: Path, tmp_path: Path) -> None:
    student = distil_fashion(
        painters / "edm", tmp_path / "student", from_steps=4, to_steps=2, epochs_per_halving=0.1, data=DATA
    )
    for folder, why in ((student, "is distilled"), (tmp_path / "none", "none"), (tmp_path, "config.json")):
        with pytest.raises(UserError, match=why):
            refine_fashion(folder, tmp_path / "out", config=FEW, data=DATA)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="another training"):
        refine_fashion(painters / "edm", painters / "conditional", config=FEW, data=DATA)
