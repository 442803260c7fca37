"""One picture is edited by a text; tiny."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.low_rank import LowRankLayers
from miniai.recipes import imagic as recipe
from miniai.recipes.imagic import ImagicConfig, ImagicObjective, TextVectors, edited, imagic
from miniai.recipes.training import StageInterrupted
from miniai.sd.pipeline import StableDiffusionPipeline

SHORT: dict[str, Any] = {"vector_steps": 3, "model_steps": 3, "etas": (0.0, 0.5, 1.0)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny_pipeline().save_pretrained(folder / "model")
    Image.linear_gradient("L").convert("RGB").save(folder / "it.png")
    return folder


def config_of(home: Path) -> ImagicConfig:
    return ImagicConfig(str(home / "model"), "a red cat", rank=2)


def test_each_step_lowers_the_loss_by_what_it_teaches(home: Path, tmp_path: Path) -> None:
    config = config_of(home)
    imagic(home / "it.png", tmp_path / "out", config, vector_steps=40, model_steps=40, etas=(0.0,))
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    target = pipe.encode_text(["a red cat"])
    own = load_file(tmp_path / "out" / "vectors.safetensors")["vectors"]
    seen = recipe.encoded(pipe, recipe.load_images([recipe.CaptionedItem(home / "it.png", ("",))], 16), [[""]]).mean
    batch = (seen.repeat(8, 1, 1, 1),)

    def loss(vectors: torch.Tensor) -> float:
        objective = ImagicObjective(pipe, config)
        with torch.no_grad():
            each = [objective(TextVectors(vectors), batch, torch.Generator().manual_seed(i)) for i in range(20)]
        return float(torch.stack(each).mean())

    first, second = loss(target), loss(own)
    pipe.load_lora_weights(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert loss(own) < second - 0.001 < first - 0.001
    assert (own - target).abs().max() > 0.01


def test_first_only_the_vectors_learn_and_then_only_the_changes(home: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)
    vectors = TextVectors(pipe.encode_text(["a red cat"]))
    changes = LowRankLayers(pipe.unet, ["to_k"], rank=1)
    batch = (torch.randn(2, 4, 8, 8),)
    ImagicObjective(pipe, config_of(home))(vectors, batch, torch.Generator()).backward()
    assert vectors.vectors.grad is not None
    fixed = vectors.vectors.detach()
    ImagicObjective(pipe, config_of(home), fixed)(changes, batch, torch.Generator()).backward()
    assert all(one.up.grad is not None for one in changes.layers)
    assert all(weight.grad is None for weight in pipe.unet.parameters())


def test_between_picture_and_text_the_vectors_are_on_the_straight_way(home: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    own, target = (pipe.encode_text([text]) for text in ("a rocket", "a red cat"))
    images = edited(pipe, own, target, (0.0, 0.5, 1.0), 2.5, seed=3)

    def alone(vectors: torch.Tensor) -> Image.Image:
        generator = torch.Generator().manual_seed(3)
        request: dict[str, Any] = {"num_inference_steps": recipe.PAINTED_STEPS, "guidance_scale": 2.5}
        return pipe(prompt_embeds=vectors, sampler="dpmpp_2m", generator=generator, **request).images[0]

    for image, vectors in zip(images, (own, (own + target) / 2, target), strict=True):
        assert max(high for _, high in ImageChops.difference(image, alone(vectors)).getextrema()) <= 1
    assert images[0].tobytes() != images[2].tobytes()


@pytest.mark.parametrize("stops_at", [2, 5])
def test_stopped_and_resumed_it_paints_the_same(
    home: Path, stops_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(home)
    whole = imagic(home / "it.png", tmp_path / "whole", config, **SHORT)
    calls = []

    class Stopped(ImagicObjective):
        def __call__(self, *arguments: Any) -> torch.Tensor:
            calls.append(arguments)
            if len(calls) == stops_at:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "ImagicObjective", Stopped)
        with pytest.raises(StageInterrupted):
            imagic(home / "it.png", tmp_path / "parts", config, **SHORT)
    with pytest.raises(UserError, match="holds a training already"):
        imagic(home / "it.png", tmp_path / "parts", config, **SHORT)
    parts = imagic(home / "it.png", tmp_path / "parts", config, **SHORT, resume=True)
    for name in ("vectors.safetensors", "pytorch_lora_weights.safetensors"):
        ours, theirs = load_file(whole.parent / name), load_file(parts.parent / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert whole.read_bytes() == parts.read_bytes()


def test_finished_it_goes_other_ways_without_learning_again(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imagic(home / "it.png", tmp_path / "out", config_of(home), **SHORT)
    stamp = (tmp_path / "out" / "vectors.safetensors").stat().st_mtime_ns
    imagic(home / "it.png", tmp_path / "out", config_of(home), **{**SHORT, "etas": (0.25,)}, resume=True)
    assert (tmp_path / "out" / "eta-0.25.png").is_file()
    assert (tmp_path / "out" / "vectors.safetensors").stat().st_mtime_ns == stamp
    assert "stays so" not in capsys.readouterr().err
    imagic(home / "it.png", tmp_path / "out", config_of(home), **{**SHORT, "model_steps": 9}, resume=True)
    told = f"the stage 'model' learned in {SHORT['model_steps']} steps before, and stays so: not 9"
    assert [line for line in capsys.readouterr().err.splitlines() if "stays so" in line] == [told]


def test_another_picture_needs_another_folder(home: Path, tmp_path: Path) -> None:
    imagic(home / "it.png", tmp_path / "out", config_of(home), **SHORT)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    with pytest.raises(UserError, match="begun on other pictures"):
        imagic(tmp_path / "red.png", tmp_path / "out", config_of(home), **SHORT, resume=True)


def test_one_command_edits_a_picture(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("--vector-steps", "2", "--model-steps", "2", "--etas", "0,1", "--rank", "2")
    out = ("--out", str(tmp_path / "out"), "--model", str(home / "model"))
    assert run(("train", "imagic", str(home / "it.png"), "a red cat", *steps, *out)) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "edited.png")
    with Image.open(tmp_path / "out" / "edited.png") as sheet:
        assert sheet.width > 2 * 16


def test_what_cannot_be_edited_is_one_line_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    config = config_of(home)
    for change, options, said in (
        ({"rank": 0}, {}, "--rank 0 is not possible"),
        ({}, {"vector_steps": 0}, "--vector-steps 0"),
        ({}, {"model_steps": -1}, "--model-steps -1"),
        ({"timestep_shift": 0}, {}, "--timestep-shift 0"),
        ({}, {"guidance_scale": float("nan")}, "--guidance-scale nan"),
        ({}, {"etas": ()}, "--etas"),
        ({}, {"etas": (0.5, 7.0)}, "--etas 0.5, 7 are not possible"),
        ({"model": "nowhere"}, {}, "there is no folder nowhere"),
    ):
        with pytest.raises(UserError, match=said):
            imagic(home / "it.png", tmp_path / "out", replace(config, **change), **(SHORT | options))
    with pytest.raises(UserError, match=r"none\.png is missing"):
        imagic(home / "none.png", tmp_path / "out", config, **SHORT)
    assert not (tmp_path / "out").exists()
