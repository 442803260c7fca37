"""Captioned folders as people have them, good and bad."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from miniai.base.errors import UserError
from miniai.train.captions import CaptionedItem, centre_square, load_images, read_captioned_folder


def picture(path: Path, size: tuple[int, int] = (8, 8), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def jsonl(path: Path, *rows: dict | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def problems(folder: Path) -> list[str]:
    """The lines of the report that the folder gets, without its first."""
    with pytest.raises(UserError) as error:
        read_captioned_folder(folder)
    return [line.strip() for line in str(error.value).split("\n")[1:]]


def test_metadata_jsonl_gives_captions_split_and_all_other_fields_in_its_order(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "sub" / "a.jpg")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "sub/a.jpg", "text": " a cat ", "captions": ["a cat", "cat, noto style"], "style": "noto"},
        {"file_name": "b.png", "text": "ein Bär", "split": "test", "year": 2020},
    )
    folder = read_captioned_folder(tmp_path)
    first = CaptionedItem(tmp_path / "sub/a.jpg", ("a cat", "cat, noto style"), "train", {"style": "noto"})
    second = CaptionedItem(tmp_path / "b.png", ("ein Bär",), "test", {"year": 2020})
    assert folder.items == (first, second)
    assert (folder.train, folder.heldout) == ((first,), (second,))
    assert first.text == "a cat"


def test_metadata_csv_reads_like_metadata_jsonl_also_with_commas_and_a_byte_order_mark(tmp_path: Path) -> None:
    rows = [("a.png", 'a "red", round\nthing', "x"), ("b.png", "b", "y")]
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("file_name", "text", "kind"), *rows])
    for name, _, _ in rows:
        picture(tmp_path / name)
    found = read_captioned_folder(tmp_path).items
    assert [(item.path.name, item.text, item.fields["kind"]) for item in found] == rows


def test_a_text_file_beside_each_picture_gives_one_caption_a_line(tmp_path: Path) -> None:
    picture(tmp_path / "z.png")
    picture(tmp_path / "album" / "a.webp")
    (tmp_path / "z.txt").write_text("a fox\n\n a red fox \na fox\n")
    (tmp_path / "album" / "a.txt").write_text("a hen")
    found = read_captioned_folder(tmp_path).items
    assert [(item.path.name, item.captions) for item in found] == [
        ("a.webp", ("a hen",)),
        ("z.png", ("a fox", "a red fox", "a fox")),
    ]


def test_a_caption_that_stands_twice_is_there_twice_but_for_the_main_one_said_again(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    rows = [
        {"file_name": "a.png", "text": "a bee", "captions": ["a honeybee", "a bee", "an insect", "an insect"]},
        {"file_name": "b.png", "text": "a bee", "captions": ["a bee", "a bee"]},
        {"file_name": "c.png", "captions": ["a bee", "a bee"]},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.captions for item in read_captioned_folder(tmp_path).items] == [
        ("a bee", "a honeybee", "an insect", "an insect"),
        ("a bee", "a bee"),
        ("a bee", "a bee"),
    ]


@pytest.mark.parametrize("name", ["heldout", "held_out", "test", "Validation", "val", "dev"])
def test_a_held_out_picture_is_never_in_train(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "a", "split": name},
        {"file_name": "b.png", "text": "b", "split": "train"},
    )
    folder = read_captioned_folder(tmp_path)
    assert [item.text for item in folder.train] == ["b"]
    assert [item.text for item in folder.heldout] == ["a"]


def test_split_folders_with_metadata_each_are_read_together_and_their_names_decide(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "x" / "a.png")
        jsonl(tmp_path / split / "metadata.jsonl", {"file_name": "x/a.png", "text": split, "split": "train"})
    folder = read_captioned_folder(tmp_path)
    assert [item.text for item in folder.train] == ["train"]
    assert [item.text for item in folder.heldout] == ["test"]


def test_everything_that_is_wrong_with_a_folder_stands_in_one_report(tmp_path: Path) -> None:
    for name in ("good.png", "twice.png", "silent.png", "spaces.png", "list.png", "forgotten.png"):
        picture(tmp_path / name)
    (tmp_path / "torn.png").write_bytes(picture(tmp_path / "torn.png", (64, 64)).read_bytes()[:60])
    (tmp_path / "page.png").write_text("<html>not found</html>")
    Image.new("RGB", (8, 8)).save(tmp_path / "scan.tiff")
    rows = [{"file_name": f"{name}.png", "text": name} for name in ("good", "twice", "twice", "gone", "torn", "page")]
    odd = [
        {"file_name": "silent.png"},
        {"file_name": "spaces.png", "text": "  "},
        {"file_name": "list.png", "text": "x", "captions": ["y", ""]},
        {"text": "no name"},
        {"file_name": "../passwd.png", "text": "x"},
        {"file_name": "scan.tiff", "text": "x"},
        "{broken",
        "[1]",
    ]
    jsonl(tmp_path / "metadata.jsonl", *rows, *odd)
    with pytest.raises(UserError) as error:
        read_captioned_folder(tmp_path)
    first = str(error.value).split("\n")[0]
    assert first == f"{tmp_path}: 13 problems to mend before training (2 pictures are fine):"
    found = problems(tmp_path)
    expected = [
        "twice.png: listed twice", "gone.png: missing", "torn.png", "page.png is not a picture",
        "line 7: silent.png: no text", "line 8: spaces.png: empty caption", "line 9: list.png: empty caption",
        "line 10: no file_name", "line 11: ../passwd.png lies outside the folder", "scan.tiff is not a picture",
        "line 13: not a JSON object", "line 14: not a JSON object", "forgotten.png: no caption",
    ]  # fmt: skip
    for problem in expected:
        assert sum(problem in line for line in found) == 1, problem
    assert len(found) == len(expected)


def test_a_folder_with_text_files_gets_the_same_report(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "good.txt").write_text("good")
    picture(tmp_path / "alone.png")
    picture(tmp_path / "empty.png")
    (tmp_path / "empty.txt").write_text(" \n")
    picture(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("Bär".encode("latin-1"))
    Image.new("RGB", (8, 8)).save(tmp_path / "scan.tif")
    assert problems(tmp_path) == [
        "scan.tif: unknown format, convert it to PNG or JPEG",
        "alone.png: no caption (alone.txt is missing)",
        "empty.png: empty caption",
        "latin.txt: cannot be read as UTF-8 text",
    ]


@pytest.mark.parametrize("name", ["a\0.png", "a" * 5000 + ".png", "sub/../../a.png", "/etc/a.png", 7, None, ""])
def test_a_file_name_that_cannot_be_one_is_a_line_in_the_report(tmp_path: Path, name: object) -> None:
    jsonl(tmp_path / "metadata.jsonl", {"file_name": name, "text": "x"})
    (line,) = problems(tmp_path)
    assert line.startswith("metadata.jsonl, line 1: ")


def test_a_report_lists_twenty_problems_and_counts_the_rest(tmp_path: Path) -> None:
    jsonl(tmp_path / "metadata.jsonl", *({"file_name": f"{i}.png", "text": "x"} for i in range(33)))
    found = problems(tmp_path)
    assert len(found) == 21
    assert found[-1] == "… and 13 more"


def test_a_picture_bomb_is_a_line_in_the_report(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    (tmp_path / "bomb.txt").write_text("boom")
    (line,) = problems(tmp_path)
    assert "bomb.png" in line
    assert "pixels" in line


@pytest.mark.parametrize("make", ["missing", "file", "empty"])
def test_what_is_no_captioned_folder_is_one_clear_line(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "data"
    if make == "file":
        folder.write_text("")
    if make == "empty":
        folder.mkdir()
    with pytest.raises(UserError, match="needs metadata.jsonl" if make == "empty" else "not a folder") as error:
        read_captioned_folder(folder)
    assert "\n" not in str(error.value)


def test_images_come_in_order_as_bytes_and_untouched_where_the_size_is_right(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    items = []
    for i, pixels in enumerate(levels):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        items.append(CaptionedItem(tmp_path / f"{i}.png", ("x",)))
    images = load_images(items, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(levels).permute(0, 3, 1, 2))
    assert load_images([], 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 100), (100, 33)])
def test_other_sizes_are_scaled_by_their_shorter_edge_and_cropped_to_the_centre(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "blue")
    width, height = size
    edge = min(size)
    image.paste("red", (0, 0, (width - edge) // 2, height))  # all that lies outside the middle square
    image.paste("red", (width - (width - edge) // 2, 0, width, height))
    image.paste("red", (0, 0, width, (height - edge) // 2))
    image.paste("red", (0, height - (height - edge) // 2, width, height))
    square = np.asarray(centre_square(image, 32)).astype(int)
    assert square.shape == (32, 32, 3)
    assert (square[4:-4, 4:-4] == [0, 0, 255]).all()


def test_transparent_pictures_come_in_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (load_images([CaptionedItem(tmp_path / "a.png", ("x",))], 8) == 255).all()


def test_a_very_thin_picture_is_cropped_without_being_made_huge_first() -> None:
    assert centre_square(Image.new("RGB", (1, 40_000), "blue"), 512).size == (512, 512)  # 31 GB at its full height


def test_folders_without_metadata_are_read_by_their_text_files_beside_those_that_have_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "album" / "p.PNG")
    (tmp_path / "a.TXT").write_text("a cat")
    (tmp_path / "album" / "p.txt").write_text("a dog")
    picture(tmp_path / "listed" / "b.png")
    jsonl(tmp_path / "listed" / "metadata.jsonl", {"file_name": "b.png", "text": "a cow"})
    assert [item.text for item in read_captioned_folder(tmp_path).items] == ["a cow", "a cat", "a dog"]
    picture(tmp_path / "album" / "forgotten.png")
    picture(tmp_path / "listed" / "forgotten.png")
    assert problems(tmp_path) == [
        "album/forgotten.png: no caption (forgotten.txt is missing)",
        "listed/forgotten.png: no caption (in no line of the metadata)",
    ]


@pytest.mark.parametrize("metadata", [True, False])
def test_what_is_hidden_is_passed_over(tmp_path: Path, metadata: bool) -> None:
    picture(tmp_path / "a.png")
    for name in (".a.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.cache/b.png"):
        picture(tmp_path / name)
    if metadata:
        jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "a cat"})
    else:
        (tmp_path / "a.txt").write_text("a cat")
    assert [item.text for item in read_captioned_folder(tmp_path).items] == ["a cat"]


def test_a_csv_line_with_a_comma_too_many_is_told_and_spaces_around_its_names_do_not_matter(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    table = tmp_path / "metadata.csv"
    table.write_text("file_name, text ,captions\na.png,a dog,a brown dog\nb.png,a cow,\n")
    assert [item.captions for item in read_captioned_folder(tmp_path).items] == [("a dog", "a brown dog"), ("a cow",)]
    table.write_text("file_name,text\na.png,a dog, brown\nb.png,a cow\n")
    assert problems(tmp_path) == [
        "metadata.csv, line 2: a.png: more fields than the first line names; a text with commas stands between quotes"
    ]


@pytest.mark.parametrize("row", [{"text": 5}, {"text": "a", "captions": [None, 5]}, {"text": ["a"]}])
def test_a_caption_that_is_no_text_is_told_so(tmp_path: Path, row: dict) -> None:
    picture(tmp_path / "a.png")
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.png"} | row)
    assert problems(tmp_path) == ["metadata.jsonl, line 1: a.png: a caption is no text"]
