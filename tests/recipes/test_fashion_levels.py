"""The noise levels of the recipes that paint clothes, in training and in painting: Karras' or the cosine schedule's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fashion import CPU, DATA, tiny
from torch import Tensor

from miniai.base.configs import config_from_dict, config_to_dict
from miniai.base.errors import UserError
from miniai.cli import run
from miniai.diffusion.ladder import cosine_sigmas
from miniai.diffusion.sampling import find_sampler
from miniai.nn.resnet import ResNetConfig
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion import save_model
from miniai.recipes.fashion_classifier import FashionClassifierConfig, train_fashion_classifier
from miniai.recipes.fashion_diffusion import train_fashion_diffusion
from miniai.recipes.fashion_diffusion_config import RECIPES, FashionDiffusionConfig
from miniai.recipes.fashion_painting import draw, from_patches, ladder_for, load_fashion_diffusion, load_guide, paint
from miniai.recipes.training import initial_weights


def loud(config: FashionDiffusionConfig) -> UNet2DModel:
    """A network whose x0 is far out of bounds."""
    with initial_weights(0):
        model = UNet2DModel(config.model)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        torch.nn.init.normal_(model.conv_out.weight, std=2.0)
    return model


def test_the_cosine_recipe_keeps_what_the_painter_had_learned(tmp_path: Path) -> None:
    """Its network is the painter's, on other levels: begun with that one and left alone, it paints the same."""
    train_fashion_diffusion("conditional", tmp_path / "edm", data=DATA, epochs=0.4, config=tiny("conditional"))
    config = tiny("ddim-cosine")
    model = replace(config.model, num_class_embeds=tiny("conditional").model.num_class_embeds)
    still = replace(config, model=model, stage=replace(config.stage, learning_rate=1e-30, ema=0.5))
    out = tmp_path / "cosine"
    train_fashion_diffusion("ddim-cosine", out, data=DATA, epochs=0.1, config=still, init=tmp_path / "edm")
    (edm, by_edm), (cosine, by_cosine) = (load_fashion_diffusion(tmp_path / name, CPU) for name in ("edm", "cosine"))
    labels = torch.arange(4)

    def painted(model: UNet2DModel, config: FashionDiffusionConfig, **options: Any) -> Tensor:
        return paint(model, config, labels, seed=0, sampler="euler", n_steps=5, guidance_scale=1.0, **options)

    assert torch.equal(painted(edm, by_edm), painted(cosine, by_cosine, spacing="karras"))
    assert torch.equal(painted(edm, by_edm, spacing="cosine"), painted(cosine, by_cosine))
    assert not torch.allclose(painted(edm, by_edm), painted(cosine, by_cosine), atol=1e-2)


def test_ddim_is_euler_in_these_recipes_where_x0_meets_its_bounds_too() -> None:
    """The noise of a step is what remains of x beside x0 within its bounds, not what the network said of it."""
    config = tiny("ddim-cosine")
    model = loud(config)
    options: dict[str, Any] = {"seed": 0, "n_steps": 6}
    ddim, euler = (paint(model, config, torch.arange(3), sampler=sampler, **options) for sampler in ("ddim", "euler"))
    torch.testing.assert_close(ddim, euler, rtol=0, atol=1e-5)
    free = draw(model, config, torch.arange(3), sampler="euler", **options)
    assert not torch.allclose(euler, from_patches(free.clamp(-1, 1), config.patch_size), atol=0.1)  # bounds are met


def test_folders_of_before_these_levels_learned_timesteps_and_are_read_so() -> None:
    assert RECIPES["ddim-cosine"].is_edm
    assert not RECIPES["ddpm"].is_edm
    older = config_to_dict(RECIPES["ddim-cosine"])
    del older["levels"]
    config = config_from_dict(FashionDiffusionConfig, older, "config.json")
    assert (config.is_edm, config.schedule.beta_schedule) == (False, "squaredcos_cap_v2")
    with pytest.raises(UserError, match="timesteps of a discrete schedule"):
        paint(loud(tiny("ddpm")), tiny("ddpm"), torch.arange(2), seed=0, spacing="karras")


def test_a_guide_that_was_told_timesteps_cannot_stand_beside_a_network_that_is_told_the_noise(tmp_path: Path) -> None:
    config = tiny("ddim-cosine")
    older = replace(config, levels="karras", prediction_type="v_prediction")
    for name, one in (("older", older), ("same", replace(config, seed=1))):
        (tmp_path / name).mkdir()
        save_model(loud(one), tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config_to_dict(one)))
    assert load_guide(tmp_path / "same", config, CPU)
    with pytest.raises(UserError, match="cannot guide"):
        load_guide(tmp_path / "older", config, CPU)


def test_one_spacing_is_enough() -> None:
    config = tiny("conditional")
    exponential = find_sampler("euler_exponential")
    with pytest.raises(UserError, match="Euler Exponential says its spacing itself"):
        ladder_for(config, exponential, 4, "cosine")
    with pytest.raises(UserError, match="distilled to levels of its own"):
        ladder_for(replace(config, ladder=(80.0, 1.0, 0.0), n_steps=2), exponential, 2)


def test_the_levels_of_a_spacing() -> None:
    config = RECIPES["ddim-cosine"]
    trained = (config.edm_objective.draw_sigmas(999, torch.Generator().manual_seed(0)) / config.sigma_data).atan()
    torch.testing.assert_close(trained.sort().values, torch.linspace(0, torch.pi / 2, 999).double(), rtol=0, atol=2e-3)
    assert config.edm_sigmas(10).tolist() == [*cosine_sigmas(80, 10, config.sigma_data).tolist(), 0.0]
    assert torch.equal(config.edm_sigmas(10, "karras"), RECIPES["edm"].edm_sigmas(10))
    exponential = config.edm_sigmas(10, "exponential")[:-1].log()
    torch.testing.assert_close(exponential.diff(), exponential.diff()[:1].repeat(9))


def test_evaluate_fashion_says_by_which_spacing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(8, 16)))
    train_fashion_classifier(tmp_path / "judge", data=DATA, epochs=0.2, config=judge)
    for kind in ("conditional", "ddpm"):
        train_fashion_diffusion(kind, tmp_path / kind, data=DATA, epochs=0.2, config=tiny(kind))
    common = ["evaluate", "fashion", "--classifier", str(tmp_path / "judge"), "--data", str(DATA), "--n", "64"]
    command = [*common, "--model", str(tmp_path / "conditional")]
    found = []
    for options in ([], ["--spacing", "karras"], ["--spacing", "cosine"]):
        assert run([*command, *options]) == 0
        found.append(json.loads((tmp_path / "conditional" / "evaluation.json").read_text()))
    assert [one["spacing"] for one in found] == [None, "karras", "cosine"]
    assert found[0]["fid"] == found[1]["fid"] != found[2]["fid"]
    capsys.readouterr()
    assert run([*command, "--spacing", "even"]) == 2
    assert "unknown spacing 'even': there are karras, exponential, cosine" in capsys.readouterr().err
    assert run([*common, "--model", str(tmp_path / "ddpm"), "--spacing", "cosine"]) == 2
    assert "timesteps of a discrete schedule: leave --spacing out" in capsys.readouterr().err
