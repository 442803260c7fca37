"""Text to emoji: an ImageFolder of captioned pictures, rendered from openly licensed emoji sets.

    from miniai.recipes.emoji import build_emoji
    build_emoji(Path("data/emoji"))

The folder holds `train/STYLE/*.png` and `test/STYLE/*.png`, a `metadata.jsonl` in each of the two (one line a picture),
a data card `README.md`, and `emoji.json`, the record of what it was built from. Nothing in it depends on the machine
or the hour.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from miniai.base.errors import UserError
from miniai.base.files import write_json
from miniai.recipes.emoji_card import data_card
from miniai.recipes.emoji_colours import GROUP as COLOURS
from miniai.recipes.emoji_colours import coloured
from miniai.recipes.emoji_combinations import GROUP as COMBINATIONS
from miniai.recipes.emoji_combinations import combinations
from miniai.recipes.emoji_concepts import (
    EMOJIBASE_FILES,
    Concept,
    Icon,
    Matches,
    choose,
    known_groups,
    match_icons,
    read_concepts,
    without_tone,
)
from miniai.recipes.emoji_folder import Picture, check_folder, falls_out, new_folder, render_all, write_metadata
from miniai.recipes.emoji_sources import (
    EMOJIBASE,
    FURTHER_STYLES,
    SEPARATE_STYLES,
    STYLES,
    Source,
    default_cache,
    fetch,
    read_members,
)

RECORD = "emoji.json"  # its presence says that a folder was built here and may be replaced
MAX_WEIGHT = 20  # of captions in everyday words


@dataclass(frozen=True)
class StyleReport:
    """What became of one style: pictures made, icons of the package that match no concept, pictures left out."""

    n_train: int
    n_test: int
    n_unmatched: int
    n_left_out: int


@dataclass(frozen=True)
class EmojiReport:
    """Where the set is and how many pictures it holds, per style."""

    out: Path
    styles: Mapping[str, StyleReport]

    @property
    def n_train(self) -> int:
        return sum(style.n_train for style in self.styles.values())

    @property
    def n_test(self) -> int:
        return sum(style.n_test for style in self.styles.values())


def build_emoji(
    out: Path,
    styles: Sequence[str] = tuple(STYLES),
    groups: Sequence[str] | None = None,
    size: int = 64,
    cache: Path | None = None,
    n_jobs: int = 2,
    *,
    combined: bool = False,
    recoloured: bool = False,
    skin_tones: bool = False,
    everyday_weight: int = 1,
    sources: Mapping[str, Source] | None = None,
    emojibase: Source = EMOJIBASE,
    progress: bool = True,
) -> EmojiReport:
    """Build the captioned emoji set in the folder `out`, whole or not at all.

    out: a new or empty folder, or one built here before, which is then replaced
    styles: any of noto, noto-v1, twemoji, fluent-emoji, fluent-emoji-flat, emojione, fxemoji,
        fluent-emoji-high-contrast; or openmoji, alone
    groups: emojibase groups or subgroups (patterns such as "food-*" too), or "core" for things without people,
        flags, letters, clock faces and buttons; None is everything
    size: edge of the square pictures, in pixels, 16 to 1024
    cache: folder of the downloaded tarballs; None is the user's cache folder
    n_jobs: rendering threads
    combined: draw faces that wear things as well: see `miniai.recipes.emoji_combinations`
    recoloured: draw some things in another colour as well: see `miniai.recipes.emoji_colours`
    skin_tones: draw hands and people in the five skin tones as well, beside the yellow ones
    everyday_weight: how many times captions in everyday words stand in a picture's list, 1 to 20: training shows them
        as much more often
    sources, emojibase: the packages to read instead of the pinned ones

    Raises UserError: unknown style or group, openmoji mixed with other styles, a folder that is someone else's,
    npm or resvg-py missing, no connection, a tarball that is not the pinned one.
    """
    packages = {**STYLES, **FURTHER_STYLES, **SEPARATE_STYLES} if sources is None else dict(sources)
    _check_request(out, styles, size, n_jobs, packages)
    if not 1 <= everyday_weight <= MAX_WEIGHT:
        raise UserError(f"a weight of {everyday_weight} for everyday words is out of range; give 1 to {MAX_WEIGHT}")
    cache = cache or default_cache()
    concepts, matches = _read_sources(styles, packages, emojibase, cache, skin_tones)
    chosen = choose(concepts, groups)
    _check_groups(groups, concepts)
    icons = {style: matches[style].icons for style in styles}
    known = [concept for concept in chosen if without_tone(concept.hexcode) == concept.hexcode]
    if combined:
        chosen, icons = _with_more(chosen, icons, lambda free, style: combinations(known, free))
    if recoloured:
        chosen, icons = _with_more(chosen, icons, lambda free, style: coloured(known, free, style))
    pictures = _split(chosen, icons)
    if not pictures:
        raise UserError(f"no pictures in groups {', '.join(groups or ())} and styles {', '.join(styles)}: name others")
    with new_folder(out) as folder:
        kept = render_all(pictures, folder, size, n_jobs, progress)
        reports = {s: _style_report(s, pictures, kept, len(matches[s].unmatched)) for s in styles}
        write_metadata(folder, kept, packages, everyday_weight)
        used = {style: packages[style] for style in styles}
        counts = {style: asdict(report) for style, report in reports.items()}
        card = data_card(used, emojibase, counts, groups, size, combined, recoloured, skin_tones)
        (folder / "README.md").write_text(card, encoding="utf-8")
        made_of: dict[str, object] = {"size": size, "groups": list(groups) if groups is not None else None}
        made_of |= {"combinations": combined, "colours": recoloured, "skin_tones": skin_tones}
        made_of |= {"everyday_weight": everyday_weight}
        _write_record(folder, made_of, used, emojibase, reports)
    return EmojiReport(out, reports)


def _check_request(out: Path, styles: Sequence[str], size: int, n_jobs: int, packages: Mapping[str, Source]) -> None:
    if not styles:
        raise UserError(f"no style named; choose from {', '.join(packages)}")
    for style in styles:
        if style not in packages:
            raise UserError(f"unknown style {style!r}; choose from {', '.join(packages)}")
    if len(set(styles)) < len(styles):
        raise UserError(f"a style is named twice in {', '.join(styles)}")
    separate = [style for style in styles if style in SEPARATE_STYLES]
    if separate and len(styles) > 1:
        raise UserError(
            f"{separate[0]} is CC BY-SA and is never mixed with other styles: build it alone, in a folder of its own"
        )
    check_folder(out, RECORD, size, n_jobs)


def _check_groups(groups: Sequence[str] | None, concepts: Sequence[Concept]) -> None:
    for group in groups or ():
        if not choose(concepts, [group]):
            raise UserError(f"unknown group {group!r}; choose from {', '.join(known_groups(concepts))}")


def _read_sources(
    styles: Sequence[str], packages: Mapping[str, Source], emojibase: Source, cache: Path, skin_tones: bool
) -> tuple[list[Concept], dict[str, Matches]]:
    """All concepts, and for each style which icon draws which of them."""
    base = fetch(emojibase, cache)
    data = read_members(base, EMOJIBASE_FILES)
    for file in EMOJIBASE_FILES[:3]:
        if file not in data:
            raise UserError(f"{base}: {file} is missing in the package")
    concepts = read_concepts(data, skin_tones)
    matches = {}
    for style in styles:
        tarball = fetch(packages[style], cache)
        package = read_members(tarball, ("icons.json", "chars.json"))
        if "icons.json" not in package:
            raise UserError(f"{tarball}: icons.json is missing in the package")
        matches[style] = match_icons(concepts, package, style)
    return concepts, matches


def _with_more(
    concepts: Sequence[Concept],
    icons: Mapping[str, Mapping[str, Icon]],
    make: Callable[[Mapping[str, Icon], str], tuple[list[Concept], dict[str, Icon]]],
) -> tuple[list[Concept], dict[str, dict[str, Icon]]]:
    """The concepts and each style's icons, with those that `make` makes of a style's drawings, held-out ones aside."""
    new: dict[str, Concept] = {}
    all_icons: dict[str, dict[str, Icon]] = {}
    for style, of_style in icons.items():
        made, drawn = make({code: icon for code, icon in of_style.items() if not is_held_out(code, style)}, style)
        new |= {concept.hexcode: concept for concept in made}
        all_icons[style] = {**of_style, **drawn}
    return [*concepts, *new.values()], all_icons


def is_held_out(hexcode: str, style: str) -> bool:
    """Whether this drawing is kept out of all training: 5 % of (concept, style) pairs, the same in every build; a hand
    in all its skin tones or in none."""
    return falls_out(f"{without_tone(hexcode)}/{style}")


def _split(concepts: Iterable[Concept], icons: Mapping[str, Mapping[str, Icon]]) -> list[Picture]:
    """Training pictures and held-out ones. A held-out pair never trains, whatever else is built.

    It is a fair test only if another style teaches the concept; where none here does, the picture is left out.
    A style that is never trained on is test through and through, and so are 5 % of the combinations and of the coloured
    things, in every style: their words are known, the pair is new.
    """
    pictures = []
    for concept in concepts:
        styles = [style for style in icons if concept.hexcode in icons[style]]
        held_out = {style for style in styles if is_held_out(concept.hexcode, style)}
        taught = len(held_out) < len(styles)
        for style in styles:
            split = "train" if style not in held_out else "test" if taught else "left out"
            unseen = concept.group in (COMBINATIONS, COLOURS) and is_held_out(concept.hexcode, "every style")
            split = "test" if style in SEPARATE_STYLES or unseen else split
            pictures.append(Picture(concept, style, icons[style][concept.hexcode], split))
    return pictures


def _style_report(style: str, pictures: Iterable[Picture], kept: Iterable[Picture], n_unmatched: int) -> StyleReport:
    n_drawn = sum(picture.style == style for picture in pictures)
    splits = Counter(picture.split for picture in kept if picture.style == style)
    n_left_out = n_drawn - splits["train"] - splits["test"]
    return StyleReport(splits["train"], splits["test"], n_unmatched, n_left_out)


def _write_record(
    folder: Path,
    made_of: Mapping[str, object],
    used: Mapping[str, Source],
    emojibase: Source,
    reports: Mapping[str, StyleReport],
) -> None:
    sources = {style: asdict(source) for style, source in used.items()}
    counts = {style: asdict(report) for style, report in reports.items()}
    what = {"built_by": "miniai data emoji", **made_of}
    write_json(folder / RECORD, what | {"sources": sources, "captions": asdict(emojibase), "counts": counts})
