"""The recipes that paint clothes, with a tiny network on a few hundred pictures of Fashion-MNIST."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_fashion import CPU, DATA, tiny
from torch import Tensor

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.diffusion.continuous_objectives import EDMObjective
from miniai.nn.resnet import ResNetConfig
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion_classifier import FashionClassifierConfig, train_fashion_classifier
from miniai.recipes.fashion_diffusion import train_fashion_diffusion
from miniai.recipes.fashion_diffusion_config import KINDS, N_CLASSES, RECIPES, Kind
from miniai.recipes.fashion_painting import from_patches, load_fashion_diffusion, paint, to_patches
from miniai.recipes.training import initial_weights
from miniai.recipes.unet_stage import init_unet
from miniai.train.fashion_mnist import load_fashion_mnist


@pytest.mark.parametrize("kind", KINDS)
def test_each_recipe_trains_paints_and_is_judged(kind: Kind, tmp_path: Path) -> None:
    folder = tmp_path / kind
    train_fashion_diffusion(kind, folder, data=DATA, epochs=0.4, config=tiny(kind))
    assert (folder / "loss.png").is_file()
    assert list((folder / "samples").glob("*.png"))
    model, config = load_fashion_diffusion(folder, CPU)
    images = paint(model, config, torch.arange(6), seed=3)
    assert images.shape == (6, 1, 32, 32)
    assert images.isfinite().all()
    assert images.abs().max() <= 1
    again = paint(model, config, torch.arange(6)[2:4], seed=5, batch_size=1)
    torch.testing.assert_close(again, images[2:4], rtol=0, atol=0.05)  # bfloat16 inside; noise is each picture's own
    other = paint(model, config, torch.full((6,), 7), seed=3)
    assert torch.equal(other, images) == (kind != "conditional")  # only one of them looks at the class
    with pytest.raises(UserError, match="add --resume"):
        train_fashion_diffusion(kind, folder, data=DATA, epochs=0.4, config=tiny(kind))


def test_the_real_pictures_own_distance_stands_beside_the_painted_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(8, 16)))
    judge = replace(judge, stage=replace(judge.stage, batch_size=20, learning_rate=1e-2, ema=0.5))
    train_fashion_classifier(tmp_path / "judge", data=DATA, epochs=1, config=judge)
    train_fashion_diffusion("conditional", tmp_path / "painter", data=DATA, epochs=0.2, config=tiny("conditional"))
    folders = ["--model", str(tmp_path / "painter"), "--classifier", str(tmp_path / "judge"), "--data", str(DATA)]
    assert run(["evaluate", "fashion", *folders, "--n", "64"]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "painter" / "evaluation.json").read_text())
    assert 0 < found["fid_of_real"] < found["fid"]  # a painter of a few steps paints noise
    assert found["ratio"] == pytest.approx(found["fid"] / found["fid_of_real"])
    assert f"ratio {found['ratio']:.2f}" in out
    assert 0 <= found["read_as_asked"] <= 1
    assert (tmp_path / "painter" / "painted.png").is_file()
    kept = sorted((tmp_path / "judge" / "features").iterdir())
    assert len(kept) == 3  # of the test pictures; of as many training pictures as were painted; of as many by class
    written = [path.stat().st_mtime_ns for path in kept]
    assert run(["evaluate", "fashion", *folders, "--n", "64", "--sampler", "heun", "--churn", "5"]) == 0
    assert [path.stat().st_mtime_ns for path in kept] == written  # read, not computed again
    again = json.loads((tmp_path / "painter" / "evaluation.json").read_text())
    assert (again["calls"], again["churn"], again["fid_of_real"]) == (5, 5.0, found["fid_of_real"])
    narrow = ["--guidance-scale", "2", "--guidance-interval", "0.5", "3"]
    assert run(["evaluate", "fashion", *folders, "--n", "64", *narrow, "--out", str(tmp_path / "narrow")]) == 0
    other = json.loads((tmp_path / "narrow" / "evaluation.json").read_text())
    assert (other["guidance_interval"], again["guidance_interval"]) == ([0.5, 3.0], None)
    assert run(["evaluate", "fashion", *folders, "--n", "64", "--guidance-interval", "3", "3"]) == 2
    assert "guidance_interval" in capsys.readouterr().err
    assert run(["evaluate", "fashion", *folders, "--n", "64", "--churn", "5", "--sampler", "lms"]) == 2
    assert "--churn 5 is for the samplers euler and heun, not lms" in capsys.readouterr().err
    train_fashion_diffusion("conditional", tmp_path / "worse", data=DATA, epochs=0.1, config=tiny("conditional"))
    guide = ["--guide", str(tmp_path / "worse"), "--guide-scale"]
    led = [*folders, "--n", "64", "--out", str(tmp_path / "led"), *guide]
    for scale, ratio in (("1", found["ratio"]), ("3", None)):
        assert run(["evaluate", "fashion", *led, scale]) == 0
        by = json.loads((tmp_path / "led" / "evaluation.json").read_text())
        assert (by["guide"], by["guide_scale"]) == (str(tmp_path / "worse"), float(scale))
        assert (by["ratio"] == pytest.approx(found["ratio"], rel=1e-6)) == (ratio is not None)
    capsys.readouterr()
    assert run(["evaluate", "fashion", *led, "0.5"]) == 2
    assert "--guide-scale 0.5 is out of range" in capsys.readouterr().err
    assert run(["evaluate", "fashion", *folders, "--n", "64", "--guide-scale", "2"]) == 2
    assert "name a folder there" in capsys.readouterr().err
    train_fashion_diffusion("edm", tmp_path / "other", data=DATA, epochs=0.1, config=tiny("edm"))
    guide[1] = str(tmp_path / "other")
    assert run(["evaluate", "fashion", *folders, "--n", "64", *guide, "2"]) == 2
    assert "cannot guide fashion-conditional" in capsys.readouterr().err

    steps = ["evaluate", "fashion-steps", *folders, "--n", "64", "--samplers", "heun,euler", "--steps", "3,1"]
    assert run(steps) == 0
    table = capsys.readouterr().out
    assert "| heun | 3 | 5 |" in table
    path = tmp_path / "painter" / "fid-steps.json"
    one = next(one for one in json.loads(path.read_text()) if (one["sampler"], one["steps"]) == ("euler", 3))
    assert one["fid"] == found["fid"]  # the recipe's own sampler and number of steps
    assert (tmp_path / "painter" / "fid-steps.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps([*kept[:3], kept[3] | {"seed": 9, "fid": 0.0}]))
    assert run(steps) == 0
    assert capsys.readouterr().out == table
    assert [one for one in json.loads(path.read_text()) if one["seed"] == 9]  # another's record stays
    assert run([*steps[:-1], "0"]) == 2
    assert "--steps 0 is out of range" in capsys.readouterr().err
    assert run(["evaluate", "fashion", *folders, "--n", "3"]) == 2
    assert "--n 3 is out of range" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["edm", "conditional", "ddpm"])
def test_pictures_of_noise_and_of_the_way_out_of_it(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_fashion_diffusion(kind, tmp_path / "run", data=DATA, epochs=0.2, config=tiny(kind))
    out = tmp_path / "pictures"
    options = ["--model", str(tmp_path / "run"), "--out", str(out), "--data", str(DATA), "--n", "2", "--steps", "4"]
    assert run(["evaluate", "fashion-pictures", *options, "--at", "0,2,80", "--samplers", "heun,ddim"]) == 0
    assert capsys.readouterr().out.split() == [
        str(out / n) for n in ("noising.png", "path.png", "path.gif", "samplers.png")
    ]
    with Image.open(out / "noising.png") as sheet:
        column = np.asarray(sheet.convert("L"))[:, 8:104]
    first = load_fashion_mnist("test", DATA).scaled(2)[0, 0]
    shown = torch.from_numpy(column[29 : 29 + 96 : 3, ::3].copy())  # three times as large
    noisy = 8 if kind == "ddpm" else 1  # levels; timestep 0 of a schedule is not quite without noise
    assert (shown.float() - (first + 1) * 127.5).abs().max() <= noisy
    with Image.open(out / "path.gif") as gif:
        assert gif.n_frames in (3, 4)  # equal frames, where nothing is learned, become one
        assert gif.size == (3 * 65, 3 * 32)
    model, config = load_fashion_diffusion(tmp_path / "run", CPU)
    painted = paint(model, config, torch.arange(2), seed=0, sampler="heun", n_steps=4)
    with Image.open(out / "samplers.png") as sheet:
        row = torch.from_numpy(np.asarray(sheet.convert("L"))[29 : 29 + 96 : 3, 8 : 8 + 96 : 3].copy())
    assert (row.float() - (painted[0, 0] + 1) * 127.5).abs().max() <= 1
    assert run(["evaluate", "fashion-pictures", *options, "--at", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_traced_training_has_the_losses_of_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_fashion_diffusion("conditional", tmp_path / "plain", data=DATA, epochs=0.25, config=tiny("conditional"))
    # In a process of its own: torch.compile cannot read functions whose shapes the tests check at every call. Without
    # the C++ of "inductor", which takes a minute: that is PyTorch's part.
    call = "import sys, pathlib; from test_fashion_diffusion import *; train_fashion_diffusion('conditional', "
    call += "pathlib.Path(sys.argv[1]), data=DATA, epochs=0.25, config=tiny('conditional'), compiler='aot_eager')"
    subprocess.run([sys.executable, "-c", call, tmp_path / "traced"], check=True, cwd=Path(__file__).parent)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("plain", "traced")]
    plain, traced = ([json.loads(line)["loss"] for line in log] for log in logs)
    assert len(plain) == 3
    assert traced == pytest.approx(plain, rel=0.01)  # bfloat16 is rounded elsewhere
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    options = ["--out", str(tmp_path / "none"), "--data", str(DATA), "--device", "cpu"]
    assert run(["train", "fashion-edm", *options, "--compile"]) == 2
    assert "--compile needs a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_patches_are_the_picture_in_another_order_without_its_padding() -> None:
    images = load_fashion_mnist("test", DATA).scaled(2)[:5]
    patches = to_patches(images, 2)
    assert patches.shape == (5, 4, 14, 14)
    assert torch.equal(patches[:, 1, 3, 5], images[:, 0, 2 + 2 * 3, 2 + 2 * 5 + 1])  # row 0, column 1 of its patch
    assert torch.equal(from_patches(patches, 2), images)
    assert torch.equal(to_patches(images, 1), images)
    with pytest.raises(ValueError, match="patches of 4 by 4 has 16 channels"):
        replace(RECIPES["ddpm"], patch_size=4)


def test_edm_draws_sigmas_where_the_paper_has_them_beside_the_datas_deviation() -> None:
    sigmas = RECIPES["edm"].edm_objective.draw_sigmas(4096, torch.Generator().manual_seed(0))
    logs = (sigmas / RECIPES["edm"].sigma_data).log()
    paper = (EDMObjective(sigma_data=0.5).draw_sigmas(4096, torch.Generator().manual_seed(0)) / 0.5).log()
    torch.testing.assert_close(logs, paper)


def test_an_unknown_recipe_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ddpm, ddim-cosine, edm, conditional"):
        train_fashion_diffusion("flow", tmp_path, data=DATA)


def test_a_training_goes_on_from_the_weights_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, still = tiny("conditional"), replace(tiny("conditional").stage, learning_rate=1e-30, ema=0.5)
    train_fashion_diffusion("conditional", tmp_path / "first", data=DATA, epochs=0.2, config=config)
    on = replace(config, stage=still)
    train_fashion_diffusion("conditional", tmp_path / "on", data=DATA, epochs=0.1, config=on, init=tmp_path / "first")
    train_fashion_diffusion("conditional", tmp_path / "anew", data=DATA, epochs=0.1, config=on)
    first, again, anew = (
        load_fashion_diffusion(tmp_path / name, CPU)[0].state_dict() for name in ("first", "on", "anew")
    )
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not all(torch.equal(weight, anew[name]) for name, weight in first.items())
    (tmp_path / "killed").mkdir()  # before its first checkpoint: there is its config alone
    (tmp_path / "killed" / "config.json").write_text((tmp_path / "on" / "config.json").read_text())
    train_fashion_diffusion("conditional", tmp_path / "killed", data=DATA, epochs=0.1, config=on, resume=True)
    resumed = load_fashion_diffusion(tmp_path / "killed", CPU)[0].state_dict()
    assert all(torch.equal(weight, resumed[name]) for name, weight in first.items())
    command = ["train", "fashion-edm", "--data", str(DATA), "--out", str(tmp_path / "other")]
    assert run([*command, "--init", str(tmp_path / "first")]) == 2
    err = capsys.readouterr().err
    assert "has another network than fashion-edm" in err
    assert "--classes" in err
    assert run([*command, "--learning-rate", "0"]) == 2
    assert "--learning-rate 0 is not possible" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_any_recipe_can_be_told_the_class_and_go_on_from_another_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_fashion_diffusion("conditional", tmp_path / "edm", data=DATA, epochs=0.4, config=tiny("conditional"))
    monkeypatch.setitem(RECIPES, "ddim-cosine", tiny("ddim-cosine"))
    command = ["train", "fashion-ddim-cosine", "--data", str(DATA), "--epochs", "0.4", "--device", "cpu"]
    assert run([*command, "--classes", "--init", str(tmp_path / "edm"), "--out", str(tmp_path / "cosine")]) == 0
    model, config = load_fashion_diffusion(tmp_path / "cosine", CPU)
    assert (config.init, config.model.num_class_embeds) == (str(tmp_path / "edm"), N_CLASSES + 1)
    shirts, boots = (paint(model, config, torch.full((4,), label), seed=0, guidance_scale=2.0) for label in (6, 9))
    assert not torch.equal(shirts, boots)
    assert run([*command, "--out", str(tmp_path / "untold")]) == 0
    assert load_fashion_diffusion(tmp_path / "untold", CPU)[1].model.num_class_embeds is None


def test_what_is_predicted_is_noise_and_v_in_latents_unless_the_config_says_so() -> None:
    ddpm = RECIPES["ddpm"]
    assert ddpm.schedule.prediction_type == "epsilon"
    assert replace(ddpm, kind="latent").schedule.prediction_type == "v_prediction"
    assert replace(ddpm, prediction_type="sample").schedule.prediction_type == "sample"


def test_guidance_acts_within_its_interval_alone(tmp_path: Path) -> None:
    config = tiny("conditional")
    with initial_weights(0):
        model = init_unet(UNet2DModel(config.model))
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1)  # the recipe's last layer begins at zero: it would not hear
    labels, seen = torch.arange(3), []

    def painted(**options: Any) -> Tensor:
        return paint(model, config, labels, seed=0, sampler="euler", n_steps=4, **options)

    model.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    sigmas = config.edm_sigmas(4)
    some = painted(guidance_scale=3.0, guidance_interval=(float(sigmas[2]), float(sigmas[1])))
    assert seen == [3, 6, 3, 3]  # two answers a picture at the second level alone
    assert not torch.equal(some, painted(guidance_scale=1.0))
    everywhere = painted(guidance_scale=3.0)
    assert torch.equal(everywhere, painted(guidance_scale=3.0, guidance_interval=(0.0, 100.0)))
    assert not torch.equal(some, everywhere)
    with pytest.raises(UserError, match="guidance_interval"):
        painted(guidance_scale=3.0, guidance_interval=(2.0, 1.0))


def test_samplers_of_other_spacings_take_other_steps_and_guidance_needs_classes() -> None:
    config = tiny("edm")
    with initial_weights(0):
        model = UNet2DModel(config.model)
    labels = torch.arange(2)
    plain, karras, exponential = (
        paint(model, config, labels, seed=0, sampler=f"euler{spacing}", n_steps=4)
        for spacing in ("", "_karras", "_exponential")
    )
    assert torch.equal(plain, karras)  # EDM's own are Karras'
    assert not torch.allclose(plain, exponential, atol=1e-3)
    for wrong in ({"guidance_scale": 2.0}, {"guidance_interval": (0.5, 3.0)}):
        with pytest.raises(UserError, match="knows no classes"):
            paint(model, config, labels, seed=0, **wrong)
    paint(model, config, labels, seed=0, guidance_scale=1.0)


def test_class_10_is_no_class() -> None:
    assert RECIPES["conditional"].model.num_class_embeds == N_CLASSES + 1
