"""Every training on Fashion-MNIST can be drawn again from another seed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.recipes.fashion import save_model

DATA = Path(__file__).parents[1] / "data" / "fashion-mnist"
# Each command, the module that begins its first training, and where its config keeps the seed.
COMMANDS = {
    "classifier": ("fashion_classifier", "seed"),
    "ddpm": ("fashion_diffusion", "seed"),
    "ddim-cosine": ("fashion_diffusion", "seed"),
    "edm": ("fashion_diffusion", "seed"),
    "conditional": ("fashion_diffusion", "seed"),
    "autoencoder": ("fashion_autoencoder", "seed"),
    "super": ("fashion_super", "seed"),
    "latent": ("fashion_autoencoder", "autoencoder.seed"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_weights_order_and_noise_are_drawn_from_the_seed_that_is_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, place = COMMANDS[name]
    begun: list[tuple[int, Tensor]] = []

    def stop_before_the_first_step(
        stage_run: Any, stage: Any, model: nn.Module, data: Any, objective: Any, seed: int, **options: Any
    ) -> None:
        begun.append((seed, torch.cat([weight.detach().flatten() for weight in model.parameters()])))
        raise UserError("seen")

    monkeypatch.setattr(f"miniai.recipes.{module}.run_stage", stop_before_the_first_step)
    command = ["train", f"fashion-{name}", "--data", str(DATA)]
    if name == "super":
        config = ResNetConfig(block_out_channels=(4, 8))
        (tmp_path / "judge").mkdir()
        (tmp_path / "judge" / "config.json").write_text(json.dumps({"model": {"block_out_channels": [4, 8]}}))
        save_model(ResNet(config), tmp_path / "judge")
        command += ["--classifier", str(tmp_path / "judge")]
    for out, options in (("plain", []), ("other", ["--seed", "5"]), ("again", ["--seed", "5"])):
        assert run([*command, "--out", str(tmp_path / out), *options]) == 2
        assert capsys.readouterr().err.endswith("error: seen\n")
    (seed, first), (other_seed, other), (_, again) = begun
    assert (seed, other_seed) == (0, 5)
    assert not torch.equal(first, other)
    assert torch.equal(other, again)
    kept = json.loads((tmp_path / "other" / "config.json").read_text())
    for key in place.split("."):
        kept = kept[key]
    assert kept == 5
    assert run([*command, "--out", str(tmp_path / "none"), "--seed", "-1"]) == 2
    assert capsys.readouterr().err == f"error: --seed -1 is out of range: give 0 to {2**62 - 1}\n"
    assert not (tmp_path / "none").exists()


def test_a_recipe_of_two_networks_draws_both_from_its_seed() -> None:
    from miniai.recipes.fashion_latent import FashionLatentConfig

    seeded = FashionLatentConfig().seeded(7)
    assert (seeded.autoencoder.seed, seeded.diffusion.seed) == (7, 7)
    assert seeded.seeded(0) == FashionLatentConfig()
