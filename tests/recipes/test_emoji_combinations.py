"""Faces that wear things: drawn from two icons, named by both, and never from a drawing that is held out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_emoji import emojibase_files, pack

from miniai.recipes.emoji import _split, _with_more, build_emoji, is_held_out
from miniai.recipes.emoji_captions import captions
from miniai.recipes.emoji_combinations import GROUP, THINGS, WEARERS, combinations, drawn_box, put_on
from miniai.recipes.emoji_concepts import Concept, Icon
from miniai.recipes.emoji_drawing import render
from miniai.train.captions import read_captioned_folder

FACE = Icon("face", '<circle cx="16" cy="20" r="10" fill="#f00"/>', 32.0, 32.0)
BAR = Icon("bar", '<rect x="40" y="50" width="40" height="10" fill="#00f"/>', 128.0, 128.0)
STYLES = ("noto", "twemoji", "fluent-emoji-flat")


def concept(code: str, label: str) -> Concept:
    return Concept(code, label, ("tag",), "animals-nature", "animal-mammal")


ALL = [concept(code, wearer.words) for code, wearer in WEARERS.items()]
ALL += [concept(code, thing.words.removeprefix("a ")) for code, thing in THINGS.items()]
ICONS = dict.fromkeys(WEARERS, FACE) | dict.fromkeys(THINGS, BAR)


def pixels(icon: Icon, size: int = 100) -> np.ndarray:
    with Image.open(io.BytesIO(render(icon, size))) as image:
        return np.asarray(image).astype(int)


def span(seen: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is seen, in pixels."""
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize(
    "icon", [FACE, BAR, Icon("wide", FACE.body, 64.0, 32.0), Icon("moved", FACE.body, 32.0, 32.0, 4.0, 6.0)]
)
def test_the_box_of_a_drawing_is_where_its_pixels_are(icon: Icon) -> None:
    left, top, width, height = drawn_box(icon, 128)
    unit = max(icon.width, icon.height) / 128
    expected = (6, 10, 20, 20) if icon is not BAR else (40, 50, 40, 10)
    assert np.allclose((left, top, width, height), expected, atol=2 * unit)


def test_glasses_lie_over_the_eyes_and_are_as_wide_as_the_head() -> None:
    wearer, wear = WEARERS["1F63A"], THINGS["1F576"]
    shown = pixels(put_on(FACE, drawn_box(FACE), wearer, BAR, drawn_box(BAR), wear))
    red, blue = shown[..., 2] < 100, shown[..., 0] < 100
    face, glasses = span(red | blue), span(blue)
    middle = (glasses[1] + glasses[3]) / 2
    assert middle == pytest.approx(face[1] + wearer.eyes * (face[3] - face[1]), abs=2)
    assert glasses[2] - glasses[0] == pytest.approx(wear.width * wearer.width * (face[2] - face[0]), abs=2)
    assert glasses[0] + glasses[2] == pytest.approx(100, abs=2)


@pytest.mark.parametrize("code", [code for code, thing in THINGS.items() if not thing.on_eyes])
@pytest.mark.parametrize("wearer", list(WEARERS))
def test_a_hat_sits_on_the_head_and_both_are_whole(code: str, wearer: str) -> None:
    shown = pixels(put_on(FACE, drawn_box(FACE), WEARERS[wearer], BAR, drawn_box(BAR), THINGS[code]))
    red, blue = shown[..., 2] < 100, shown[..., 0] < 100
    face, hat = span(red), span(blue)
    assert hat[1] >= 0
    assert face[3] <= 99
    assert hat[1] < face[1] + WEARERS[wearer].crown * (face[3] - face[1])
    assert hat[3] >= face[1] - 1  # it touches the head; one pixel of rounding
    assert hat[2] - hat[0] == pytest.approx(4 * (hat[3] - hat[1]), rel=0.25)  # its proportions are kept


def test_a_mirrored_icon_stays_mirrored() -> None:
    half = Icon("half", '<rect x="2" y="2" width="6" height="28" fill="#f00"/>', 32.0, 32.0, flip=True)
    face = Icon("face", half.body + '<rect x="2" y="28" width="28" height="2" fill="#f00"/>', 32.0, 32.0, flip=True)
    shown = pixels(put_on(face, drawn_box(face), WEARERS["1F43B"], BAR, drawn_box(BAR), THINGS["1F451"]))
    red = shown[..., 2] < 100
    assert red[60, 50:].sum() > 5 > red[60, :40].sum()


def test_only_pairs_that_the_style_draws_are_made() -> None:
    made, drawn = combinations(ALL, {code: icon for code, icon in ICONS.items() if code not in ("1F63A", "1F451")})
    assert len(made) == len(drawn) == (len(WEARERS) - 1) * (len(THINGS) - 1)
    assert not [code for code in drawn if "1F63A" in code or "1F451" in code]
    assert combinations([], ICONS) == ([], {})


def test_the_words_say_who_wears_what() -> None:
    made, _ = combinations(ALL, ICONS)
    panda = next(one for one in made if one.hexcode == "1F43C-WITH-1F3A9")
    assert panda.label == "panda with a top hat"
    assert panda.group == GROUP
    texts = {text for style in STYLES for text in captions(panda, style)}
    assert "a panda with a top hat, noto style" in texts
    assert texts & {"a panda wearing a top hat", "a panda in a top hat"}


def test_no_combination_that_trains_holds_a_drawing_that_is_held_out() -> None:
    concepts, icons = _with_more(ALL, dict.fromkeys(STYLES, ICONS), lambda free, _: combinations(ALL, free))
    pictures = [picture for picture in _split(concepts, icons) if picture.concept.group == GROUP]
    held_out = {(code, style) for code in ICONS for style in STYLES if is_held_out(code, style)}
    assert held_out  # else this test says nothing
    assert pictures
    for picture in pictures:
        for part in picture.concept.hexcode.split("-WITH-"):
            assert (part, picture.style) not in held_out


def test_some_pairs_are_new_in_every_style_though_their_parts_are_taught() -> None:
    concepts, icons = _with_more(ALL, dict.fromkeys(STYLES, ICONS), lambda free, _: combinations(ALL, free))
    split: dict[str, set[str]] = {}
    for picture in _split(concepts, icons):
        split.setdefault(picture.concept.hexcode, set()).add(picture.split)
    unseen = {code for code, where in split.items() if where == {"test"}}
    assert 0.01 < len(unseen) / (len(WEARERS) * len(THINGS)) < 0.12
    taught = {part for code, where in split.items() if "train" in where for part in code.split("-WITH-")}
    assert all(part in taught for code in unseen for part in code.split("-WITH-"))


def test_the_built_set_holds_them_and_says_so(tmp_path: Path) -> None:
    """A little emojibase and a package with one face, sunglasses and a crown."""
    labels = {"1F43B": "bear", "1F576": "sunglasses", "1F451": "crown"}
    files = emojibase_files() | {
        "en/data.json": [
            {"hexcode": code, "label": label, "tags": [], "group": 3, "subgroup": 34} for code, label in labels.items()
        ]
    }
    icons = {label: {"body": (FACE if label == "bear" else BAR).body} for label in labels.values()}
    package = {"icons.json": {"icons": icons, "width": 128, "height": 128}, "chars.json": {}}
    sources = {name: pack(tmp_path / "cache", f"@iconify-json/{name}", package) for name in ("twemoji", "fxemoji")}
    emojibase = pack(tmp_path / "cache", "emojibase-data", files)
    build_emoji(
        tmp_path / "set", list(sources), cache=tmp_path / "cache", combined=True, sources=sources, emojibase=emojibase,
        progress=False,
    )  # fmt: skip
    folder = read_captioned_folder(tmp_path / "set")
    found = {caption for item in (*folder.train, *folder.heldout) for caption in item.captions}
    assert {"bear with sunglasses, twemoji style", "a bear with a crown"} <= found
    assert "combinations" in (tmp_path / "set" / "README.md").read_text()
    assert json.loads((tmp_path / "set" / "emoji.json").read_text())["combinations"]
