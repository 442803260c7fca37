"""A small data set in the form of the emoji's: coloured shapes in two styles, some held out."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "orange", "black", "purple")
SHAPES = ("circle", "square", "bar", "pole", "ring", "cross")
STYLES = ("solid", "framed")


def write_shapes(folder: Path, n_heldout: int = 16) -> Path:
    """72 pictures of 16 x 16 pixels; the held-out ones have their other style in training."""
    pairs = [(colour, shape, style) for colour in COLOURS for shape in SHAPES for style in STYLES]
    heldout = {((i * 5) % 36) * 2 + i % 2 for i in range(n_heldout)}
    for split in ("train", "test"):
        lines = []
        for i, (colour, shape, style) in enumerate(pairs):
            if (i in heldout) != (split == "test"):
                continue
            name = f"{style}/{colour}-{shape}.png"
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(colour, shape, style).save(path)
            texts = [f"{colour} {shape}, {style} style", f"a {shape} that is {colour}, {style}", f"{colour} {shape}"]
            line = {"file_name": name, "text": texts[0], "captions": texts, "style": style}
            lines.append(json.dumps({**line, "concept": f"{colour} {shape}", "split": split}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _draw(colour: str, shape: str, style: str) -> Image.Image:
    image = Image.new("RGB", (16, 16), "white")
    draw = ImageDraw.Draw(image)
    if style == "framed":
        draw.rectangle((0, 0, 15, 15), outline="gray", width=2)
    if shape == "cross":
        draw.rectangle((6, 3, 9, 12), fill=colour)
        draw.rectangle((3, 6, 12, 9), fill=colour)
    else:
        box = {"bar": (3, 6, 12, 9), "pole": (6, 3, 9, 12)}.get(shape, (4, 4, 11, 11))
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "ring":
            draw.ellipse(box, outline=colour, width=2)
        else:
            draw.rectangle(box, fill=colour)
    return image
