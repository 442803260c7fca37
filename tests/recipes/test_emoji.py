"""The emoji set: built from small packages made here, in npm's layout, so that no network is needed."""

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniai.base.errors import UserError
from miniai.recipes.emoji import build_emoji, is_held_out
from miniai.recipes.emoji_captions import MAX_CAPTIONS, MAX_EVERYDAY, captions, with_article
from miniai.recipes.emoji_concepts import Concept, Icon, choose, match_icons, plain_label, read_concepts
from miniai.recipes.emoji_drawing import render
from miniai.recipes.emoji_everyday import EVERYDAY
from miniai.recipes.emoji_sources import EMOJIBASE, FURTHER_STYLES, SEPARATE_STYLES, STYLES, Source, fetch
from miniai.train.captions import load_images, read_captioned_folder

DISC = '<circle cx="16" cy="16" r="{}" fill="#d22"/>'
# Concepts of the little emojibase: 40 animals in the private use area, and a few real emoji.
ANIMALS = [f"{0xE000 + i:X}" for i in range(40)]
REAL = {
    "1F600": ("grinning face", 0, 0, ["cheerful", "happy", "smile", "teeth"]),
    "1F34E": ("red apple", 4, 42, ["apple", "diet", "food", "fruit"]),
    "1F552": ("three o’clock", 5, 58, ["clock"]),
    "1F4DA": ("books", 7, 72, ["book", "education"]),
    "1F1EE-1F1F6": ("flag: Iraq", 9, 98, ["IQ"]),
    "26BE": ("baseball", 6, 62, ["ball"]),
    "1F3FB": ("light skin tone", 2, 32, []),
}
GROUPS = {
    "groups": {"0": "smileys-emotion", "2": "component", "3": "animals-nature", "4": "food-drink",
               "5": "travel-places", "6": "activities", "7": "objects", "9": "flags"},
    "subgroups": {"0": "face-smiling", "32": "skin-tone", "34": "animal-mammal", "42": "food-fruit", "58": "time",
                  "62": "sport", "72": "book-paper", "98": "country-flag"},
}  # fmt: skip


def pack(folder: Path, name: str, files: dict[str, object], version: str = "1.0.0", damage: int = 0) -> Source:
    """A tarball in npm's layout in `folder`, and the Source that pins it. `damage` bytes are cut from its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, value in files.items():
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = buffer.getvalue()[: len(buffer.getvalue()) - damage]
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    source = Source(name, version, integrity, "MIT", "somebody")
    folder.mkdir(exist_ok=True)
    (folder / source.tarball).write_bytes(data)
    return source


def emojibase_files() -> dict[str, object]:
    entries = [
        {"hexcode": code, "label": f"beast {i}", "tags": ["wild"], "group": 3, "subgroup": 34}
        for i, code in enumerate(ANIMALS)
    ]
    entries += [
        {"hexcode": code, "label": label, "tags": tags, "group": group, "subgroup": subgroup}
        for code, (label, group, subgroup, tags) in REAL.items()
    ]
    unicode_names = {"1F34E": "RED APPLE", "1F600": "GRINNING FACE"}
    shortcodes = {"1F600": ["grin_wide", "smile"], "26BE": "ball_game", "1F4DA": "ball_game"}
    return {
        "en/data.json": [*entries, {"hexcode": "1F1E6", "label": "regional indicator A"}],
        "meta/groups.json": GROUPS,
        "meta/unicode-names.json": unicode_names,
        "en/shortcodes/joypixels.json": shortcodes,
    }


def icon_set(seed: int, chars: bool = True) -> dict[str, object]:
    """Icons of all concepts, each a disc of its own radius; named by code points, or by slugs alone."""
    codes = [*ANIMALS, "1F600", "1F34E", "1F552", "1F4DA"]
    names = {code: f"beast-{i}" for i, code in enumerate(ANIMALS)}
    names |= {"1F600": "grinning-face", "1F34E": "red-apple", "1F552": "three-oclock", "1F4DA": "books"}
    icons = {names[code]: {"body": DISC.format(2 + i / 5 + seed / 100)} for i, code in enumerate(codes)}
    icons["grinning-face-dark-skin-tone"] = {"body": DISC.format(3)}
    package = {"icons": icons, "aliases": {}, "width": 32, "height": 32}
    table = {code.lower() + "-fe0f": names[code] for code in codes} if chars else {}
    return {"icons.json": package, "chars.json": table}


@pytest.fixture
def packages(tmp_path: Path) -> dict:
    """cache=…, sources=… and emojibase=… for build_emoji: three little styles and OpenMoji's stand-in."""
    cache = tmp_path / "cache"
    sources = {
        "noto": pack(cache, "@iconify-json/noto", icon_set(0)),
        "twemoji": pack(cache, "@iconify-json/twemoji", icon_set(1)),
        "fxemoji": pack(cache, "@iconify-json/fxemoji", icon_set(2, chars=False)),
        "openmoji": pack(cache, "@iconify-json/openmoji", icon_set(3)),
    }
    emojibase = pack(cache, "emojibase-data", emojibase_files())
    return {"cache": cache, "sources": sources, "emojibase": emojibase, "progress": False}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*/metadata.jsonl")) for line in open(path)]


def pairs(folder: Path, split: str) -> set[tuple[str, str]]:
    return {(line["concept"], line["style"]) for line in lines(folder) if line["split"] == split}


def test_the_set_is_an_image_folder_whose_metadata_names_every_picture(packages: dict, tmp_path: Path) -> None:
    report = build_emoji(tmp_path / "set", ["noto", "twemoji", "fxemoji"], size=32, **packages)
    found = read_captioned_folder(tmp_path / "set")  # refuses a picture that is missing or that no line names
    assert len(found.train) == report.n_train
    assert len(found.heldout) == report.n_test
    assert report.n_train + report.n_test == 3 * 44 - sum(style.n_left_out for style in report.styles.values())
    assert all(style.n_unmatched == 1 for style in report.styles.values())  # the skin tone
    keys = {"file_name", "text", "captions", "style", "concept", "label", "group", "subgroup", "split", "licence"}
    assert all(set(line) == keys for line in lines(tmp_path / "set"))
    apple = next(i for i in found.items if i.fields["concept"] == "1F34E" and i.fields["style"] == "noto")
    assert apple.text == "red apple, noto style"
    assert apple.fields["group"] == "food-drink"
    assert load_images(found.train, 32).shape == (report.n_train, 3, 32, 32)


def test_a_rendered_picture_is_of_the_asked_size_with_white_corners_and_its_proportions() -> None:
    wide = Icon("bar", '<rect x="2" width="40" height="20" fill="#00f"/>', width=40.0, height=20.0, left=2.0)
    image = Image.open(io.BytesIO(render(wide, 48)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 48))
    pixels = np.asarray(image).astype(int)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    blue = (pixels == [0, 0, 255]).all(axis=2)
    assert blue.sum() == 48 * 24
    assert blue[12:36].all()


def test_a_flipped_icon_is_the_mirror_image() -> None:
    body = '<rect x="3" y="3" width="6" height="20" fill="#080"/>'
    there, back = (
        np.asarray(Image.open(io.BytesIO(render(Icon("r", body, 32.0, 32.0, flip=flip), 32)))) for flip in (False, True)
    )
    assert not np.array_equal(there, back)
    assert np.array_equal(there, back[:, ::-1])


def test_no_pair_that_is_held_out_ever_trains_whatever_styles_are_built(packages: dict, tmp_path: Path) -> None:
    trained, tested = {}, {}
    for styles in (["noto"], ["noto", "twemoji"], ["fxemoji", "twemoji", "noto"]):
        out = tmp_path / "-".join(styles)
        build_emoji(out, styles, size=16, **packages)
        trained[len(styles)], tested[len(styles)] = pairs(out, "train"), pairs(out, "test")
    assert not any(is_held_out(*pair) for built in trained.values() for pair in built)
    assert all(is_held_out(*pair) for built in tested.values() for pair in built)
    assert not tested[1]  # no other style teaches the concept
    assert tested[2] < tested[3]
    assert {concept for concept, _ in tested[3]} <= {concept for concept, _ in trained[3]}


def test_the_choice_of_held_out_pairs_never_changes() -> None:
    held_out = [("1F604", "emojione"), ("1F44E", "fluent-emoji"), ("1F9AD", "twemoji"), ("1F4F7", "fxemoji"),
                ("2197", "noto"), ("1F9CE-200D-2640", "fluent-emoji")]  # fmt: skip
    assert all(is_held_out(*pair) for pair in held_out)
    share = np.mean([is_held_out(f"{code:X}", style) for code in range(0x1F300, 0x1F700) for style in STYLES])
    assert 0.045 < share < 0.055


def test_building_twice_with_any_number_of_jobs_gives_the_same_bytes(packages: dict, tmp_path: Path) -> None:
    for n_jobs in (1, 3):
        build_emoji(tmp_path / str(n_jobs), ["noto", "twemoji"], size=16, n_jobs=n_jobs, **packages)
    first, second = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "13"
    )
    assert len(first) > 80
    assert first == second


def test_a_drawing_held_out_under_one_name_and_trained_under_another_is_left_out(tmp_path: Path) -> None:
    code = next(code for code in ANIMALS if is_held_out(code, "noto") and not is_held_out(code, "twemoji"))
    other = next(c for c in ANIMALS if not is_held_out(c, "noto"))
    same, odd = {"body": DISC.format(9)}, {"body": DISC.format(5)}
    sets = {
        "noto": {"icons": {"one": same, "two": same}, "width": 32, "height": 32},
        "twemoji": {"icons": {"one": odd, "two": odd}, "width": 32, "height": 32},
    }
    table = {code: "one", other: "two"}
    cache = tmp_path / "cache"
    sources = {s: pack(cache, s, {"icons.json": icons, "chars.json": table}) for s, icons in sets.items()}
    emojibase = pack(cache, "emojibase-data", emojibase_files())
    out = tmp_path / "set"
    report = build_emoji(out, list(sets), size=16, cache=cache, sources=sources, emojibase=emojibase, progress=False)
    assert report.styles["noto"].n_left_out == 1
    assert not pairs(out, "test")
    assert not list(out.glob("test/*/*.png"))


def test_a_blank_drawing_is_left_out(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code = next(c for c in ANIMALS if not is_held_out(c, "noto") and c != ANIMALS[0])
    icons = {"seen": {"body": DISC.format(9)}, "blank": {"body": DISC.format(0)}}
    kept = next(c for c in ANIMALS if not is_held_out(c, "noto") and c != code)
    files = {"icons.json": {"icons": icons, "width": 32, "height": 32}, "chars.json": {kept: "seen", code: "blank"}}
    sources = {"noto": pack(cache, "noto", files)}
    emojibase = pack(cache, "emojibase-data", emojibase_files())
    out = tmp_path / "set"
    build_emoji(out, ["noto"], size=16, cache=cache, sources=sources, emojibase=emojibase, progress=False)
    assert pairs(out, "train") == {(kept, "noto")}
    assert len(list(out.rglob("*.png"))) == 1


def test_a_tarball_with_another_hash_is_refused_and_nothing_is_left_behind(packages: dict, tmp_path: Path) -> None:
    tarball = packages["cache"] / packages["sources"]["noto"].tarball
    tarball.write_bytes(tarball.read_bytes() + b"\0")
    with pytest.raises(UserError, match=rf"{tarball.name}: not the @iconify-json/noto 1\.0\.0 that is pinned"):
        build_emoji(tmp_path / "set", ["twemoji", "noto"], **packages)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_truncated_package_is_one_clear_line(packages: dict, tmp_path: Path) -> None:
    packages["sources"]["noto"] = pack(packages["cache"], "@iconify-json/noto", icon_set(0), damage=200)
    with pytest.raises(UserError, match="cannot be read as an npm package") as error:
        build_emoji(tmp_path / "set", ["noto"], **packages)
    assert "\n" not in str(error.value)


def test_without_npm_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is needed.*apt install npm"):
        fetch(EMOJIBASE, tmp_path / "cache")


def test_offline_the_message_passes_on_what_npm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\necho 'npm error code ECONNREFUSED\nnpm error request to r failed, reason: r' >&2\nexit 1"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"emojibase-data@17\.0\.0 failed: request to r failed, reason: r; check"):
        fetch(EMOJIBASE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_resvg_the_message_names_the_extra(
    packages: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"pip install '\.\[data\]'"):
        build_emoji(tmp_path / "set", ["noto"], **packages)


def test_a_folder_of_someone_elses_is_left_alone(packages: dict, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="mine holds files that were not built here"):
        build_emoji(tmp_path / "mine", ["noto"], **packages)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_set_of_ours_is_replaced_whole_and_stays_when_the_new_build_fails(packages: dict, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_emoji(out, ["noto"], size=16, **packages)
    before = pairs(out, "train")
    broken = {"icons.json": {"icons": {"red-apple": {"body": "<rect"}}, "width": 32, "height": 32}}
    packages["sources"]["bad"] = pack(packages["cache"], "bad", broken)
    with pytest.raises(UserError, match="bad.*red-apple"):
        build_emoji(out, ["noto", "bad"], size=16, **packages)
    assert pairs(out, "train") == before
    build_emoji(out, ["twemoji"], size=16, **packages)
    assert {style for _, style in pairs(out, "train")} == {"twemoji"}
    assert not (out / "train" / "noto").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"styles": ["noto", "comic"]}, "unknown style 'comic'; choose from noto, twemoji, fxemoji, openmoji"),
        ({"styles": []}, "no style named"),
        ({"styles": ["noto", "noto"]}, "named twice"),
        ({"styles": ["noto", "openmoji"]}, "openmoji is CC BY-SA and is never mixed"),
        ({"styles": ["noto"], "groups": ["animls"]}, "unknown group 'animls'; choose from core, animals-nature"),
        ({"styles": ["noto"], "size": 4}, "size 4 is out of range; give 16 to 1024 pixels"),
        ({"styles": ["noto"], "n_jobs": 0}, "give 1 or more"),
        ({"styles": ["noto"], "everyday_weight": 0}, "weight of 0 for everyday words is out of range; give 1 to 20"),
        ({"styles": ["noto"], "groups": ["flags"]}, "no pictures in groups flags and styles noto"),
    ],
)
def test_a_bad_request_is_one_clear_line(packages: dict, tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_emoji(tmp_path / "set", **arguments, **packages)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def test_openmoji_alone_is_all_test_and_its_card_says_never_trained_on(packages: dict, tmp_path: Path) -> None:
    report = build_emoji(tmp_path / "set", ["openmoji"], size=16, **packages)
    assert (report.n_train, report.n_test) == (0, 44)
    assert "never trained on" in (tmp_path / "set" / "README.md").read_text()


def test_the_data_card_names_counts_and_licences(packages: dict, tmp_path: Path) -> None:
    report = build_emoji(tmp_path / "set", ["noto", "twemoji"], size=16, **packages)
    card = (tmp_path / "set" / "README.md").read_text()
    assert f"{report.n_train:,} to train on" in card
    for style, counts in report.styles.items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {style} |"))
        assert f"| MIT | {counts.n_train} | {counts.n_test} |" in row
    assert "never trained on" not in card


def test_every_pinned_package_has_a_whole_sha512_and_a_licence() -> None:
    sources = [*STYLES.values(), *FURTHER_STYLES.values(), *SEPARATE_STYLES.values(), EMOJIBASE]
    assert len(sources) == 10
    for source in sources:
        algorithm, digest = source.integrity.split("-", 1)
        assert algorithm == "sha512"
        assert len(base64.b64decode(digest, validate=True)) == 64
        assert source.licence
    assert not any("SA" in source.licence for source in (*STYLES.values(), *FURTHER_STYLES.values()))


def concepts() -> list[Concept]:
    return read_concepts(emojibase_files())


def test_code_points_decide_before_names_and_names_before_aliases() -> None:
    icons = {name: {"body": ""} for name in ("odd-name", "red-apple", "grinningface", "baseball", "ball-game")}
    icons["books"] = {"body": "", "hidden": True}
    package = {"icons": icons, "aliases": {"three-oclock": {"parent": "baseball"}, "beast-0": {"parent": "ball-game"}}}
    found = match_icons(concepts(), {"icons.json": package, "chars.json": {"1F34E-FE0F": "odd-name"}})
    names = {code: icon.name for code, icon in found.icons.items()}
    # "red-apple" comes too late, "books" is hidden, the short code "ball_game" names two things and so none,
    # "three-oclock" would draw the baseball again, and "beast-0" is the other name of a drawing still free
    assert names == {"1F34E": "odd-name", "1F600": "grinningface", "26BE": "baseball", "E000": "ball-game"}
    assert found.unmatched == ["red-apple"]


def test_an_alias_that_mirrors_its_icon_draws_a_thing_of_its_own() -> None:
    package = {"icons": {"beast-0": {"body": ""}}, "aliases": {"beast-1": {"parent": "beast-0", "hFlip": True}}}
    found = match_icons(concepts(), {"icons.json": package}).icons
    assert {code: (icon.name, icon.flip) for code, icon in found.items()} == {
        "E000": ("beast-0", False),
        "E001": ("beast-0", True),
    }


def test_a_set_that_names_icons_by_slugs_alone_is_matched_like_one_with_code_points() -> None:
    by_code, by_slug = (match_icons(concepts(), icon_set(0, chars)) for chars in (True, False))
    assert by_code == by_slug
    assert len(by_slug.icons) == 44


def test_core_leaves_out_flags_and_clock_faces_and_groups_are_patterns() -> None:
    core = {concept.hexcode for concept in choose(concepts(), ["core"])}
    assert core == {*ANIMALS, "1F600", "1F34E", "1F4DA", "26BE"}
    assert {c.hexcode for c in choose(concepts(), ["food-*", "time"])} == {"1F34E", "1F552"}
    assert choose(concepts(), None) == concepts()
    assert "1F3FB" not in {concept.hexcode for concept in concepts()}  # a skin tone is no picture


def test_captions_are_many_different_lower_case_and_the_first_names_label_and_style() -> None:
    for concept in concepts():
        found = captions(concept, "fluent-emoji-flat")
        assert found[0] == f"{concept.label}, fluent flat style"
        assert 8 <= len(found) <= MAX_CAPTIONS
        assert len(set(found)) == len(found)
        assert all(caption == caption.lower().strip() for caption in found)
        assert 3 <= sum("fluent flat" in caption for caption in found) < len(found)  # with and without the style


def test_captions_of_a_face_call_it_a_smiley_and_carry_its_tags_in_orders_that_differ_by_style() -> None:
    face = next(concept for concept in concepts() if concept.hexcode == "1F600")
    assert "a grinning smiley, noto style" in captions(face, "noto")
    assert captions(face, "noto") == captions(face, "noto")
    without_style = {
        tuple(caption.replace(words, "") for caption in captions(face, style))
        for style, words in (("noto", "noto"), ("twemoji", "twemoji"), ("emojione", "emojione"))
    }
    assert len(without_style) == 3
    assert any("happy" in caption for caption in captions(face, "noto"))


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("red apple", "a red apple"),
        ("orange heart", "an orange heart"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("books", "books"),
        ("bus", "a bus"),
        ("octopus", "an octopus"),
        ("wine glass", "a wine glass"),
        ("face with tears of joy", "a face with tears of joy"),
        ("money with wings", "money with wings"),
        ("people hugging", "people hugging"),
        ("flag of iraq", "flag of iraq"),
        ("baseball", "baseball"),
        ("soccer", "soccer"),
        ("rabbit that sits", "a rabbit that sits"),
        ("hand that waves", "a hand that waves"),
        ("avocado cut in half", "an avocado cut in half"),
    ],
)
def test_a_label_gets_the_article_that_it_is_said_with(label: str, said: str) -> None:
    assert with_article(label) == said


def test_labels_become_plain_words() -> None:
    assert plain_label("flag: Côte d’Ivoire") == "flag of côte d'ivoire"
    assert plain_label("Japanese “free of charge” button") == "japanese free of charge button"
    assert plain_label("person: red hair") == "person, red hair"
    assert plain_label("keycap: 3") == "keycap 3"


def test_everyday_names_are_captions_of_their_own_and_mean_one_thing_each() -> None:
    said = [name for names in EVERYDAY.values() for name in names]
    assert len(said) == len(set(said))
    assert not set(said) & set(EVERYDAY)  # none is another thing's label
    car = Concept("1F697", "automobile", ("vehicle",), "travel-places", "transport-ground")
    texts = {text for style in STYLES for text in captions(car, style)}
    assert {"a car, noto style", "a red car"} & texts
    assert {with_article(name) for name in EVERYDAY["automobile"]} <= texts
    weighted = captions(car, "noto", everyday_weight=3)
    assert weighted[: len(set(weighted))] == captions(car, "noto")
    often = [text for text in set(weighted) if weighted.count(text) == 3]
    assert len(often) == 2 * MAX_EVERYDAY
    assert all(any(with_article(name) in text for name in EVERYDAY["automobile"]) for text in often)
    assert with_article("coffee") == "coffee"
    assert with_article("glass of red wine") == "a glass of red wine"
