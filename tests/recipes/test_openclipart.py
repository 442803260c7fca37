"""The set of clip art: built from little drawings made here, in the library's form."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from miniai.base.errors import UserError
from miniai.cli import app
from miniai.recipes.openclipart import (
    Drawing,
    build_openclipart,
    captions,
    draw,
    plain,
    read_drawing,
    with_own_titles,
)
from miniai.train.captions import load_images, read_captioned_folder

DISC = '<circle cx="{}" cy="20" r="{}" fill="{}"/>'
LICENCE = "http://web.resource.org/cc/PublicDomain"


def svg(title: str, body: str, keywords: tuple[str, ...] = (), licence: str = LICENCE, head: str = "") -> str:
    """A drawing as the library has them: on a sheet in points, and without SVG's namespace."""
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return f"""<?xml version="1.0"?>
<svg width="200pt" height="100pt" {head}><metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/"
xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work>
<dc:title>{title}</dc:title><dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>{body}</svg>"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """60 fruits that can be used, and in each way one that cannot."""
    root = tmp_path / "svg"
    for folder in ("food", "recreation/games/cards", "shapes"):
        (root / folder).mkdir(parents=True)
    names = [f"{a}{b} fruit" for a in "abcdef" for b in "klmnopqrst"]
    for i, name in enumerate(names):
        (root / "food" / f"{name}.svg").write_text(svg(name, DISC.format(20, 4 + i / 5, "red"), ("hash", "ripe")))
    bad = {
        "sold": svg("sold fruit", DISC.format(20, 9, "blue"), licence="http://creativecommons.org/licenses/GPL/2.0/"),
        "blank": svg("blank fruit", ""),
        "broken": svg("broken fruit", "<circle"),
        "untitled": svg("", DISC.format(20, 9, "blue")),
        "twin": svg("twin fruit", DISC.format(20, 4, "red")),  # of the first
        **{f"set{i}": svg("fruit collection", DISC.format(30 + i, 9, "green")) for i in range(5)},
    }
    for name, text in bad.items():
        (root / "food" / f"{name}.svg").write_text(text)
    (root / "food" / "gone.svg").symlink_to(root / "nowhere")
    for folder in ("recreation/games/cards", "shapes"):
        (root / folder / "other.svg").write_text(svg("some card", DISC.format(50, 9, "black")))
    return root


def test_the_set_is_an_image_folder_of_the_drawings_that_can_be_used(library: Path, tmp_path: Path) -> None:
    report = build_openclipart(tmp_path / "set", library, 32, progress=False)
    found = read_captioned_folder(tmp_path / "set")  # refuses a picture that is missing or that no line names
    assert (report.n_train, report.n_test) == (len(found.train), len(found.heldout))
    assert report.n_train + report.n_test == 60
    assert report.n_test > 0
    assert report.n_left_out == 11
    assert found.train[0].text.endswith(" fruit, clipart style")
    assert {item.fields["licence"] for item in found.items} == {"public domain"}
    assert load_images(found.train, 32).shape == (report.n_train, 3, 32, 32)
    assert "public domain" in (tmp_path / "set" / "README.md").read_text()
    assert json.loads((tmp_path / "set" / "openclipart.json").read_text())["counts"]["left_out"] == 11


def test_building_again_gives_the_same_bytes_in_place_of_the_old(library: Path, tmp_path: Path) -> None:
    seen = []
    for n_jobs in (1, 3):
        build_openclipart(tmp_path / "set", library, 32, n_jobs, progress=False)
        files = sorted(path for path in (tmp_path / "set").rglob("*") if path.is_file())
        seen.append({path.relative_to(tmp_path): path.read_bytes() for path in files})
    assert seen[0] == seen[1]


@pytest.mark.parametrize("head", ["", 'viewBox="0 0 200 100"'])
def test_the_empty_sheet_is_cut_away_and_proportions_are_kept(head: str) -> None:
    text = svg("bar", '<rect x="150" y="70" width="16" height="8" fill="#00f"/>', head=head)
    picture = draw(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '), 64)
    pixels = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
    blue = pixels[..., 0] < 128
    rows, columns = (np.flatnonzero(blue.any(axis=axis)) for axis in (1, 0))
    assert pixels.shape == (64, 64, 3)
    assert 58 <= len(columns) <= 62
    assert len(columns) == pytest.approx(2 * len(rows), abs=2)
    assert abs(rows[0] + rows[-1] - 63) <= 1
    assert (pixels[[0, -1], [0, -1]] == 255).all()


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Clipart by Nicu Buculei - w_cloud", "w cloud"),
        ("Crawfish (B and W)", "crawfish"),
        ("olivier_one_bw", "olivier one"),
        ("Woman Fashion 01", "woman fashion"),
        ("horse#1", "horse"),
        ("Penguin no. 3", "penguin"),
        ("No Smoking", "no smoking"),
        ("a (red) car (b)", "a car"),
        ("  Old car ", "old car"),
    ],
)
def test_titles_become_plain_words(title: str, said: str) -> None:
    assert plain(title) == said


def test_a_title_of_a_collection_or_of_no_words_is_none() -> None:
    titles = ["bear", *["homes"] * 5, "2 dead frogs", "ok", "r2@x.de", "x" * 41, *["dog"] * 4]
    kept = with_own_titles(Drawing(str(i), title, (), "") for i, title in enumerate(titles))
    assert [one.title for one in kept] == ["bear", "dog", "dog", "dog", "dog"]


def test_captions_name_the_thing_and_its_keywords(library: Path) -> None:
    drawing = read_drawing(library / "food" / "ak fruit.svg", library)
    assert drawing is not None
    assert drawing.keywords == ("ripe",)
    assert captions(drawing)[:4] == ["ak fruit, clipart style", "ak fruit", "an ak fruit, clipart style", "an ak fruit"]
    assert captions(drawing)[-2:] == ["ak fruit, ripe, clipart style", "ripe, ak fruit"]


def test_what_cannot_be_built_is_one_clear_line(library: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no drawings; on Debian or Ubuntu: apt-get install openclipart-svg"):
        build_openclipart(tmp_path / "set", tmp_path / "none")
    with pytest.raises(UserError, match="size 8 is out of range"):
        build_openclipart(tmp_path / "set", library, 8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not built here"):
        build_openclipart(tmp_path / "mine", library)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "svg"]


def test_the_command_builds(library: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["data", "openclipart", "--out", str(tmp_path / "set"), "--svgs", str(library)])
    assert ran.exit_code == 0, ran.output
    assert "pictures to train on" in ran.output
