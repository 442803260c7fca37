"""The recipes that paint clothes, with a tiny network on a few hundred pictures of Fashion-MNIST."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.resnet import ResNetConfig
from miniai.nn.unet2d import UNet2DConfig
from miniai.recipes.fashion_classifier import FashionClassifierConfig, train_fashion_classifier
from miniai.recipes.fashion_diffusion import (
    KINDS,
    N_CLASSES,
    RECIPES,
    Kind,
    load_fashion_diffusion,
    paint,
    train_fashion_diffusion,
)

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"
CPU = torch.device("cpu")


def tiny(kind: Kind) -> object:
    recipe = RECIPES[kind]
    model = UNet2DConfig(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=recipe.model.num_class_embeds,
    )
    return replace(recipe, model=model, stage=replace(recipe.stage, batch_size=16), n_steps=3, sampler="euler")


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
    assert run(["evaluate", "fashion", *folders, "--n", "3"]) == 2
    assert "--n 3 is out of range" in capsys.readouterr().err


def test_an_unknown_recipe_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ddpm, ddim-cosine, edm, conditional"):
        train_fashion_diffusion("flow", tmp_path, data=DATA)


def test_class_10_is_no_class() -> None:
    assert RECIPES["conditional"].model.num_class_embeds == N_CLASSES + 1
