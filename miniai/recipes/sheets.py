"""Sheets of small pictures with words below them, for people to look at."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_FONT_SIZE = 10
_LINE = 13  # pixels from one line of text to the next
_GAP = 8  # pixels between cells
_MAX_LINES = 2


def labelled_grid(
    cells: Sequence[tuple[Image.Image, str]], n_columns: int, title: str = "", zoom: int = 1
) -> Image.Image:
    """Pictures in rows of `n_columns` on white, each `zoom` times as large, its label in at most two lines below."""
    if not cells or n_columns < 1 or zoom < 1:
        raise ValueError("a sheet needs at least one picture, one column and a zoom of at least 1")
    font = _font()
    width = zoom * max(image.width for image, _ in cells)
    height = zoom * max(image.height for image, _ in cells)
    labels = [wrap(label, width, font) for _, label in cells]
    step_x, step_y = width + _GAP, height + _GAP + _LINE * max(map(len, labels))
    n_columns = min(n_columns, len(cells))
    n_rows = -(-len(cells) // n_columns)
    top = _GAP + (_LINE + _GAP if title else 0)
    sheet = Image.new("RGB", (n_columns * step_x + _GAP, n_rows * step_y + top), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill="black", font=font)
    for i, ((image, _), lines) in enumerate(zip(cells, labels, strict=True)):
        row, column = divmod(i, n_columns)
        x, y = _GAP + column * step_x, top + row * step_y
        sheet.paste(image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST), (x, y))
        for n, line in enumerate(lines):
            draw.text((x, y + height + n * _LINE), line, fill=(70, 70, 70), font=font)
    return sheet


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and, unlike Pillow's own font, has accents and other alphabets."""
    import matplotlib  # here, as whoever paints without a sheet need not wait for it

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words; what does not fit two lines ends in "…"."""
    lines: list[str] = []
    words = text.split()
    while words:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        lines.append(line)
    kept = lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
        kept[-1] += "…"
    return [_shorten(line, width, font) for line in kept]


def _shorten(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while line.rstrip("…") and font.getlength(line) > width:
        line = line.rstrip("…")[:-1] + "…"
    return line
