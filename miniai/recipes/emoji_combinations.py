"""New emoji from two: a face that wears a thing, both taken from the same style ("a panda with a top hat").

No set draws a cat with sunglasses, so a model that sees only what is drawn learns each word with the shape it came in.
These show that a thing and its wearer are two things. They are put together as SVG and drawn like any other icon.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from miniai.recipes.emoji_concepts import Concept, Icon
from miniai.recipes.emoji_drawing import render

GROUP = "combinations"
EDGE = 100.0  # of the view box that a combination is drawn in
WHITE = 250  # a pixel with any colour below this belongs to the drawing


@dataclass(frozen=True)
class Wearer:
    """A face looking at us. Where its parts are, as shares of the drawing's own box, from its left and its top:
    `eyes` the height of the eyes, `width` of the head at the eyes, `crown` the height at which a hat begins."""

    words: str
    eyes: float
    width: float = 0.84
    crown: float = 0.2


@dataclass(frozen=True)
class Wear:
    """A thing to wear: over the eyes, or on the head; `width` is its own, as a share of the head's."""

    words: str
    on_eyes: bool
    width: float


WEARERS = {
    "1F63A": Wearer("smiling cat", 0.52),
    "1F431": Wearer("cat", 0.52),
    "1F63F": Wearer("crying cat", 0.52),
    "1F436": Wearer("dog", 0.44, crown=0.14),
    "1F98A": Wearer("fox", 0.54, 0.72, 0.3),
    "1F43B": Wearer("bear", 0.46),
    "1F43C": Wearer("panda", 0.5),
    "1F981": Wearer("lion", 0.45, 0.7, 0.16),
    "1F438": Wearer("frog", 0.3, 0.9, 0.1),
    "1F42D": Wearer("mouse", 0.55, 0.62, 0.3),
    "1F430": Wearer("rabbit", 0.62, 0.9, 0.46),
    "1F42E": Wearer("cow", 0.42, 0.7, 0.16),
    "1F437": Wearer("pig", 0.42, 0.84, 0.16),
    "1F428": Wearer("koala", 0.45, 0.62),
    "1F435": Wearer("monkey", 0.42, 0.66, 0.12),
    "1F42F": Wearer("tiger", 0.47, crown=0.16),
    "1F439": Wearer("hamster", 0.45),
    "1F43A": Wearer("wolf", 0.5, 0.72, 0.3),
    "1F47D": Wearer("alien", 0.55, 0.84, 0.1),
    "1F480": Wearer("skull", 0.47, 0.84, 0.1),
    "1F916": Wearer("robot", 0.45, 0.7, 0.22),
    "1F600": Wearer("grinning face", 0.38, 0.84, 0.1),
    "1F642": Wearer("smiling face", 0.42, 0.84, 0.1),
    "1F622": Wearer("crying face", 0.42, 0.84, 0.1),
    "1F620": Wearer("angry face", 0.48, 0.84, 0.1),
    "1F62E": Wearer("surprised face", 0.38, 0.84, 0.1),
}
THINGS = {
    "1F576": Wear("sunglasses", True, 0.95),
    "1F453": Wear("glasses", True, 0.95),
    "1F3A9": Wear("a top hat", False, 0.85),
    "1F451": Wear("a crown", False, 0.75),
    "1F393": Wear("a graduation cap", False, 1.0),
    "1F380": Wear("a bow", False, 0.65),
    "26D1": Wear("a helmet", False, 0.8),
}


def combinations(concepts: Iterable[Concept], icons: Mapping[str, Icon]) -> tuple[list[Concept], dict[str, Icon]]:
    """Every pair of `WEARERS` and `THINGS` that one style draws, as concepts and as icons by hexcode.

    concepts: those that may be used; a pair needs both
    icons: hexcode -> icon, of one style
    """
    known = {concept.hexcode: concept for concept in concepts}
    things = {code: (icon := icons[code], drawn_box(icon)) for code in THINGS if code in icons and code in known}
    made, drawn = [], {}
    for code, wearer in WEARERS.items():
        if code not in icons or code not in known:
            continue
        box = drawn_box(icons[code])
        for thing_code, (thing, thing_box) in things.items():
            combined = combined_concept(known[code], known[thing_code], wearer, THINGS[thing_code])
            made.append(combined)
            drawn[combined.hexcode] = put_on(icons[code], box, wearer, thing, thing_box, THINGS[thing_code])
    return made, drawn


def combined_concept(wearer: Concept, thing: Concept, how: Wearer, wear: Wear) -> Concept:
    """What the pair is called: "panda with a top hat"."""
    return Concept(
        hexcode=f"{wearer.hexcode}-WITH-{thing.hexcode}",
        label=f"{how.words} with {wear.words}",
        tags=(),
        group=GROUP,
        subgroup=thing.label,
    )


Box = tuple[float, float, float, float]  # left, top, width, height


def drawn_box(icon: Icon, size: int = 64) -> Box:
    """Where the drawing is within the icon's view box, in the icon's units; the whole view box if nothing is drawn."""
    with Image.open(io.BytesIO(render(icon, size))) as image:
        darkest = np.asarray(image).min(axis=2)
    bounds = Image.fromarray(darkest < WHITE).getbbox()
    if bounds is None:
        return icon.left, icon.top, icon.width, icon.height
    edge = max(icon.width, icon.height)  # of the square that the view box was centred in
    left, top, right, bottom = (bound * edge / size for bound in bounds)
    return (
        icon.left - (edge - icon.width) / 2 + left,
        icon.top - (edge - icon.height) / 2 + top,
        right - left,
        bottom - top,
    )


def put_on(face: Icon, face_box: Box, wearer: Wearer, thing: Icon, thing_box: Box, wear: Wear) -> Icon:
    """`face` wearing `thing`; under a hat the face is smaller and lower, so that both fit."""
    share = 0.96 if wear.on_eyes else 0.74
    scale = share * EDGE / max(face_box[2:])
    width, height = face_box[2] * scale, face_box[3] * scale
    left, top = (EDGE - width) / 2, (EDGE - height) / 2 if wear.on_eyes else EDGE * 0.98 - height
    worn_width = wear.width * wearer.width * width
    worn_height = worn_width * thing_box[3] / thing_box[2]
    middle = top + wearer.eyes * height
    worn_top = middle - worn_height / 2 if wear.on_eyes else max(1.0, top + wearer.crown * height - 0.85 * worn_height)
    body = _placed(face, face_box, (left, top, width, height))
    body += _placed(thing, thing_box, ((EDGE - worn_width) / 2, worn_top, worn_width, worn_height))
    return Icon(f"{face.name}-with-{thing.name}", body, EDGE, EDGE)


def _placed(icon: Icon, box: Box, target: Box) -> str:
    """The icon's body, moved and scaled so that its drawing fills `target`."""
    scale = target[2] / box[2]
    move = f"translate({target[0]:.3f} {target[1]:.3f}) scale({scale:.5f}) translate({-box[0]:.3f} {-box[1]:.3f})"
    flip = f' transform="translate({2 * icon.left + icon.width} 0) scale(-1 1)"' if icon.flip else ""
    return f'<g transform="{move}"><g{flip}>{icon.body}</g></g>'
