"""A model is taught something of one's own: tiny, each way; what comes out is read here and in Diffusers."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes import personalise as recipe
from miniai.recipes.personalise import PersonalObjective, WordModel, check_config, personalise
from miniai.recipes.personalise_config import STAGES, PersonaliseConfig
from miniai.recipes.personalise_data import pictures_in, read_own_pictures
from miniai.recipes.training import StageInterrupted
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.captions import on_white_square

KINDS = ("lora", "dreambooth", "textual-inversion")
MADE = {
    "lora": "pytorch_lora_weights.safetensors",
    "dreambooth": "model",
    "textual-inversion": "learned_embeds.safetensors",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and captioned pictures."""
    folder = tmp_path_factory.mktemp("home")
    tiny_pipeline().save_pretrained(folder / "model")
    (folder / "pictures").mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20 + 4 * i, 18), colour).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a {colour} cat")
    return folder


def config_of(home: Path, kind: Any, **numbers: Any) -> PersonaliseConfig:
    stage = replace(STAGES[kind], batch_size=2, learning_rate=1e-2)
    words = {"word": "<toy>", "init_word": "cat", "n_vectors": 2, "prompts": ("{}", "a {}")}
    numbers = (words if kind == "textual-inversion" else {}) | numbers
    return PersonaliseConfig(kind, str(home / "model"), stage, **numbers)


def paint(pipe: Any, prompt: str = "a red cat") -> torch.Tensor:
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    request = {"num_inference_steps": 2, "guidance_scale": 2.0, "latents": start, "output_type": "latent"}
    return pipe(prompt, **request).images


def taught(pipe: Any, kind: str, made: Path) -> Any:
    """The pipeline with what was made, by the methods that Diffusers has as well."""
    if kind == "lora":
        pipe.load_lora_weights(made)
    elif kind == "textual-inversion":
        pipe.load_textual_inversion(made)
    else:
        pipe = type(pipe).from_pretrained(made)
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_paints_the_same_here_in_training_and_in_diffusers(
    home: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    prompt = "a <toy> cat" if kind == "textual-inversion" else "a red cat"

    def look(path: Path, pipe: Any, prompts: list[str], seed: int) -> None:
        seen.append(paint(pipe, prompt))

    monkeypatch.setattr(recipe, "save_samples", look)
    text = {} if kind == "textual-inversion" else {"train_text": True}
    made = personalise(home / "pictures", tmp_path / "out", config_of(home, kind, **text), steps=6)
    assert made == tmp_path / "out" / MADE[kind]
    plain = StableDiffusionPipeline.from_pretrained(home / "model")
    before = paint(plain, prompt)
    after = paint(taught(plain, kind, made), prompt)
    assert (after - before).norm() > 1e-2 * before.norm()
    torch.testing.assert_close(after, seen[-1], rtol=1e-3, atol=1e-3)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(home / "model")
    theirs.set_progress_bar_config(disable=True)
    theirs = taught(theirs, kind, made)
    theirs.set_progress_bar_config(disable=True)
    torch.testing.assert_close(paint(theirs, prompt), after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_on_ones_own_pictures_falls(home: Path, kind: str, tmp_path: Path) -> None:
    config = config_of(home, kind, prompts=("a {}",) if kind == "textual-inversion" else ())

    def loss_of(pipe: StableDiffusionPipeline) -> float:
        own = read_own_pictures(home / "pictures", config, pipe)
        objective = PersonalObjective(pipe, config, own, None, torch.device("cpu"))
        batch = (own.mean, own.deviation, objective.table.rows, objective.table.counts)
        unchanged = recipe.WholeModel(pipe, config)
        with torch.no_grad():
            losses = [objective(unchanged, batch, torch.Generator().manual_seed(i))["loss"] for i in range(40)]
        return float(torch.stack(losses).mean())

    made = personalise(home / "pictures", tmp_path / "out", config, steps=40)
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    before = loss_of(pipe)
    least = 0.0003 if kind == "textual-inversion" else 0.002  # the noise is the same in both
    assert loss_of(taught(pipe, kind, made)) < before - least


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_it_learns_the_same_bit_for_bit(
    home: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_class: dict[str, Any] = {"class_prompt": "a cat", "n_class": 2}
    config = config_of(home, kind, **({} if kind == "textual-inversion" else of_class))
    whole = personalise(home / "pictures", tmp_path / "whole", config, steps=4)
    calls = []

    class Stopped(PersonalObjective):
        def __call__(self, *arguments: Any) -> dict[str, torch.Tensor]:
            calls.append(arguments)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "PersonalObjective", Stopped)
        with pytest.raises(StageInterrupted, match=r"stopped at step 2: go on with --resume"):
            personalise(home / "pictures", tmp_path / "parts", config, steps=4)
    with pytest.raises(UserError, match="holds a training already"):
        personalise(home / "pictures", tmp_path / "parts", config, steps=4)
    parts = personalise(home / "pictures", tmp_path / "parts", config, steps=4, resume=True)
    for path in [whole] if whole.is_file() else sorted(whole.rglob("*.safetensors")):
        other = parts if whole.is_file() else parts / path.relative_to(whole)
        ours, theirs = load_file(path), load_file(other)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pictures_of_the_class_are_painted_by_the_model_as_it_was_and_count(home: Path, tmp_path: Path) -> None:
    config = config_of(home, "dreambooth", prompts=("a zwx cat",), class_prompt="a cat", n_class=3)
    losses = {}
    for weight in (0.0, 5.0):
        personalise(home / "pictures", tmp_path / f"{weight}", replace(config, prior_weight=weight), steps=3)
        losses[weight] = load_file(tmp_path / f"{weight}" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    first, second = ([path.read_bytes() for path in sorted((tmp_path / f"{w}" / "class").iterdir())] for w in losses)
    assert len(first) == 3
    assert first == second
    assert any(not torch.equal(losses[0.0][name], losses[5.0][name]) for name in losses[0.0])


def test_a_word_begins_as_the_word_that_it_is_like_and_nothing_else_changes(home: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    (cat,) = pipe.tokenizer.encode("cat")
    table = pipe.text_encoder.text_model.embeddings.token_embedding.weight.detach().clone()
    model = WordModel(pipe, config_of(home, "textual-inversion"))
    assert torch.equal(model.vectors, table[[cat, cat]])
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["vectors"]
    assert not any(weight.requires_grad for part in (pipe.unet, pipe.text_encoder) for weight in part.parameters())
    assert torch.equal(paint(pipe, "<toy>"), paint(pipe, "cat cat"))
    with torch.no_grad():
        model.vectors.add_(1.0)
    unchanged = paint(pipe, "<toy>")
    with model.attached(pipe):
        assert not torch.equal(paint(pipe, "<toy>"), unchanged)
        assert torch.equal(paint(pipe, "a red cat"), paint(StableDiffusionPipeline.from_pretrained(home / "model")))
    assert torch.equal(paint(pipe, "<toy>"), unchanged)


def test_mirror_images_are_learned_from_where_asked_for(home: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    config = config_of(home, "lora", prompts=("a cat",))
    rng = np.random.default_rng(0)
    for name in ("own", "mirrored"):
        (tmp_path / name).mkdir()
    for i in range(2):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / f"{i}.png")
        Image.fromarray(np.ascontiguousarray(pixels[:, ::-1])).save(tmp_path / "mirrored" / f"{i}.png")
    own = read_own_pictures(tmp_path / "own", config, pipe)
    mirrored = read_own_pictures(tmp_path / "mirrored", config, pipe)
    both = read_own_pictures(tmp_path / "own", replace(config, flip=True), pipe)
    assert both.captions == own.captions * 2
    torch.testing.assert_close(both.mean, torch.cat([own.mean, mirrored.mean]))
    assert not torch.allclose(own.mean, mirrored.mean, atol=1e-3)


def test_pictures_of_all_folders_are_learned_from_but_hidden_and_held_out_ones(home: Path, tmp_path: Path) -> None:
    for name in ("a.png", "more/b.JPG", "test/c.png", ".cache/d.png", "._e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / name, "PNG")
    assert pictures_in(tmp_path) == [tmp_path / "a.png", tmp_path / "more" / "b.JPG"]
    (tmp_path / "more" / "x.heic").write_bytes(b"x")
    with pytest.raises(UserError, match="x.heic: unknown format"):
        pictures_in(tmp_path)


def test_texts_longer_than_the_model_reads_are_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(home, "textual-inversion", n_vectors=20)
    with pytest.raises(UserError, match="--vectors 20 are too many: with them .* has 21 tokens, of which"):
        personalise(home / "pictures", tmp_path / "out", config, steps=1)
    assert not (tmp_path / "out").exists()
    personalise(home / "pictures", tmp_path / "out", config_of(home, "lora", prompts=("cat " * 20, "a cat")), steps=1)
    assert "1 of 2 captions are cut: the model reads" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["cat", "<my toy>", " <toy>"])
def test_a_word_that_is_known_or_has_spaces_is_refused(home: Path, tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match="give one that is not known yet, without spaces"):
        personalise(home / "pictures", tmp_path / "out", config_of(home, "textual-inversion", word=word), steps=1)
    assert not (tmp_path / "out").exists()


def test_an_inpainting_model_and_a_folder_within_the_pictures_are_refused(home: Path, tmp_path: Path) -> None:
    painter = tiny_pipeline()
    painter.unet = UNet2DConditionModel(replace(painter.unet.config, in_channels=9))
    painter.save_pretrained(tmp_path / "inpainting")
    config = replace(config_of(home, "lora"), model=str(tmp_path / "inpainting"))
    with pytest.raises(UserError, match="is an inpainting model, of 9 channels"):
        personalise(home / "pictures", tmp_path / "out", config, steps=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="lies within --data"):
        personalise(home / "pictures", home / "pictures" / "out", config_of(home, "lora"), steps=1)
    assert not (home / "pictures" / "out").exists()


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"n_class": 5}, "give --class-prompt, too"),
        ({"prior_weight": 3.0}, "give --class-prompt, too"),
        ({"class_prompt": " "}, "--class-prompt is empty"),
    ],
)
def test_numbers_of_a_class_need_the_class(home: Path, numbers: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_config(config_of(home, "dreambooth", **numbers), None, 1)


def test_pictures_are_shown_whole_where_asked_for(home: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 32), "white")
    image.paste("red", (0, 0, 16, 8))
    image.save(tmp_path / "a.png")
    square = np.asarray(on_white_square(image, 16))
    assert (square[:, :4] == 255).all()
    assert (square[:, 12:] == 255).all()
    assert (abs(square[:2, 4:12].astype(int) - [255, 0, 0]) < 20).all()  # resampling rings at the edge of the red
    assert on_white_square(Image.new("RGB", (4000, 1)), 16).size == (16, 16)
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    config = config_of(home, "lora", prompts=("a cat",))
    found = [read_own_pictures(tmp_path, replace(config, whole=whole), pipe).mean for whole in (False, True)]
    white = read_own_pictures(tmp_path, config, pipe).mean  # its middle has no red
    assert torch.equal(found[0], white)
    assert not torch.equal(found[1], white)


def test_one_command_each_from_pictures_to_a_picture(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ("--data", str(home / "pictures"), "--model", str(home / "model"), "--steps", "2", "--batch-size", "2")
    assert run(("train", "lora", *shared, "--out", "lora", "--rank", "2", "--train-text")) == 0
    assert capsys.readouterr().out.strip() == "lora/pytorch_lora_weights.safetensors"
    word = ("--word", "<toy>", "--init-word", "cat", "--vectors", "2", "--prompt", "a {}")
    assert run(("train", "textual-inversion", *shared, "--out", "word", *word)) == 0
    of_class = ("--prompt", "a zwx cat", "--class-prompt", "a cat", "--class-images", "2")
    assert run(("train", "dreambooth", *shared, "--out", "whole", *of_class)) == 0
    assert run(("train", "dreambooth", *shared, "--out", "thin", *of_class, "--rank", "1")) == 0
    assert Path("thin/pytorch_lora_weights.safetensors").is_file()
    assert run(("train", "lora", *shared, "--out", "none", "--rank", "0")) == 2
    add_ons = ("--lora", "lora", "--embedding", "word")
    options = ("--model", "whole/model", "--steps", "2", "--out", "it.png")
    assert run(("generate", "a <toy> cat", *add_ons, *options)) == 0
    assert Path("it.png").is_file()
    assert sorted(path.name for path in Path("lora/samples").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_lost_between_training_and_writing_is_written_by_a_resume(
    home: Path, kind: str, tmp_path: Path
) -> None:
    config = config_of(home, kind)
    made = personalise(home / "pictures", tmp_path / "out", config, steps=2)
    last = made / "model_index.json" if kind == "dreambooth" else made
    kept = last.read_bytes()
    last.unlink()
    personalise(home / "pictures", tmp_path / "out", config, steps=2, resume=True)
    assert last.read_bytes() == kept


def test_a_resume_with_other_pictures_is_refused(home: Path, tmp_path: Path) -> None:
    config = config_of(home, "lora", prompts=("a cat",))
    personalise(home / "pictures", tmp_path / "out", config, steps=1)
    (tmp_path / "other").mkdir()
    Image.new("RGB", (16, 16), "yellow").save(tmp_path / "other" / "a.png")
    with pytest.raises(UserError, match="begun on other pictures"):
        personalise(tmp_path / "other", tmp_path / "out", config, steps=1, resume=True)


def test_pictures_that_are_all_held_out_are_one_line(home: Path, tmp_path: Path) -> None:
    held = tmp_path / "pictures" / "test"
    held.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(held / "a.png")
    (held / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
    with pytest.raises(UserError, match="all of them are held out"):
        personalise(tmp_path / "pictures", tmp_path / "out", config_of(home, "lora"), steps=1)


BAD: dict[str, tuple[Callable[[PersonaliseConfig], PersonaliseConfig], str]] = {
    "rank": (lambda c: replace(c, rank=0), "--rank 0 is not possible"),
    "rate": (lambda c: replace(c, stage=replace(c.stage, learning_rate=-1.0)), "--learning-rate -1 is not possible"),
    "class": (lambda c: replace(c, n_class=0), "--class-images 0"),
    "weight": (lambda c: replace(c, prior_weight=-1), "--prior-weight -1"),
    "drop": (lambda c: replace(c, drop_text=1.5), "--drop-text 1.5"),
    "batch": (lambda c: replace(c, stage=replace(c.stage, batch_size=0)), "--batch-size 0"),
    "size": (lambda c: replace(c, image_size=15), "--image-size 15 is not possible"),
    "no size": (lambda c: replace(c, image_size=0), "--image-size 0 is not possible"),
    "shift": (lambda c: replace(c, timestep_shift=0), "--timestep-shift 0 is not possible"),
    "seed": (lambda c: replace(c, seed=2**64), "--seed 18446744073709551616 is out of range"),
    "word": (lambda c: replace(c, prompts=("a {}",)), "--prompt has {}"),
    "tokenizer": (lambda c: replace(c, tokenizer="here"), "--tokenizer is for a single file"),
    "model": (lambda c: replace(c, model="nowhere"), "there is no folder nowhere"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_trained_is_one_line_and_writes_nothing(home: Path, what: str, tmp_path: Path) -> None:
    change, said = BAD[what]
    with pytest.raises(UserError, match=said) as error:
        personalise(home / "pictures", tmp_path / "out", change(config_of(home, "lora")), steps=1)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_word_needs_a_word_and_prompts_that_hold_it(home: Path) -> None:
    config = config_of(home, "textual-inversion")
    for change, said in (
        ({"word": " "}, "--word is empty"),
        ({"prompts": ("a cat",)}, "must have {}"),
        ({"prompts": ()}, "must have {}"),
    ):
        with pytest.raises(UserError, match=said):
            check_config(replace(config, **change), None, 1)
    with pytest.raises(UserError, match="either --minutes or --steps"):
        check_config(config, None, None)
    pipe = StableDiffusionPipeline.from_pretrained(home / "model")
    with pytest.raises(UserError, match="--init-word ' ' is no word"):
        WordModel(pipe, replace(config, init_word=" "))
    with pytest.raises(UserError, match="is known already"):
        WordModel(pipe, replace(config, word="<|endoftext|>"))


def test_pictures_that_are_not_there_are_one_line(home: Path, tmp_path: Path) -> None:
    config = config_of(home, "lora", prompts=("a cat",))
    (tmp_path / "pictures").mkdir()
    for folder, said in ((tmp_path / "none", "is not a folder"), (tmp_path / "pictures", "has no pictures")):
        with pytest.raises(UserError, match=said):
            personalise(folder, tmp_path / "out", config, steps=1)
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png"):
        personalise(tmp_path / "pictures", tmp_path / "out", config, steps=1)
    assert not (tmp_path / "out").exists()
