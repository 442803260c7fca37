"""`miniai data openclipart`: an ImageFolder of captioned pictures from the Open Clip Art Library's drawings.

Debian packages 8,121 of them as `openclipart-svg`, in the public domain, with titles and keywords inside each. Those
that show a thing and say which are drawn, each cut to what is to be seen of it, with the style "clipart".
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, ImageChops

from miniai.base.errors import UserError
from miniai.base.files import make_folder, write_json
from miniai.recipes.emoji_captions import with_article
from miniai.recipes.emoji_drawing import renderer
from miniai.recipes.emoji_folder import check_folder, falls_out, in_parallel, new_folder

DEBIAN = Path("/usr/share/openclipart/svg")
HOW_TO_GET_IT = "on Debian or Ubuntu: apt-get install openclipart-svg"
RECORD = "openclipart.json"  # its presence says that a folder was built here and may be replaced
# Folders of drawings of things, and what in them is none: signs, cards, icons of programs, maps, flags, patterns.
FOLDERS = (
    "animals", "buildings", "containers", "education", "electronics", "food", "office", "people", "plants",
    "recreation", "science", "tools", "transportation",
)  # fmt: skip
NOT_IN = ("recreation/games/cards", "transportation/aiga-symbols", "transportation/roadsigns")
PUBLIC_DOMAIN = ("http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/")
MAX_SAME_TITLE = 4  # a title that more drawings bear is a collection's, not a thing's
MAX_TITLE, MAX_KEYWORDS = 40, 4
# What keywords say of a file and not of the picture.
NO_KEYWORDS = re.compile(r"hash\b|.*\d|icon$|symbol$|unsorted$|svg$|clip ?art$|.*rollandin")
DC, RDF, CC = (
    "{http://purl.org/dc/elements/1.1/}",
    "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}",
    "{http://web.resource.org/cc/}",
)
LARGE = 512  # pixels at which a drawing's edge is found
MAX_BYTES = 1_000_000  # of a drawing: a few are photographs in disguise


@dataclass(frozen=True)
class Drawing:
    """One file, what it says it shows, and its SVG with the namespaces that some of them lack."""

    name: str
    title: str
    keywords: tuple[str, ...]
    svg: str

    @property
    def is_held_out(self) -> bool:
        """5 % of drawings, by a hash of the name: the same in every build."""
        return falls_out(self.name)


@dataclass(frozen=True)
class ClipartReport:
    """Where the set is, how many pictures it holds, and how many files of the folders were left out."""

    out: Path
    n_train: int
    n_test: int
    n_left_out: int


def build_openclipart(
    out: Path, svgs: Path = DEBIAN, size: int = 64, n_jobs: int = 2, *, progress: bool = True
) -> ClipartReport:
    """Build the captioned set in the folder `out`, whole or not at all.

    out: a new or empty folder, or one built here before, which is then replaced
    svgs: the folder `svg` of the library; its folders of things (`FOLDERS`) are read
    size: edge of the square pictures, in pixels, 16 to 1024

    A drawing is left out that is not in the public domain, has no title of its own, is broken, blank, or larger than a
    megabyte. Raises UserError: no drawings there, a folder that is someone else's, a size out of range, resvg-py
    missing.
    """
    check_folder(out, RECORD, size, n_jobs)
    paths = [path for folder in FOLDERS for path in sorted((svgs / folder).rglob("*.svg"))]
    paths = [path for path in paths if not path.relative_to(svgs).as_posix().startswith(NOT_IN)]
    if not paths:
        raise UserError(f"{svgs}: there are no drawings; {HOW_TO_GET_IT}")
    drawings = with_own_titles(drawing for path in paths if (drawing := read_drawing(path, svgs)) is not None)
    with new_folder(out) as folder:
        for split in ("train", "test"):
            make_folder(folder / split)
        pictures = in_parallel(lambda drawing: draw(drawing.svg, size), drawings, n_jobs, progress)
        counts = _write(folder, drawings, pictures)
        report = ClipartReport(out, counts["train"], counts["test"], len(paths) - counts["train"] - counts["test"])
        (folder / "README.md").write_text(_card(report, size), encoding="utf-8")
        made = {"train": report.n_train, "test": report.n_test, "left_out": report.n_left_out}
        write_json(folder / RECORD, {"built_by": "miniai data openclipart", "size": size, "counts": made})
    return report


def read_drawing(path: Path, root: Path) -> Drawing | None:
    """The drawing, or None if it cannot be read, is too large, or is not said to be in the public domain."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for prefix, address in (("xmlns", "http://www.w3.org/2000/svg"), ("xmlns:xlink", "http://www.w3.org/1999/xlink")):
        if f"{prefix}=" not in text:
            text = re.sub(r"<svg\b", f'<svg {prefix}="{address}"', text, count=1)
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None
    work = tree.find(f".//{CC}Work")
    licences = [] if work is None else [one.get(f"{RDF}resource") for one in work.findall(f"{CC}license")]
    if work is None or not set(licences) & set(PUBLIC_DOMAIN):
        return None
    words = [plain(item.text or "") for item in work.iterfind(f"{DC}subject//{RDF}li")]
    return Drawing(
        name=path.relative_to(root).with_suffix("").as_posix(),
        title=plain(work.findtext(f"{DC}title") or ""),
        keywords=tuple(dict.fromkeys(word for word in words if word and not NO_KEYWORDS.match(word))),
        svg=text,
    )


def plain(words: str) -> str:
    """Lower-case words without what a collection adds: "Clipart by X - old_Car (B and W) 03" becomes "old car"."""
    words = re.sub(r"^clipart by .* - |\([^)]*\)", "", words.strip().lower()).replace("_", " ")
    words = re.sub(r"(\b(no|nr)\.? *)?#?\d+\w?$|\b(bw|clip ?art|icon)\b", "", words.strip())
    return re.sub(r"\s+", " ", words).strip(" -,.:#")


def with_own_titles(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Those whose title names one thing: in letters, not long, and not that of a whole collection."""
    drawings = list(drawings)
    borne = Counter(drawing.title for drawing in drawings)
    named = re.compile(rf"[a-z][a-z' -]{{2,{MAX_TITLE - 1}}}")
    return [one for one in drawings if named.fullmatch(one.title) and borne[one.title] <= MAX_SAME_TITLE]


def captions(drawing: Drawing) -> list[str]:
    """Several true things to say; the first is "<title>, clipart style"."""
    title, end = drawing.title, ", clipart style"
    said = set(title.split())
    words = [word for word in drawing.keywords if not set(word.split()) <= said][:MAX_KEYWORDS]
    found = [title + end, title, with_article(title) + end, with_article(title), f"clip art of {with_article(title)}"]
    if words:
        found += [f"{title}, {', '.join(words)}{end}", f"{', '.join(words)}, {title}"]
    return list(dict.fromkeys(found))


def draw(svg: str, size: int) -> bytes:
    """What is to be seen of the drawing as a square PNG on white, its proportions kept; nothing if there is none."""
    try:
        drawn = renderer().svg_to_bytes(
            svg_string=svg, background="#ffffff", skip_system_fonts=True, width=LARGE, height=LARGE, dpi=96
        )
        with Image.open(io.BytesIO(bytes(drawn))) as image:
            picture = image.convert("RGB")
    except (ValueError, OSError):
        return b""
    return cut_out(picture, size)


def cut_out(picture: Image.Image, size: int) -> bytes:
    """What is to be seen on an RGB picture's white, as a square PNG, its proportions kept; nothing if there is none.

    Many drawings are a small thing on a large sheet: the sheet is cut away.
    """
    box = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < picture.width // 64:  # nothing, or a line
        return b""
    thing = picture.crop(box)
    edge = round(max(thing.size) * 1.06)
    square = Image.new("RGB", (edge, edge), "white")
    square.paste(thing, ((edge - thing.width) // 2, (edge - thing.height) // 2))
    buffer = io.BytesIO()
    square.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _write(folder: Path, drawings: Sequence[Drawing], pictures: Iterable[bytes]) -> Counter[str]:
    """Pictures and metadata; one that stands there already by another name is left out."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    seen: set[bytes] = set()
    for drawing, picture in zip(drawings, pictures, strict=True):
        digest = hashlib.sha256(picture).digest()
        if not picture or digest in seen:
            continue
        seen.add(digest)
        split = "test" if drawing.is_held_out else "train"
        path = folder / split / f"{drawing.name}.png"
        make_folder(path.parent)
        path.write_bytes(picture)
        texts = captions(drawing)
        line = {
            "file_name": f"{drawing.name}.png",
            "text": texts[0],
            "captions": texts,
            "style": "clipart",
            "concept": drawing.title,
            "group": drawing.name.split("/")[0],
            "split": split,
            "licence": "public domain",
        }
        lines[split].append(json.dumps(line, ensure_ascii=False) + "\n")
    for split, texts in lines.items():
        (folder / split / "metadata.jsonl").write_text("".join(texts), encoding="utf-8")
    return Counter({split: len(texts) for split, texts in lines.items()})


def _card(report: ClipartReport, size: int) -> str:
    return f"""# Clip art, with captions

{report.n_train + report.n_test:,} pictures of {size}x{size} pixels on white: {report.n_train:,} to train on,
{report.n_test:,} held out, 5 % by a hash of the name. Drawn by `miniai data openclipart` from the Open Clip Art
Library (Debian's package `openclipart-svg`): those of its folders {", ".join(FOLDERS)} that
have a title of their own; {report.n_left_out:,} files were left out. Captions are made from titles and keywords,
which are their drawers' own and not all in English.

**Licence**: public domain, each of them, as its file says.
"""
