"""Several captions for one emoji: what a small text-to-image model learns its words from.

Every caption is true of the picture, lower-case, and chosen by a hash of concept and style, so that a set built again
tomorrow, or with other styles, says the same.
"""

import hashlib
import re
from collections.abc import Sequence

from miniai.recipes.emoji_concepts import Concept

MAX_CAPTIONS = 12
MAX_TAGS = 8

STYLE_WORDS = {
    "noto": "noto",
    "noto-v1": "noto v1",
    "twemoji": "twemoji",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent flat",
    "emojione": "emojione",
    "fxemoji": "fxemoji",
    "openmoji": "openmoji",
}

# What a thing of this group or subgroup may be called when it is named with a comma: "apple, a fruit".
KINDS = {
    "animal-mammal": "animal", "animal-bird": "bird", "animal-amphibian": "animal", "animal-reptile": "reptile",
    "animal-marine": "sea animal", "animal-bug": "bug", "plant-flower": "flower", "plant-other": "plant",
    "food-fruit": "fruit", "food-vegetable": "vegetable", "food-prepared": "food", "food-asian": "asian food",
    "food-sweet": "sweet food", "drink": "drink", "dishware": "tableware", "place-building": "building",
    "place-religious": "building", "place-geographic": "landscape", "place-map": "map",
    "transport-ground": "vehicle", "transport-water": "boat", "transport-air": "aircraft",
    "sky-weather": "weather", "sport": "sport", "game": "game", "award-medal": "award", "clothing": "clothing",
    "musical-instrument": "musical instrument", "music": "music", "tool": "tool", "science": "science",
    "medical": "medical", "household": "household", "light-video": "light and video", "computer": "computer",
    "phone": "phone", "book-paper": "paper", "money": "money", "mail": "mail", "writing": "writing",
    "office": "office", "lock": "lock", "event": "celebration", "heart": "heart", "cat-face": "cat",
    "monkey-face": "monkey", "religion": "religion", "zodiac": "zodiac", "flag": "flag", "country-flag": "flag",
    "subdivision-flag": "flag", "person-role": "job", "person-sport": "sport", "person-activity": "activity",
    "person-fantasy": "fantasy", "person-gesture": "gesture", "person": "person", "family": "family",
    "body-parts": "body", "time": "time", "arrow": "arrow", "warning": "warning sign", "geometric": "shape",
}  # fmt: skip

MEDIA = ("a drawing of {}", "an emoji of {}", "a picture of {}", "a small icon of {}")
SMILEYS = ("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
           "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative")  # fmt: skip
WITHOUT_ARTICLE = re.compile(
    r"^(flag of|keycap|no |man |woman |men |women |people |person |children|on!|end |back |soon |top |ok |id |"
    r"thumbs|index|backhand|ear with|leftwards|rightwards|raising|folded|clapping|crossed)|"
    r"(clothing|broccoli|bacon|rice|sushi|bread|garlic|ginger|popcorn|butter|salt|honey|sake|money|lightning|fire|fog|"
    r"snow|wind|running|swimming|surfing|fishing|bowling|skiing|weather|graduation|symbol for beginner|o'clock|thirty|"
    r"[^s]s|\b\w|japan|liberty|soccer|basketball|baseball|softball|tennis|volleyball|rugby|hundred|mathematics|"
    r"confetti|hockey|lacrosse|dumplings|spaghetti|ice|chocolate|tea|coral|wood|soap|bubbles|paper|scissors|mail|yarn|"
    r"thread|dna|bone|moai|atm|email|e-mail|milk|snow-capped|steam|mistletoe|zombies|medicine|bento)$"
)
SINGULAR = re.compile(r"(bus|cactus|octopus|lotus|hibiscus|walrus|glass|cross|compass|abacus|virus|mess|dress|"
                      r"princess|floppy disc|boss|hippopotamus|rhinoceros|tennis|venus|lotus position|"
                      r"diplodocus|mosquitos|trolleybus|circus)$")  # fmt: skip


def captions(concept: Concept, style: str) -> list[str]:
    """Eight to twelve different captions of `concept` drawn in `style`; the first is "<label>, <style words> style"."""
    label, end = concept.label, f", {STYLE_WORDS[style]} style"
    thing = with_article(label)
    tags = _shuffled([t for t in concept.tags if t != label and t not in label.split()], concept, style, "tags")
    tags = tags[:MAX_TAGS]
    medium = _shuffled(MEDIA, concept, style, "medium")
    kind = KINDS.get(concept.subgroup)
    found = [label + end, label, thing + end, thing, f"{medium[0].format(thing)}{end}", medium[1].format(thing)]
    natural = _natural(concept)
    if natural:
        found += [natural + end, natural]
    if tags:
        found += [f"{label}, {', '.join(tags[:3])}{end}", f"{', '.join(tags[-2:])}, {label}"]
    if len(tags) > 2:
        again = _shuffled(tags, concept, style, "again")[:4]
        found += [f"{', '.join(again)}, {label}{end}"]
    if kind and kind not in label.split():
        found += [f"{label}, {kind}{end}"]
    found += [f"{label} emoji{end}", f"{label} in {STYLE_WORDS[style]} style", f"an emoji, {label}"]
    return list(dict.fromkeys(found))[:MAX_CAPTIONS]


def with_article(label: str) -> str:
    """The label as it is said: "red apple" becomes "a red apple"; plurals and uncountable things stay as they are."""
    if label.startswith(("a ", "an ", "the ")) or (WITHOUT_ARTICLE.search(label) and not SINGULAR.search(label)):
        return label
    vowel = re.match(r"(?!uni|use|eu|one|ufo)[aeiou]|hour|x-", label)
    return f"{'an' if vowel else 'a'} {label}"


def _natural(concept: Concept) -> str:
    """Another way to say the label, or "": a face is a smiley, the "cat face" of the animals is the head of a cat."""
    label = concept.label
    if concept.subgroup in SMILEYS and re.search(r"\bface\b", label):
        return with_article(re.sub(r"\bface\b", "smiley", label))
    if concept.group == "animals-nature" and label.endswith(" face"):
        return f"the head of {with_article(label.removesuffix(' face'))}"
    if concept.subgroup == "cat-face" and " with " in label:
        return f"{with_article(label)}, cat smiley"
    if match := re.fullmatch(r"(\w+) (heart|circle|square)", label):
        return f"{with_article(match[2])} in {match[1]}"
    if label.startswith("flag of "):
        return f"the {label}"
    return ""


def _shuffled(items: Sequence[str], concept: Concept, style: str, purpose: str) -> list[str]:
    """The items in an order that depends on nothing but the arguments."""

    def key(item: str) -> bytes:
        return hashlib.sha256(f"{concept.hexcode}/{style}/{purpose}/{item}".encode()).digest()

    return sorted(items, key=key)
