"""Pictures in and out."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from miniai.base import plots
from miniai.base.errors import UserError
from miniai.base.images import grid, open_image, read_parameters, save_gif, save_png, to_pil, to_tensor
from miniai.base.plots import curves


def noise_picture(width: int = 12, height: int = 7, mode: str = "RGB") -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("extension", ["png", "bmp", "jpg", "webp", "gif"])
def test_every_allowed_format_opens_as_rgb(tmp_path: Path, extension: str) -> None:
    Image.new("RGB", (12, 7), (200, 30, 60)).save(tmp_path / f"a.{extension}")
    image = open_image(tmp_path / f"a.{extension}")
    assert (image.mode, image.size) == ("RGB", (12, 7))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 60)).max() < 12


def test_lossless_formats_keep_every_pixel(tmp_path: Path) -> None:
    picture = noise_picture()
    save_png(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), np.asarray(picture))


def test_a_format_off_the_list_is_a_user_error_whatever_its_name(tmp_path: Path) -> None:
    noise_picture().save(tmp_path / "a.png", format="TIFF")
    with pytest.raises(UserError, match=r"a\.png is not a picture in PNG, JPEG"):
        open_image(tmp_path / "a.png")


def test_transparent_parts_come_out_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = [0, 128, 255]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(open_image(tmp_path / "p.png"))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    noise_picture(12, 7).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (7, 12)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    save_gif(tmp_path / "a.gif", [red, blue], 100)
    assert open_image(tmp_path / "a.gif").getpixel((1, 1)) == (255, 0, 0)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few dozen bytes whose header promises `width` x `height` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(("width", "height"), [(8_000, 8_000), (60_000, 60_000), (2_000_000_000, 2)])
def test_a_bomb_is_a_user_error_and_is_not_unpacked(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(UserError, match=r"50,000,000 pixels"):
        open_image(bomb(tmp_path / "a.png", width, height))


def test_the_pixel_cap_is_the_callers(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", noise_picture(10, 10))
    assert open_image(tmp_path / "a.png", max_pixels=100).size == (10, 10)
    with pytest.raises(UserError, match="10x10 pixels: scale it below 99"):
        open_image(tmp_path / "a.png", max_pixels=99)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_damaged_picture_is_a_user_error_wherever_it_is_cut(tmp_path: Path, extension: str) -> None:
    buffer = io.BytesIO()
    noise_picture(64, 64).save(buffer, format=Image.registered_extensions()[f".{extension}"])
    whole = buffer.getvalue()
    for n_kept in (0, 10, 40, len(whole) // 2):
        (tmp_path / f"a.{extension}").write_bytes(whole[:n_kept])
        with pytest.raises(UserError, match=rf"a\.{extension}") as caught:
            open_image(tmp_path / f"a.{extension}")
        assert "\n" not in str(caught.value)


def test_a_missing_picture_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png is missing"):
        open_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot read"):
        open_image(tmp_path)


def test_tensors_and_pictures_are_each_others_inverse() -> None:
    pictures = [noise_picture(), noise_picture().rotate(180)]
    tensor = to_tensor(pictures)
    assert tensor.shape == (2, 3, 7, 12)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    for before, after in zip(pictures, to_pil(tensor), strict=True):
        assert np.array_equal(np.asarray(before), np.asarray(after))


def test_values_outside_the_range_are_clipped_not_wrapped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).expand(1, 3, 1, 5)
    assert np.asarray(to_pil(values)[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_to_pil_rounds_as_diffusers_does() -> None:
    from diffusers.image_processor import VaeImageProcessor

    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = VaeImageProcessor().postprocess(images, output_type="pil")
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(to_pil(images), theirs, strict=True))


def test_pictures_of_several_sizes_make_no_batch() -> None:
    with pytest.raises(ValueError, match="one size"):
        to_tensor([noise_picture(3, 4), noise_picture(4, 3)])


def test_a_grid_holds_its_pictures_row_by_row() -> None:
    colours = ["red", "green", "blue"]
    sheet = grid([Image.new("RGB", (4, 3), colour) for colour in colours], n_columns=2, gap=1)
    assert sheet.size == (9, 7)
    assert [sheet.getpixel(place) for place in [(0, 0), (5, 0), (0, 4), (8, 6), (4, 0)]] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
        (255, 255, 255),
        (255, 255, 255),
    ]


@pytest.mark.parametrize("text", ["a cat\nSteps: 20, Seed: 1", "猫 🐈\nNegative prompt: naïve", ""])
def test_the_parameters_text_comes_back_in_any_script(tmp_path: Path, text: str) -> None:
    save_png(tmp_path / "a.png", noise_picture(), text)
    assert read_parameters(tmp_path / "a.png") == text
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == text


def test_a_png_without_parameters_has_none(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", noise_picture())
    assert read_parameters(tmp_path / "a.png") is None
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(UserError, match="not a PNG"):
        read_parameters(tmp_path / "b.png")


def test_a_gif_has_all_its_frames_and_durations(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (40 * i, 0, 0)) for i in range(5)]
    save_gif(tmp_path / "a.gif", frames, [100, 100, 100, 100, 900])
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5
        assert gif.info["loop"] == 0
        gif.seek(4)
        assert gif.info["duration"] == 900


def test_curves_are_drawn_without_touching_pyplot(tmp_path: Path) -> None:
    curves(tmp_path / "a.png", {"train": ([1, 2, 3], [3.0, 0.2, 0.1]), "valid": ([1], [2])}, "step", "loss", log_y=True)
    picture = np.asarray(open_image(tmp_path / "a.png"))
    assert (picture != 255).any()
    assert os.listdir(tmp_path) == ["a.png"]


def test_lines_whose_colour_comes_again_are_of_another_style(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_figure", lambda width, height: figures.append(Figure()) or figures[-1])
    plots.curve_panels(None, {"y": {f"{i}": ([0.0, 1.0], [0.0, float(i)]) for i in range(24)}}, "x")
    lines = figures[0].axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 24
    assert len({line.get_color() for line in lines}) == plots.N_COLOURS
