"""What each emoji is: the concepts of emojibase, and which icon of a package draws which concept.

The icon packages name their icons by slugs ("smiling-face-with-sunglasses") that differ from set to set; where a
package says which code points an icon stands for (`chars.json`), that is taken, otherwise the slug is looked up among
the concept's names: its CLDR label, its Unicode name, and the short codes in use.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

SHORTCODES = ("cldr", "emojibase", "joypixels", "iamcal", "github", "emojibase-legacy")
EMOJIBASE_FILES = (
    "en/data.json",
    "meta/groups.json",
    "meta/unicode-names.json",
    *(f"en/shortcodes/{name}.json" for name in SHORTCODES),
)
NO_PICTURE = "component"  # skin-tone swatches and hair pieces: parts of emoji, not emoji

# Groups and subgroups that `groups=("core",)` stands for, and what it leaves out (subgroups or labels, as patterns).
CORE_GROUPS = (
    "smileys-emotion", "animals-nature", "food-drink", "travel-places", "activities", "objects", "symbols",
)  # fmt: skip
CORE_EXCLUDED = (
    "arrow", "av-symbol", "keycap", "alphanum", "gender", "zodiac", "transport-sign", "punctuation", "math",
    "* o'clock", "*-thirty", "* button", "radio button", "*-small square", "*-medium square", "* medium square",
    "* small square", "black large square", "white large square", "* small * diamond", "small * diamond",
    "copyright", "registered", "trade mark", "part alternation mark", "curly loop", "double curly loop",
    "eight-spoked asterisk", "eight-pointed star", "sparkle", "japanese symbol for beginner", "name badge",
)  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """One emoji without its skin-tone variants. `hexcode` is without FE0F, `label` is lower-case words."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    names: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Icon:
    """One drawing: the SVG body, its view box, and whether an alias mirrors it."""

    name: str
    body: str
    width: float
    height: float
    left: float = 0
    top: float = 0
    flip: bool = False


def plain_hexcode(hexcode: str) -> str:
    """The code points in upper-case hexadecimal, without the variation selector FE0F."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def plain_label(label: str) -> str:
    """The label as lower-case words: "flag: Côte d’Ivoire" becomes "flag of côte d'ivoire"."""
    text = label.lower().replace("’", "'").replace("“", "").replace("”", "").replace("&", "and")
    text = re.sub(r"^flag: ", "flag of ", text)
    text = re.sub(r"^keycap: ", "keycap ", text)
    text = text.replace("(", "").replace(")", "").replace(":", ",")
    return re.sub(r"\s+", " ", text).strip(" ,")


def slug(name: str) -> str:
    """The name as an icon set would spell it: ASCII, lower-case, hyphens."""
    text = name.lower().replace("’", "").replace("'", "").replace("&", " and ")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", text).strip("-")


def read_concepts(emojibase: Mapping[str, Any]) -> list[Concept]:
    """The concepts in emojibase's order, from its parsed files (`EMOJIBASE_FILES`)."""
    names = emojibase["meta/groups.json"]
    unicode_names = {plain_hexcode(code): name for code, name in emojibase["meta/unicode-names.json"].items()}
    shortcodes: dict[str, list[str]] = {}
    for file in SHORTCODES:
        for code, value in emojibase.get(f"en/shortcodes/{file}.json", {}).items():
            shortcodes.setdefault(plain_hexcode(code), []).extend([value] if isinstance(value, str) else value)
    concepts = []
    for entry in emojibase["en/data.json"]:
        group = names["groups"].get(str(entry.get("group")), NO_PICTURE)
        if group == NO_PICTURE:
            continue
        code = plain_hexcode(entry["hexcode"])
        concepts.append(
            Concept(
                hexcode=code,
                label=plain_label(entry["label"]),
                tags=tuple(dict.fromkeys(plain_label(tag) for tag in entry.get("tags", []))),
                group=group,
                subgroup=names["subgroups"][str(entry["subgroup"])],
                names=(entry["label"], unicode_names.get(code, ""), *shortcodes.get(code, ())),
            )
        )
    return concepts


def choose(concepts: Iterable[Concept], groups: Iterable[str] | None) -> list[Concept]:
    """The concepts in the named groups or subgroups (patterns like "food-*" too); None is all of them.

    "core" stands for the things anyone recognises: no people, flags, letters, clock faces, arrows or buttons.
    """
    if groups is None:
        return list(concepts)
    wanted = set(groups)
    return [c for c in concepts if _named(c, wanted - {"core"}) or ("core" in wanted and _is_core(c))]


def _named(concept: Concept, names: Iterable[str]) -> bool:
    return any(fnmatchcase(concept.group, name) or fnmatchcase(concept.subgroup, name) for name in names)


def _is_core(concept: Concept) -> bool:
    excluded = any(fnmatchcase(concept.subgroup, p) or fnmatchcase(concept.label, p) for p in CORE_EXCLUDED)
    return concept.group in CORE_GROUPS and not excluded


def known_groups(concepts: Iterable[Concept]) -> list[str]:
    """Every name that `choose` understands, for a message."""
    concepts = list(concepts)
    return ["core", *dict.fromkeys(c.group for c in concepts), *dict.fromkeys(c.subgroup for c in concepts)]


def match_icons(concepts: Iterable[Concept], package: Mapping[str, Any]) -> tuple[dict[str, Icon], list[str]]:
    """(hexcode -> icon, names of visible icons that draw no concept) for a package's `icons.json` and `chars.json`.

    Code points decide first, then an exact name, then the name with its hyphens squeezed out ("americanfootball").
    A name that several concepts claim at the same rank decides nothing.
    """
    concepts = list(concepts)
    icons = package["icons.json"]
    known = {concept.hexcode for concept in concepts}
    matched: dict[str, str] = {}
    for code, name in package.get("chars.json", {}).items():
        if plain_hexcode(code) in known:
            matched.setdefault(plain_hexcode(code), name)
    by_slug = _slug_index(concepts)
    squeezed: dict[str, str] = {}
    for key, code in by_slug.items():
        squeezed.setdefault(key.replace("-", ""), code)
    aliases = icons.get("aliases", {})
    visible = [name for name, icon in icons["icons"].items() if not icon.get("hidden")]
    taken = set(matched.values())
    for names in (visible, list(aliases)):  # an icon's own name counts for more than its aliases
        for index in (by_slug, squeezed):
            for name in names:
                key = re.sub("^flag-for-(flag-)?", "flag-", name)
                found = index.get(key if index is by_slug else key.replace("-", ""))
                if found is not None and name not in taken and found not in matched:
                    matched[found] = name
                    taken.add(name)
    drawn = taken | {aliases[name]["parent"] for name in taken if name in aliases}
    unmatched = [name for name in visible if name not in drawn]
    return {code: _icon(icons, name) for code, name in matched.items()}, unmatched


def _slug_index(concepts: Iterable[Concept]) -> dict[str, str]:
    ranks: list[dict[str, set[str]]] = [{}, {}, {}]  # label, Unicode name, short codes: the earlier wins
    for concept in concepts:
        for i, name in enumerate(concept.names):
            ranks[min(i, 2)].setdefault(slug(name), set()).add(concept.hexcode)
    index: dict[str, str] = {}
    for rank in ranks:
        for key, codes in rank.items():
            if len(codes) == 1 and key:
                index.setdefault(key, next(iter(codes)))
    return index


def _icon(icons: Mapping[str, Any], name: str) -> Icon:
    """The drawing called `name`, through at most a few aliases, with the set's default size where it has none."""
    flip = False
    entry: Mapping[str, Any] = {}
    for _ in range(8):
        if name in icons["icons"]:
            entry = icons["icons"][name] | entry
            break
        alias = icons["aliases"][name]
        flip ^= bool(alias.get("hFlip"))
        entry = {k: v for k, v in alias.items() if k not in ("parent", "hFlip")} | entry
        name = alias["parent"]
    width = entry.get("width", icons.get("width", 16))
    height = entry.get("height", icons.get("height", 16))
    return Icon(name, entry["body"], width, height, entry.get("left", 0), entry.get("top", 0), flip)
