"""Tux Paint's stamps as an ImageFolder with captions, for the trial `stamps` of `trials.py`.

    apt-get install tuxpaint-stamps-default
    python benchmarks/stamps_folder.py --out data/stamps

Under GPL-2 as a whole, unlike all that the packaged model learns from: for trials only.
"""

import argparse
import io
import json
import re
from pathlib import Path

from PIL import Image

from miniai.base.files import make_folder
from miniai.recipes.emoji_captions import with_article
from miniai.recipes.emoji_drawing import renderer
from miniai.recipes.emoji_folder import new_folder
from miniai.recipes.openclipart import LARGE, cut_out

DEBIAN = Path("/usr/share/tuxpaint/stamps")
VERBS = {"is", "are", "was", "we", "i", "you", "eat", "have", "has", "can", "let's"}
NO_THINGS = ("symbols/", "town/flags", "town/roadsigns")  # letters, signs and coins


def title(text: str) -> str:
    """What the first line of a caption names: "A happy lion!" is "happy lion"; "" if it begins or goes on as a
    sentence does."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    if set(line.lower().split()) & VERBS:
        return ""
    words = re.sub(r"^(an?|the) ", "", line.strip().rstrip(".!").lower())
    return words if re.fullmatch(r"[a-z][a-z' -]{2,39}", words) else ""


def picture_of(path: Path, size: int) -> bytes:
    """The stamp beside the caption file `path`, on white, cut to what is to be seen of it; nothing if there is none."""
    for suffix in (".svg", ".png"):
        source = path.with_suffix(suffix)
        if not source.is_file():
            continue
        try:
            data = source.read_bytes()
            if suffix == ".svg":
                text = data.decode("utf-8", "replace")
                data = bytes(renderer().svg_to_bytes(svg_string=text, skip_system_fonts=True, width=LARGE))
            with Image.open(io.BytesIO(data)) as image:
                drawn = image.convert("RGBA")
        except (ValueError, OSError):
            continue
        sheet = Image.new("RGBA", drawn.size, "white")
        return cut_out(Image.alpha_composite(sheet, drawn).convert("RGB"), size)
    return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/stamps"))
    parser.add_argument("--stamps", type=Path, default=DEBIAN)
    parser.add_argument("--size", type=int, default=64, help="edge of the pictures, in pixels")
    asked = parser.parse_args()
    captions = sorted(asked.stamps.rglob("*.txt"))
    if not captions:
        parser.error(f"{asked.stamps}: there are no stamps; apt-get install tuxpaint-stamps-default")
    lines = []
    with new_folder(asked.out) as folder:
        make_folder(folder / "train")
        for path in captions:
            place = path.relative_to(asked.stamps).with_suffix(".png").as_posix()
            name = title(path.read_text(encoding="utf-8", errors="replace"))
            picture = b"" if place.startswith(NO_THINGS) or not name else picture_of(path, asked.size)
            if not picture:
                continue
            file_name = place.replace("/", "-")
            (folder / "train" / file_name).write_bytes(picture)
            texts = [f"{name}, stamp style", name, f"{with_article(name)}, stamp style", with_article(name)]
            line = {"file_name": file_name, "text": texts[0], "captions": texts, "split": "train", "licence": "GPL-2"}
            lines.append(json.dumps(line) + "\n")
        (folder / "train" / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{asked.out}: {len(lines)} pictures to train on")


if __name__ == "__main__":
    main()
