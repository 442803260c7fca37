"""The evaluation on coloured shapes, with a real, tiny painter and a real, tiny evaluator trained here."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shapes import write_shapes
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.base.weights import write_weights
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes import evaluator
from miniai.recipes.contact_sheet import contact_sheet, load_painter, paint
from miniai.recipes.evaluate_text_to_image import evaluate_text_to_image
from miniai.recipes.evaluation import Evaluation, choose_heldout
from miniai.recipes.evaluator import RECORD, Evaluator, find_evaluator, train_evaluator
from miniai.recipes.generate_request import GUIDANCE_SCALE
from miniai.recipes.judging import Pictures, measure, to_levels
from miniai.recipes.sheets import labelled_grid
from miniai.recipes.text_to_image import scheduler_config
from miniai.recipes.text_to_image_config import TINY
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.captions import CaptionedFolder, load_images, read_captioned_folder

CPU = torch.device("cpu")
STEPS = 150

pytestmark = pytest.mark.filterwarnings("ignore::miniai.base.errors.UserNotice")  # prompts beyond the tiny window


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionedFolder:
    return read_captioned_folder(write_shapes(tmp_path_factory.mktemp("data") / "shapes"))


@pytest.fixture(scope="module")
def judge(data: CaptionedFolder) -> Evaluator:
    return find_evaluator(data, CPU, minutes=None, steps=STEPS, size="tiny")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def results(model: Path, data: CaptionedFolder, judge: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("evaluation")
    return out, evaluate_text_to_image(Evaluation(model, data.root, judge.folder), out, n_steps=2)


def _figures(judge: Evaluator, data: CaptionedFolder, painted: torch.Tensor) -> dict[str, Any]:
    heldout, train = load_images(data.heldout, judge.image_size), load_images(data.train, judge.image_size)
    return measure(judge, Pictures(painted, heldout, train), data.heldout, data.train)


def test_evaluator_tells_held_out_pictures_far_above_chance(judge: Evaluator, data: CaptionedFolder) -> None:
    figures = _figures(judge, data, load_images(data.heldout, judge.image_size))
    assert figures["retrieval"]["chance"] == 1 / 16
    assert figures["retrieval"]["real"] > 0.25
    assert figures["style"]["real"] > 0.8


def test_painter_that_paints_the_real_pictures_scores_what_they_score(judge: Evaluator, data: CaptionedFolder) -> None:
    figures = _figures(judge, data, load_images(data.heldout, judge.image_size))
    for key in ("retrieval", "retrieval_within_style", "style"):
        assert figures[key]["ratio"] == 1.0
    assert figures["fid"]["generated"] < 1e-6 < figures["fid"]["real"]
    assert figures["kid"]["generated"]["mean"] < figures["kid"]["real"]["mean"]
    assert figures["nearest_training"]["generated"] == figures["nearest_training"]["real"]
    assert figures["own_picture"] == pytest.approx({"feature": 0, "pixel": 0}, abs=1e-6)


def test_painter_that_copies_training_pictures_is_found_out(judge: Evaluator, data: CaptionedFolder) -> None:
    """At distance zero from the training, and wrong about the captions."""
    copied = load_images(data.train[: len(data.heldout)], judge.image_size)
    figures = _figures(judge, data, copied)
    assert figures["nearest_training"]["generated"]["pixel"] == 0.0
    assert figures["nearest_training"]["generated"]["feature"] == pytest.approx(0.0, abs=1e-6)
    assert figures["nearest_training"]["real"]["pixel"] > 0.0
    assert [p["nearest_by_pixel"]["index"] for p in figures["pictures"]] == list(range(len(copied)))
    assert figures["pictures"][3]["nearest_by_feature"]["text"] == data.train[3].text
    assert figures["retrieval"]["ratio"] < 0.5


def test_each_style_is_told_by_itself(judge: Evaluator, data: CaptionedFolder) -> None:
    """Of a painter that knows one style alone, and paints it whatever is asked for."""
    real = load_images(data.heldout, judge.image_size)
    styles = [str(item.fields["style"]) for item in data.heldout]
    first, second = sorted(set(styles))
    known = [i for i, style in enumerate(styles) if style == first]
    painted = real[[i if style == first else known[i % len(known)] for i, style in enumerate(styles)]]
    found = _figures(judge, data, painted)["style"]
    each = found["each"]
    assert {name: of["n"] for name, of in each.items()} == Counter(styles)
    assert each[first]["ratio"] == 1.0
    assert each[second]["generated"] < 0.2 < 0.8 < each[second]["real"]
    for who in ("generated", "real"):
        assert sum(of["n"] * of[who] for of in each.values()) / len(styles) == pytest.approx(found[who])


def test_painter_of_darker_pictures_is_as_far_from_the_real_ones(judge: Evaluator, data: CaptionedFolder) -> None:
    real = load_images(data.heldout, judge.image_size)
    darker = torch.stack([(picture.double() * 0.8).to(torch.uint8) for picture in real])
    own = _figures(judge, data, darker)["own_picture"]
    apart = [
        float((a.double() / 255 - b.double() / 255).square().mean()) ** 0.5 for a, b in zip(darker, real, strict=True)
    ]
    assert own["pixel"] == pytest.approx(sorted(apart)[(len(apart) - 1) // 2], rel=1e-6)
    a, b = judge.see(darker).double(), judge.see(real).double()
    cosines = sorted(1 - float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b, strict=True))
    assert own["feature"] == pytest.approx(cosines[(len(cosines) - 1) // 2], abs=1e-6)


def test_painter_of_white_paper_scores_near_chance(judge: Evaluator, data: CaptionedFolder) -> None:
    figures = _figures(judge, data, torch.full((16, 3, 16, 16), 255, dtype=torch.uint8))
    assert figures["retrieval"]["generated"] <= 2 / 16
    assert figures["fid"]["generated"] > figures["fid"]["real"]


def test_retrieval_share_is_that_of_the_pictures_listed_as_right(results: tuple[Path, dict[str, Any]]) -> None:
    _, found = results
    right = [picture["right"] for picture in found["pictures"]]
    assert found["n_pictures"] == len(right) == 16
    assert found["retrieval"]["generated"] == pytest.approx(sum(right) / 16)


def test_everything_is_saved(results: tuple[Path, dict[str, Any]]) -> None:
    out, found = results
    assert json.loads((out / "results.json").read_text()) == found
    table = (out / "results.md").read_text()
    assert f"| right caption of 16 | {found['retrieval']['generated']:.3f}" in table
    assert f"| FID | {found['fid']['generated']:.2f} | {found['fid']['real']:.2f}" in table
    assert len(list((out / "pictures").glob("*.png"))) == 16
    for name in ("samples.png", "nearest.png"):
        assert min(Image.open(out / name).size) > 64


def test_same_seed_gives_the_same_figures_and_another_seed_others(
    model: Path, data: CaptionedFolder, judge: Evaluator, results: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    asked = Evaluation(model, data.root, judge.folder)
    again = evaluate_text_to_image(asked, tmp_path / "a", n_steps=2)
    other = evaluate_text_to_image(replace(asked, seed=100), tmp_path / "b", n_steps=2)
    changing = ("seconds_per_picture", "settings")
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in results[1].items() if k not in changing
    }
    assert other["fid"] != again["fid"]


def test_painted_picture_depends_on_seed_and_place_but_not_on_the_batch(model: Path) -> None:
    painter = load_painter(model, "cpu")
    prompts = ["a cat", "a red apple", "a rocket"] * 14
    many = list(paint(painter, prompts, 2, 3.0, "ddim", seed=5))
    one = next(iter(paint(painter, prompts[33:34], 2, 3.0, "ddim", seed=5 + 33)))
    difference = to_levels([many[33]], 16).int() - to_levels([one], 16).int()
    assert int(difference.abs().max()) <= 1
    assert list(many[0].getdata()) != list(many[3].getdata())


def test_evaluator_is_trained_once_for_the_same_training_pictures(
    data: CaptionedFolder, judge: Evaluator, tmp_path: Path
) -> None:
    weights = judge.folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert judge.folder == data.root.resolve().with_name("shapes-evaluator")
    assert find_evaluator(data, CPU, minutes=None, steps=STEPS, size="tiny").folder == judge.folder
    assert weights.stat().st_mtime_ns == before
    other = write_shapes(tmp_path / "shapes", n_heldout=20)
    shutil.copytree(judge.folder, tmp_path / "shapes-evaluator")
    found = find_evaluator(read_captioned_folder(other), CPU, minutes=None, steps=2, size="tiny")
    assert found.record["pictures"] == 52
    assert found.record["data"] != judge.record["data"]


def test_the_evaluator_in_the_package_judges_data_of_its_pictures_whatever_their_captions(
    data: CaptionedFolder, judge: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = shutil.copytree(judge.folder, tmp_path / "shipped")
    monkeypatch.setattr(evaluator, "SHIPPED", shipped)
    renamed = tuple(replace(item, captions=("a thing",)) for item in reversed(data.train))
    of_other_captions = CaptionedFolder(data.root, renamed)
    assert find_evaluator(of_other_captions, CPU, minutes=None, steps=1, size="tiny").folder == shipped
    fewer = read_captioned_folder(write_shapes(tmp_path / "shapes", n_heldout=20))
    assert find_evaluator(fewer, CPU, minutes=None, steps=1, size="tiny").folder == tmp_path / "shapes-evaluator"


def test_evaluator_never_sees_a_held_out_picture(data: CaptionedFolder, judge: Evaluator, tmp_path: Path) -> None:
    """Trained again where the held-out pictures are all black, it has the same weights, bit for bit."""
    assert judge.record["pictures"] == len(data.train)
    other = write_shapes(tmp_path / "shapes")
    blackened = read_captioned_folder(other)
    for item in blackened.heldout:
        Image.new("RGB", (16, 16), "black").save(item.path)
    for name, folder in (("a", data), ("b", blackened)):
        train_evaluator(folder, tmp_path / name, CPU, minutes=None, steps=3, size="tiny")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_interrupted_training_of_the_evaluator_for_other_data_is_not_gone_on_with(
    data: CaptionedFolder, tmp_path: Path
) -> None:
    stale = tmp_path / "evaluator" / "training"
    stale.mkdir(parents=True)
    (stale / RECORD).write_text('{"data": "other"}')
    (stale / "done.json").write_text("{}")
    train_evaluator(data, tmp_path / "evaluator", CPU, minutes=None, steps=2, size="tiny")
    assert json.loads((tmp_path / "evaluator" / RECORD).read_text())["steps"] == 2
    assert not stale.exists()


def test_models_own_clip_is_refused_as_its_judge(data: CaptionedFolder, judge: Evaluator, tmp_path: Path) -> None:
    own = CLIPTextModel(judge.model.config.text_config)
    own.text_model = judge.model.text_model
    parts = judge.tokenizer, own, UNet2DConditionModel(TINY.unet), AutoencoderKL(TINY.vae), scheduler_config(TINY)
    StableDiffusionPipeline(*parts).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="the CLIP that the model was trained with"):
        evaluate_text_to_image(Evaluation(tmp_path / "model", data.root, judge.folder), tmp_path / "out", n_steps=2)


def test_limit_takes_that_many_held_out_pictures_evenly_spread(data: CaptionedFolder) -> None:
    assert choose_heldout(data, 5) == tuple(data.heldout[i] for i in (0, 3, 6, 9, 12))
    assert choose_heldout(data, 999) == choose_heldout(data) == data.heldout


def test_folder_without_held_out_pictures_is_refused(data: CaptionedFolder, tmp_path: Path) -> None:
    without = CaptionedFolder(tmp_path, data.train)
    with pytest.raises(UserError, match="a split named test"):
        choose_heldout(without)
    with pytest.raises(UserError, match="limit 3"):
        choose_heldout(data, 3)


def test_folder_without_styles_is_measured_without_them(judge: Evaluator, data: CaptionedFolder) -> None:
    def bare(items: tuple[Any, ...]) -> list[Any]:
        return [type(item)(item.path, item.captions, item.split) for item in items]

    heldout, train = load_images(data.heldout, judge.image_size), load_images(data.train, judge.image_size)
    figures = measure(judge, Pictures(heldout, heldout, train), bare(data.heldout), bare(data.train))
    assert figures["style"] is None
    assert figures["retrieval_within_style"] is None
    assert figures["retrieval"]["ratio"] == 1.0


def test_missing_evaluator_is_named(data: CaptionedFolder, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        evaluate_text_to_image(Evaluation(model, data.root, tmp_path / "nowhere"), tmp_path)


def test_impossible_request_is_refused_before_an_evaluator_is_trained(model: Path, tmp_path: Path) -> None:
    other = write_shapes(tmp_path / "shapes", n_heldout=20)
    with pytest.raises(UserError, match="eulr"):
        evaluate_text_to_image(Evaluation(model, other), tmp_path / "out", sampler="eulr", n_steps=2)
    assert not (tmp_path / "shapes-evaluator").exists()


def test_contact_sheet_has_a_cell_for_each_prompt_with_all_its_styles(model: Path, tmp_path: Path) -> None:
    prompts = ["a cat", "a red apple", "a rocket"]
    styles = ["a", "b"]
    path = contact_sheet(model, tmp_path / "sheet.png", prompts, styles, n_steps=2, n_columns=2, zoom=3)
    sheet = Image.open(path)
    painter = load_painter(model, "cpu")
    cell = list(paint(painter, [f"a cat, {style} style" for style in styles], 2, GUIDANCE_SCALE, None, 0))
    assert sheet.width == 2 * (3 * (2 * 16 + 2) + 8) + 8
    top = 8 + 13 + 8
    shown = sheet.crop((8, top, 8 + 3 * 34, top + 48)).resize((34, 16), Image.Resampling.NEAREST)
    difference = to_levels([shown.crop((18, 0, 34, 16))], 16).int() - to_levels([cell[1]], 16).int()
    assert int(difference.abs().max()) <= 1


def test_contact_sheet_paints_with_learned_words(model: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    (tmp_path / "words").mkdir()
    vectors = torch.randn(2, pipe.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    write_weights(tmp_path / "words" / "learned_embeds.safetensors", {"<word>": vectors})
    words = [tmp_path / "words"]
    sheet = contact_sheet(model, tmp_path / "sheet.png", ["a <word>"], n_steps=2, embeddings=words)
    unknown = contact_sheet(model, tmp_path / "unknown.png", ["a <word>"], n_steps=2)
    pipe.load_textual_inversion(tmp_path / "words")
    (painted,) = paint(pipe, ["a <word>"], 2, GUIDANCE_SCALE, None, 0)
    shown, without = (to_levels([Image.open(path).crop((8, 8, 24, 24))], 16).int() for path in (sheet, unknown))
    assert int((shown - to_levels([painted], 16).int()).abs().max()) <= 2  # the sheet's model is in another dtype
    assert int((shown - without).abs().max()) > 2


@pytest.mark.parametrize("by_feature", [False, True])
def test_contact_sheet_shows_the_nearest_training_picture_below_each(
    model: Path, data: CaptionedFolder, judge: Evaluator, tmp_path: Path, by_feature: bool
) -> None:
    evaluator = judge.folder if by_feature else None
    path = contact_sheet(
        model, tmp_path / "sheet.png", ["a cat"], ["a", "b"], n_steps=2, nearest_in=data.root, evaluator=evaluator
    )
    painted = list(paint(load_painter(model, "cpu"), ["a cat, a style", "a cat, b style"], 2, GUIDANCE_SCALE, None, 0))
    figures = _figures(judge, data, torch.cat([to_levels(painted, 16)] * 8))["pictures"]
    left, top = 8, 8 + 13 + 8 + 16 + 2
    for i in range(2):
        near = figures[i]["nearest_by_feature" if by_feature else "nearest_by_pixel"]["index"]
        shown = to_levels(
            [Image.open(path).convert("RGB").crop((left + 18 * i, top, left + 18 * i + 16, top + 16))], 16
        )
        assert torch.equal(shown, load_images([data.train[near]], 16))
    with pytest.raises(UserError, match="name the folder"):
        contact_sheet(model, tmp_path / "other.png", ["a cat"], evaluator=judge.folder)


def test_label_longer_than_two_lines_is_shortened_within_the_cell() -> None:
    image = Image.new("RGB", (60, 20), "black")
    short, long = labelled_grid([(image, "cat")], 1), labelled_grid([(image, "a cat and " * 30)], 1)
    endless = labelled_grid([(image, "x" * 500)], 1)
    assert (long.width, endless.width) == (short.width, short.width)
    assert short.height < long.height
    assert long.crop((69, 0, 76, long.height)).getcolors() == [(7 * long.height, (255, 255, 255))]
