"""Recipes that paint by features: style transfer, a texture that grows and heals, sharper clothes; tiny."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from miniai.base.images import to_pil
from miniai.base.seeds import make_generator
from miniai.cli import run
from miniai.evaluate.perceptual import layer_outputs
from miniai.nn.cellular import CellularConfig
from miniai.nn.resnet import ResNetConfig
from miniai.nn.style import RandomFeatures, content_loss, gram_matrix, style_loss
from miniai.recipes.fashion_classifier import FashionClassifierConfig, train_fashion_classifier
from miniai.recipes.fashion_super import FashionSuperConfig, train_fashion_super
from miniai.recipes.style_transfer import painted_in_style
from miniai.recipes.texture import TextureConfig, train_texture

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"


def stripes(side: int) -> torch.Tensor:
    """Diagonal, six pixels wide, in two colours."""
    place = torch.arange(side)
    bands = ((place[:, None] + place) // 3 % 2).float()
    return torch.stack([2 * bands - 1, 0 * bands, 1 - 2 * bands])[None]


def test_what_is_painted_has_the_style_asked_for_and_still_the_content() -> None:
    content = torch.rand(1, 3, 32, 32, generator=make_generator(1)) - 0.5
    style, network = stripes(32), RandomFeatures(n_filters=8, sizes=(3, 5))
    painted = painted_in_style(content, style, network, network.layers, ["maps.0"], steps=150)
    grams = {name: gram_matrix(one) for name, one in layer_outputs(network, style, network.layers).items()}
    before, after = (style_loss(layer_outputs(network, one, network.layers), grams) for one in (content, painted))
    assert after < before / 5
    wanted = layer_outputs(network, content, ["maps.0"])
    far = content_loss(layer_outputs(network, stripes(32), ["maps.0"]), wanted)
    assert content_loss(layer_outputs(network, painted, ["maps.0"]), wanted) < far
    assert painted.abs().max() <= 1


def test_a_texture_grows_from_nothing_and_heals(tmp_path: Path) -> None:
    bands = (torch.arange(16)[:, None] + torch.arange(16)) // 4 % 2 * 1.4 - 0.7
    to_pil(torch.stack([bands, 0 * bands, -bands])[None])[0].save(tmp_path / "stripes.png")
    automaton = CellularConfig(channels=10, hidden=48)
    config = TextureConfig(automaton, side=16, n_pool=8, batch_size=4, least=12, most=20, rate=3e-3)
    found = train_texture(tmp_path / "stripes.png", tmp_path / "out", steps=240, config=config)
    assert found["grown"] < found["nothing"] / 1.6
    assert found["healed"] < found["wounded"] < found["nothing"]
    assert found["healed"] < 1.25 * found["grown"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    with Image.open(tmp_path / "out" / "healing.gif") as gif:
        assert gif.n_frames > 30
    assert (tmp_path / "out" / "texture.png").is_file()


def test_clothes_are_sharper_than_by_plain_enlarging(tmp_path: Path) -> None:
    body = ResNetConfig(block_out_channels=(8, 16))
    judge = FashionClassifierConfig(model=body)
    judge = replace(judge, stage=replace(judge.stage, batch_size=20, learning_rate=1e-2, ema=0.5))
    train_fashion_classifier(tmp_path / "judge", data=DATA, epochs=1, config=judge)
    config = FashionSuperConfig()
    config = replace(config, stage=replace(config.stage, batch_size=20, learning_rate=5e-3, ema=0.9))
    found = train_fashion_super(tmp_path / "out", tmp_path / "judge", data=DATA, epochs=8, config=config)
    assert found["psnr"] > found["psnr_of_enlarging"] + 0.3
    assert (tmp_path / "out" / "enlarged.png").is_file()
    assert (tmp_path / "out" / "samples").is_dir()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["style", "none.png", "picture.png", "out.png"], "none.png is missing"),
        (["style", "picture.png", "picture.png", "out.png", "--size", "8"], "give a --size of 32 to 2048"),
        (["style", "picture.png", "picture.png", "no/out.png"], "the folder does not exist"),
        (["texture", "none.png", "--out", "t"], "none.png is missing"),
        (["texture", "picture.png", "--out", "t", "--steps", "0"], "--steps 0 is not possible"),
        (["texture", "picture.png", "--out", "t", "--vgg", "none.pth"], "none.pth"),
        (["fashion-super", "--out", "s", "--classifier", "nowhere"], "config.json is missing"),
    ],
)
def test_what_cannot_be_painted_is_one_line(
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    to_pil(stripes(32))[0].save("picture.png")
    assert run(["train", *command]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_commands_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    to_pil(stripes(32))[0].save("picture.png")
    assert run(["train", "style", "picture.png", "picture.png", "out.png", "--size", "32", "--steps", "2"]) == 0
    with Image.open("out.png") as image:
        assert image.size == (32, 32)
