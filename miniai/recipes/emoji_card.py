"""The data card of an emoji set: what is in it, from where, under which licences."""

from collections.abc import Mapping, Sequence

from miniai.recipes.emoji_sources import SEPARATE_STYLES, Source

LICENCE_TEXTS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "MIT": "https://opensource.org/license/mit",
}


def data_card(
    used: Mapping[str, Source],
    emojibase: Source,
    counts: Mapping[str, Mapping[str, int]],
    groups: Sequence[str] | None,
    size: int,
    combined: bool = False,
    recoloured: bool = False,
    skin_tones: bool = False,
) -> str:
    """The card as Markdown. `counts[style]` has n_train, n_test, n_unmatched and n_left_out."""
    n_train = sum(c["n_train"] for c in counts.values())
    n_test = sum(c["n_test"] for c in counts.values())
    separate = any(style in SEPARATE_STYLES for style in used)
    rows = "\n".join(_row(style, source, counts[style]) for style, source in used.items())
    licences = "\n".join(f"- {name}: {LICENCE_TEXTS.get(name, '')}" for name in sorted({*_licences(used, emojibase)}))
    never = (
        "\n**This folder is never trained on** (share-alike licence): all of it is in `test/`, for comparison only.\n"
    )
    tones = "with" if skin_tones else "without"
    others = "" if skin_tones else "skin tones, "
    in_all_tones = " (a hand in all its skin tones or in none)" if skin_tones else ""
    together = (
        "\n**Combinations** (group `combinations`) are faces that wear a thing, both drawn by the same style and put\n"
        "together here; nothing held out is in those that train, and one pair in twenty is held out in every style.\n"
    )
    painted_over = (
        "\n**Colours** (group `colours`) are single things in a colour chosen for them here; nothing held out is\n"
        "in those that train, and one thing and colour in twenty is held out in every style.\n"
    )
    return f"""# Emoji, with captions
{never if separate else ""}
{n_train + n_test:,} pictures of {size}x{size} pixels on white, {tones} skin-tone variants: {n_train:,} to train on,
{n_test:,} held out. Groups: {", ".join(groups) if groups is not None else "all"}. Built by `miniai data emoji`.

`train/metadata.jsonl` and `test/metadata.jsonl` have one line a picture: `file_name`, `text` (the main caption),
`captions` (all of them), `style`, `concept` (code points), `label`, `group`, `subgroup`, `split`, `licence`. Hugging
Face `datasets` reads the folder with `load_dataset("imagefolder", data_dir=...)`.

| style | drawn by | package | licence | train | held out | left out | other icons ({others}letters, …) |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: |
{rows}

**Held out**: 5 % of (concept, style) pairs, chosen by a hash of the pair alone{in_all_tones}, are in `test/` and
belong in no training. Each of them has the same concept in another style in `train/`. A chosen pair whose concept no
other style here teaches, or whose very pixels also stand in `train/` under another name, is left out altogether; so
is a blank picture.

**Captions** are made from the labels and tags of {emojibase.name} {emojibase.version} ({emojibase.licence}, by
{emojibase.author}), and from names in everyday use that are written down in the program.
{together if combined else ""}{painted_over if recoloured else ""}
**Licences**: the pictures stay under those of their makers, named in the table; a picture's own is in its line.
They were changed: rendered as pixels, and named anew.

{licences}
"""


def _row(style: str, source: Source, count: Mapping[str, int]) -> str:
    numbers = " | ".join(f"{count[key]:,}" for key in ("n_train", "n_test", "n_left_out", "n_unmatched"))
    return f"| {style} | {source.author} | `{source.name}` {source.version} | {source.licence} | {numbers} |"


def _licences(used: Mapping[str, Source], emojibase: Source) -> list[str]:
    return [source.licence for source in (*used.values(), emojibase)]
