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

from miniai.recipes.emoji_names import DRAWS

SHORTCODES = ("cldr", "emojibase", "joypixels", "iamcal", "github", "emojibase-legacy")
EMOJIBASE_FILES = (
    "en/data.json",
    "meta/groups.json",
    "meta/unicode-names.json",
    *(f"en/shortcodes/{name}.json" for name in SHORTCODES),
)
NO_PICTURE = "component"  # skin-tone swatches and hair pieces: parts of emoji, not emoji
SKIN_TONES = tuple(f"{code:X}" for code in range(0x1F3FB, 0x1F400))  # behind the code point whose skin they colour

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
    """One emoji, or one with a skin tone. `hexcode` is without FE0F, `label` is lower-case words."""

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
    left: float = 0.0
    top: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class Matches:
    """hexcode -> the icon that draws it, and the names of visible icons that draw no concept."""

    icons: dict[str, Icon]
    unmatched: list[str]


def plain_hexcode(hexcode: str) -> str:
    """The code points in upper-case hexadecimal, without the variation selector FE0F."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def without_tone(hexcode: str) -> str:
    """The code points of the emoji that this one is a skin-tone variant of; its own if it is none."""
    return "-".join(part for part in hexcode.split("-") if part not in SKIN_TONES)


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


def read_concepts(emojibase: Mapping[str, Any], skin_tones: bool = False) -> list[Concept]:
    """The concepts in emojibase's order, from its parsed files (`EMOJIBASE_FILES`).

    `skin_tones` adds the variants in one tone each, with the tags of what they are variants of: "waving hand, dark skin
    tone". Couples in two tones are left out.
    """
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
        toned = [one for one in entry.get("skins", []) if isinstance(one.get("tone"), int)] if skin_tones else []
        for one in (entry, *toned):
            code = plain_hexcode(one["hexcode"])
            concepts.append(
                Concept(
                    hexcode=code,
                    label=plain_label(one["label"]),
                    tags=tuple(dict.fromkeys(plain_label(tag) for tag in entry.get("tags", []))),
                    group=group,
                    subgroup=names["subgroups"][str(entry["subgroup"])],
                    names=(one["label"], unicode_names.get(code, ""), *shortcodes.get(code, ())),
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


def match_icons(concepts: Iterable[Concept], package: Mapping[str, Any], style: str = "") -> Matches:
    """Which icon of a package draws which concept, from its parsed `icons.json` and, if it has one, `chars.json`.

    Code points decide first, then the table of odd names (`emoji_names.DRAWS[style]`), then names: labels before
    Unicode names before short codes, each exact before squeezed ("americanfootball"). A name that several concepts
    claim at the same rank decides nothing; an alias counts only if its icon draws nothing else.
    """
    concepts = list(concepts)
    icons, draws = package["icons.json"], DRAWS.get(style, {})
    aliases = icons.get("aliases", {})
    visible = [name for name, icon in icons["icons"].items() if not icon.get("hidden")]
    known = {concept.hexcode for concept in concepts}
    matched: dict[str, str] = {}
    for code, name in package.get("chars.json", {}).items():
        if plain_hexcode(code) in known:
            matched.setdefault(plain_hexcode(code), name)
    ranks = _name_ranks(concepts)
    for name, label in draws.items():
        found = ranks[0].get(label)
        if found is not None and name in icons["icons"]:
            matched.setdefault(found, name)
    drawn = set(matched.values()) | {aliases[name]["parent"] for name in matched.values() if name in aliases}
    for names in (visible, list(aliases)):  # an icon's own name counts for more than its aliases
        for index in ranks:
            for name in names:
                alias = aliases.get(name, {})
                same = {name} if alias.get("hFlip") else {name, alias.get("parent", name)}  # a mirror image is another
                found = next((index[key] for key in _spellings(name) if key in index), None)
                if found is not None and found not in matched and not same & drawn and name not in draws:
                    matched[found] = name
                    drawn |= same
    unmatched = [name for name in visible if name not in drawn]
    return Matches({code: _icon(icons, name) for code, name in matched.items()}, unmatched)


def _spellings(name: str) -> list[str]:
    """The names to look an icon up by: its own, and for "flag-for-france" also "flag-france" and "france"."""
    bare = re.sub("^flag-for-(flag-)?", "", name)
    names = [name] if bare == name else [f"flag-{bare}", bare]
    return names + [squeezed(n) for n in names]


def squeezed(name: str) -> str:
    """The slug without its hyphens, marked so that it never meets a slug of one word by chance."""
    return "=" + name.replace("-", "")


def _name_ranks(concepts: Iterable[Concept]) -> list[dict[str, str]]:
    """One table of slug (or squeezed slug) -> hexcode for labels, one for Unicode names, one for short codes."""
    claims: list[dict[str, set[str]]] = [{}, {}, {}]
    for concept in concepts:
        for i, name in enumerate(concept.names):
            for key in {slug(name), squeezed(slug(name))} - {"", "="}:
                claims[min(i, 2)].setdefault(key, set()).add(concept.hexcode)
    return [{key: next(iter(codes)) for key, codes in rank.items() if len(codes) == 1} for rank in claims]


def _icon(icons: Mapping[str, Any], name: str) -> Icon:
    """The drawing called `name`, through at most a few aliases, with the set's default size where it has none."""
    flip = False
    entry: Mapping[str, Any] = {}
    for _ in range(8):
        if name in icons["icons"]:
            entry = {**icons["icons"][name], **entry}
            break
        alias = icons["aliases"][name]
        flip ^= bool(alias.get("hFlip"))
        entry = {**{k: v for k, v in alias.items() if k not in ("parent", "hFlip")}, **entry}
        name = alias["parent"]
    width, height = (float(entry.get(edge, icons.get(edge, 16))) for edge in ("width", "height"))
    left, top = (float(entry.get(edge, 0)) for edge in ("left", "top"))
    return Icon(name, entry["body"], width, height, left, top, flip)
