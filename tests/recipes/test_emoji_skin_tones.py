"""Hands in skin tones: which are drawn, what they are called, and that they are held out together."""

import json
from pathlib import Path

import pytest
from test_emoji import DISC, GROUPS, pack

from miniai.recipes.emoji import build_emoji, is_held_out
from miniai.recipes.emoji_captions import captions
from miniai.recipes.emoji_concepts import SKIN_TONES, Concept, read_concepts, without_tone
from miniai.recipes.emoji_sources import STYLES
from miniai.train.captions import read_captioned_folder

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
HANDS = [f"{0xE000 + i:X}" for i in range(40)]  # in the private use area


def entry(code: str, label: str) -> dict[str, object]:
    """A hand as emojibase has it: its variants in one tone, and one in two."""
    skins = [
        {"hexcode": f"{code}-{tone}", "label": f"{label}: {name} skin tone", "tone": i + 1}
        for i, (tone, name) in enumerate(zip(SKIN_TONES, TONES, strict=True))
    ]
    two = {"hexcode": f"{code}-1F3FB-1F3FF", "label": f"{label}: light skin tone, dark skin tone", "tone": [1, 5]}
    return {"hexcode": code, "label": label, "tags": ["wave"], "group": 3, "subgroup": 34, "skins": [*skins, two]}


EMOJIBASE = {
    "en/data.json": [entry(code, f"hand {i}") for i, code in enumerate(HANDS)],
    "meta/groups.json": GROUPS,
    "meta/unicode-names.json": {},
}


def test_each_hand_is_there_in_five_tones_if_they_are_asked_for() -> None:
    plain, toned = read_concepts(EMOJIBASE), read_concepts(EMOJIBASE, skin_tones=True)
    assert [concept.hexcode for concept in plain] == HANDS
    assert [concept for concept in toned if concept in plain] == plain
    assert len(toned) == 6 * len(HANDS)  # couples in two tones are not among them
    first = [concept.label for concept in toned[:6]]
    assert first == ["hand 0", *(f"hand 0, {tone} skin tone" for tone in TONES)]
    assert all(concept.tags == ("wave",) for concept in toned)
    assert {without_tone(concept.hexcode) for concept in toned} == set(HANDS)


@pytest.mark.parametrize("style", STYLES)
def test_a_hand_is_held_out_in_all_its_tones_or_in_none(style: str) -> None:
    for hand in HANDS:
        assert {is_held_out(f"{hand}-{tone}", style) for tone in SKIN_TONES} == {is_held_out(hand, style)}


def test_the_words_say_the_tone() -> None:
    concept = Concept(
        "1F44B-1F3FE", "waving hand, medium-dark skin tone", ("hello",), "people-body", "hand-fingers-open"
    )
    found = captions(concept, "noto")
    assert found[0] == "waving hand, medium-dark skin tone, noto style"
    assert "a waving hand, medium-dark skin tone" in {text.removesuffix(", noto style") for text in found}
    assert "a waving hand with medium-dark skin" in found
    assert all("medium-dark skin" in text for text in found)


def test_the_built_set_holds_them_and_says_so(tmp_path: Path) -> None:
    names = {f"{hand}-{tone}".lower(): f"hand-{i}-{tone}" for i, hand in enumerate(HANDS) for tone in SKIN_TONES}
    names |= {hand.lower(): f"hand-{i}" for i, hand in enumerate(HANDS)}
    icons = {name: {"body": DISC.format(2 + i / 20)} for i, name in enumerate(names.values())}
    package = {"icons.json": {"icons": icons, "width": 32, "height": 32}, "chars.json": names}
    sources = {name: pack(tmp_path / "cache", f"@iconify-json/{name}", package) for name in ("noto", "twemoji")}
    asked = {
        "styles": list(sources), "cache": tmp_path / "cache", "sources": sources, "progress": False,
        "emojibase": pack(tmp_path / "cache", "emojibase-data", EMOJIBASE),
    }  # fmt: skip
    build_emoji(tmp_path / "plain", **asked)
    build_emoji(tmp_path / "toned", skin_tones=True, recoloured=True, **asked)
    found = {name: read_captioned_folder(tmp_path / name) for name in ("plain", "toned")}
    labels = {name: {item.fields["label"] for item in folder.items} for name, folder in found.items()}
    assert not any("skin tone" in label for label in labels["plain"])
    assert {f"hand 7, {tone} skin tone" for tone in TONES} <= labels["toned"]
    coloured = [i for i in found["toned"].items if i.fields["group"] == "colours"]
    assert coloured
    assert not any("skin tone" in item.text for item in coloured)
    trained, held = (
        {(without_tone(str(item.fields["concept"])), item.fields["style"]) for item in items}
        for items in (found["toned"].train, found["toned"].heldout)
    )
    assert held
    assert not {pair for pair in held if "-IN-" not in pair[0]} & trained
    cards = {name: (tmp_path / name / "README.md").read_text() for name in ("plain", "toned")}
    assert "with skin-tone variants" in cards["toned"]
    assert "in all its skin tones or in none" in cards["toned"]
    assert "without skin-tone variants" in cards["plain"]
    assert "in all its skin tones" not in cards["plain"]
    assert json.loads((tmp_path / "toned" / "emoji.json").read_text())["skin_tones"] is True
