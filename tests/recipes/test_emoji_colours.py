"""Things in colours of our choice: the curve of brightness, which things, their words, and nothing that is held out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_emoji import emojibase_files, pack

from miniai.recipes.emoji import _split, _with_more, build_emoji, is_held_out
from miniai.recipes.emoji_captions import captions
from miniai.recipes.emoji_colours import (
    COLOURS,
    GROUP,
    LUMA,
    SHARE,
    colour_of,
    coloured,
    coloured_concept,
    in_colour,
    main_brightness,
)
from miniai.recipes.emoji_concepts import Concept, Icon
from miniai.recipes.emoji_drawing import render
from miniai.recipes.emoji_everyday import EVERYDAY
from miniai.train.captions import read_captioned_folder

STYLES = ("noto", "twemoji", "fluent-emoji-flat")
ELEPHANT = Concept("1F418", "elephant", ("animal",), "animals-nature", "animal-mammal")
MANY = [Concept(f"{0xE000 + i:X}", f"beast {i}", (), "animals-nature", "animal-mammal") for i in range(400)]


def flat(*fills: str, flip: bool = False) -> Icon:
    """Bars of equal width, one fill each, from edge to edge."""
    width = 64 / len(fills)
    bars = (f'<rect x="{i * width}" y="0" width="{width}" height="64" fill="{fill}"/>' for i, fill in enumerate(fills))
    return Icon("flat", "".join(bars), 64.0, 64.0, flip=flip)


def pixels(icon: Icon) -> np.ndarray:
    with Image.open(io.BytesIO(render(icon, 64))) as image:
        return np.asarray(image).astype(float)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_main_brightness_becomes_the_colour_and_black_and_white_stay(colour: str) -> None:
    icon = flat("#f2a93b", "#f2a93b", "#000", "#fff")
    brightness = main_brightness(icon)
    assert brightness == pytest.approx(np.array([0xF2, 0xA9, 0x3B]) / 255 @ LUMA)
    shown = pixels(in_colour(icon, colour, brightness))
    assert np.allclose(shown[32, 8], np.array(COLOURS[colour]) * 255, atol=6)  # a table of 21 points bends a little
    assert shown[32, 40].max() <= 1
    assert shown[32, 56].min() >= 254


@pytest.mark.parametrize("grey", [20, 70, 128, 200, 240])
def test_every_brightness_goes_where_straight_lines_through_black_the_colour_and_white_put_it(grey: int) -> None:
    brightness, level = 0.6, np.array(COLOURS["blue"])
    shown = pixels(in_colour(flat(f"rgb({grey},{grey},{grey})"), "blue", brightness))[32, 32] / 255
    expected = [np.interp(grey / 255, (0, brightness, 1), (0, channel, 1)) for channel in level]
    assert np.allclose(shown, expected, atol=0.02)


def test_the_hue_of_the_drawing_is_gone_and_a_mirrored_one_stays_mirrored() -> None:
    shown = pixels(in_colour(flat("#e33", "#36e", flip=True), "green", 0.35))
    assert (shown.argmax(axis=2)[:, [8, 56]] == 1).all()
    plain = pixels(in_colour(flat("#e33", "#36e"), "green", 0.35))
    assert np.allclose(shown, plain[:, ::-1])


def test_what_is_black_and_white_has_nothing_to_colour() -> None:
    assert main_brightness(flat("#000", "#fff", "#000")) is None
    assert main_brightness(flat("#fff")) is None
    assert main_brightness(flat("#888", "#000", "#000", "#000")) is None


def test_a_share_of_the_things_gets_each_colour_and_others_never() -> None:
    found = [colour_of(concept, style) for concept in MANY for style in STYLES]
    assert sum(colour is not None for colour in found) / len(found) == pytest.approx(SHARE, abs=0.04)
    for colour in COLOURS:
        assert found.count(colour) / len(found) == pytest.approx(SHARE / len(COLOURS), abs=0.02)
    assert found == [colour_of(concept, style) for concept in MANY for style in STYLES]
    for label, group, subgroup in (
        ("red apple", "food-drink", "food-fruit"), ("light-blue beast 3", "animals-nature", "animal-mammal"),
        ("warning", "symbols", "warning"), ("crescent moon", "travel-places", "sky-weather"),
    ):  # fmt: skip
        codes = (f"{0xE000 + i:X}" for i in range(50))
        assert {colour_of(Concept(code, label, (), group, subgroup), "noto") for code in codes} == {None}


def test_the_words_name_the_colour_and_everyday_names_keep_it() -> None:
    texts = {text for style in STYLES for text in captions(coloured_concept(ELEPHANT, "blue"), style)}
    assert {"blue elephant, noto style", "a blue elephant", "an elephant in blue, twemoji style"} <= texts
    assert "red car" in EVERYDAY["automobile"]
    car = coloured_concept(Concept("1F697", "automobile", (), "travel-places", "transport-ground"), "green")
    texts = {text for style in STYLES for text in captions(car, style)}
    assert "a green car" in texts
    assert not [text for text in texts if "red car" in text]


def test_nothing_held_out_is_coloured_for_training_and_some_pairs_are_new_in_every_style() -> None:
    icons = {concept.hexcode: flat("#f2a93b") for concept in MANY}
    concepts, all_icons = _with_more(
        MANY, dict.fromkeys(STYLES, icons), lambda free, style: coloured(MANY, free, style)
    )
    pictures = [picture for picture in _split(concepts, all_icons) if picture.concept.group == GROUP]
    assert {picture.split for picture in pictures} == {"train", "test", "left out"}
    for picture in pictures:
        assert not is_held_out(picture.concept.hexcode.split("-IN-")[0], picture.style)
    trained = {picture.concept.hexcode for picture in pictures if picture.split == "train"}
    unseen = {picture.concept.hexcode for picture in pictures if picture.split == "test"} - trained
    assert 0.01 < len(unseen) / len(pictures) < 0.12


def test_the_built_set_holds_them_and_says_so(tmp_path: Path) -> None:
    labels = {"1F43B": "bear", "1F42D": "mouse", "1F418": "elephant", "1F697": "automobile", "1F955": "carrot"}
    files = emojibase_files() | {
        "en/data.json": [
            {"hexcode": code, "label": label, "tags": [], "group": 3, "subgroup": 34} for code, label in labels.items()
        ]
    }
    icons = {
        label: {"body": f'<circle cx="64" cy="64" r="{20 + len(label)}" fill="#a62"/>'} for label in labels.values()
    }
    package = {"icons.json": {"icons": icons, "width": 128, "height": 128}, "chars.json": {}}
    sources = {name: pack(tmp_path / "cache", f"@iconify-json/{name}", package) for name in ("twemoji", "fxemoji")}
    emojibase = pack(tmp_path / "cache", "emojibase-data", files)
    build_emoji(
        tmp_path / "set", list(sources), cache=tmp_path / "cache", recoloured=True, sources=sources,
        emojibase=emojibase, progress=False,
    )  # fmt: skip
    folder = read_captioned_folder(tmp_path / "set")
    found = {caption for item in (*folder.train, *folder.heldout) for caption in item.captions}
    expected = {
        f"{colour} {label}, {style} style"
        for style in sources
        for code, label in labels.items()
        if (colour := colour_of(Concept(code, label, (), "animals-nature", "animal-mammal"), style)) is not None
        and not is_held_out(code, style)
        and not is_held_out(f"{code}-IN-{colour.upper()}", style)  # drawn in one style alone, hence left out
    }
    assert expected
    assert expected <= found
    assert "**Colours**" in (tmp_path / "set" / "README.md").read_text()
    assert json.loads((tmp_path / "set" / "emoji.json").read_text())["colours"]
