"""Known things in colours that no set draws them in ("a blue elephant"): a colour is learned as a word of its own.

Every point of a drawing keeps its place between black and white; the brightness that most of the drawing has becomes
the colour that was asked for. Outlines stay black, eyes stay white. It is an SVG filter around the icon, drawn like any
other.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from miniai.recipes.emoji_concepts import Concept, Icon
from miniai.recipes.emoji_drawing import render

GROUP = "colours"
SHARE = 0.4  # of a style's drawings that are drawn once more, in one colour each
COLOURS = {
    "red": (0.86, 0.16, 0.18),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.99, 0.80, 0.18),
    "green": (0.28, 0.65, 0.26),
    "blue": (0.16, 0.48, 0.90),
    "purple": (0.54, 0.24, 0.72),
    "pink": (0.96, 0.48, 0.66),
    "brown": (0.50, 0.33, 0.24),
    "grey": (0.55, 0.57, 0.60),
}
# Whose label names a colour already, or whose colour is what it means.
COLOUR_WORDS = frozenset(COLOURS) | {"black", "white", "gray", "golden", "gold", "silver", "rainbow"}
COLOURLESS_GROUPS = frozenset({"symbols", "flags"})
COLOURLESS_SUBGROUPS = frozenset({"heart", "emotion", "sky-weather", "place-geographic", "place-map", "award-medal"})
LUMA = np.array([0.2126, 0.7152, 0.0722])  # of linear light in sRGB's primaries, as feColorMatrix's saturate has it
BETWEEN = (0.12, 0.94)  # brightness of what is neither outline nor white
MIN_SHARE = 0.45  # of the drawing that must be so, or there is nothing to colour
N_TABLE = 21  # brightnesses, evenly spaced, that the filter's curve goes through


def coloured(
    concepts: Iterable[Concept], icons: Mapping[str, Icon], style: str
) -> tuple[list[Concept], dict[str, Icon]]:
    """Some of the drawings once more, each in one other colour, as concepts and as icons by hexcode.

    concepts: those that may be used; icons: hexcode -> icon, of one style. Which drawing gets which colour depends on
    nothing but its code point and the style.
    """
    made, drawn = [], {}
    for concept in concepts:
        colour = colour_of(concept, style)
        if colour is None or concept.hexcode not in icons:
            continue
        icon = icons[concept.hexcode]
        brightness = main_brightness(icon)
        if brightness is not None:
            new = coloured_concept(concept, colour)
            made.append(new)
            drawn[new.hexcode] = in_colour(icon, colour, brightness)
    return made, drawn


def colour_of(concept: Concept, style: str) -> str | None:
    """The colour that a style's drawing of the concept is drawn in once more, or None: most are not."""
    words = set(concept.label.replace("-", " ").split())
    if concept.group in COLOURLESS_GROUPS or concept.subgroup in COLOURLESS_SUBGROUPS or words & COLOUR_WORDS:
        return None
    digest = hashlib.sha256(f"{concept.hexcode}/{style}/colour".encode()).digest()
    if int.from_bytes(digest[:8], "big") >= SHARE * 2**64:
        return None
    return list(COLOURS)[int.from_bytes(digest[8:16], "big") % len(COLOURS)]


def coloured_concept(concept: Concept, colour: str) -> Concept:
    """What the new drawing is called: "blue elephant"; the tags keep what the thing was called before."""
    return Concept(
        hexcode=f"{concept.hexcode}-IN-{colour.upper()}",
        label=f"{colour} {concept.label}",
        tags=(concept.label,),
        group=GROUP,
        subgroup=colour,
    )


def main_brightness(icon: Icon, size: int = 64) -> float | None:
    """The median brightness, 0 to 1, of what is neither outline nor white, or None if that is too little to colour."""
    with Image.open(io.BytesIO(render(icon, size))) as image:
        pixels = np.asarray(image) / 255
    luma = (pixels @ LUMA)[pixels.min(axis=2) < 0.98]
    between = luma[(luma > BETWEEN[0]) & (luma < BETWEEN[1])]
    return float(np.median(between)) if len(between) >= max(1, MIN_SHARE * len(luma)) else None


def in_colour(icon: Icon, colour: str, brightness: float) -> Icon:
    """The icon with `brightness` (0 to 1, exclusive) become the colour, black still black, and white still white."""
    tables = []
    for channel, level in zip("RGB", COLOURS[colour], strict=True):
        levels = np.interp(np.linspace(0, 1, N_TABLE), (0, brightness, 1), (0, level, 1))
        tables.append(f'<feFunc{channel} type="table" tableValues="{" ".join(f"{x:.4f}" for x in levels)}"/>')
    area = f'x="{icon.left}" y="{icon.top}" width="{icon.width}" height="{icon.height}"'
    body = (
        f'<filter id="miniai-colour" filterUnits="userSpaceOnUse" {area} color-interpolation-filters="sRGB">'
        f'<feColorMatrix type="saturate" values="0"/><feComponentTransfer>{"".join(tables)}</feComponentTransfer>'
        f'</filter><g filter="url(#miniai-colour)">{icon.body}</g>'
    )
    return Icon(f"{icon.name}-in-{colour}", body, icon.width, icon.height, icon.left, icon.top, icon.flip)
