"""Several captions for one emoji: what a small text-to-image model learns its words from.

Every caption is true of the picture, lower-case, and chosen by a hash of concept and style, so that a set built again
tomorrow, or with other styles, says the same.
"""

import hashlib
import re
from collections.abc import Sequence

from miniai.recipes.emoji_colours import COLOUR_WORDS
from miniai.recipes.emoji_colours import GROUP as COLOURS
from miniai.recipes.emoji_combinations import GROUP as COMBINATIONS
from miniai.recipes.emoji_concepts import Concept
from miniai.recipes.emoji_everyday import EVERYDAY

MAX_CAPTIONS = 20
MAX_TAGS = 8
MAX_EVERYDAY = 4

STYLE_WORDS = {
    "noto": "noto",
    "noto-v1": "noto v1",
    "twemoji": "twemoji",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent flat",
    "emojione": "emojione",
    "fxemoji": "fxemoji",
    "fluent-emoji-high-contrast": "high contrast",
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
# Where the thing itself ends: "face with tears" is one face, "paw prints" are several.
TAIL = re.compile(r",? (with|without|that|of|in|on|behind|at|over|under|showing|from|facing|holding|turned)\b.*|,.*")
PLURAL = re.compile(r"(?<![sui])s$|^skis$|\b(people|men|women|children)\b")
NOT_PLURAL = re.compile(r"\b(christmas|swiss|gas|lens|news|tennis|mathematics|graphics|rhinoceros|crossbones)$")
UNCOUNTED = frozenset(
    {
        "broccoli", "bacon", "rice", "sushi", "bread", "garlic", "popcorn", "butter", "salt", "sake", "fire", "fog",
        "wind", "soap", "wood", "ice", "coral", "thread", "yarn", "dna", "baseball", "softball", "basketball",
        "volleyball", "hockey", "lacrosse", "bowling", "tennis", "badminton", "ping-pong", "spaghetti", "flatbread",
        "e-mail", "mail", "money", "mahjong", "clothing", "tea", "milk", "water", "blood", "paper", "curry", "food",
        "camping", "cooking", "construction", "foggy", "dizzy", "star-struck", "locked", "unlocked", "away", "zzz",
        "fuji", "japan", "om", "khanda", "prohibited", "radioactive", "biohazard", "customs", "cancer", "gemini",
        "aries", "taurus", "leo", "virgo", "libra", "scorpio", "sagittarius", "capricorn", "aquarius", "pisces",
        "ophiuchus", "information", "infinity", "plus", "minus", "divide", "multiply", "copyright", "registered",
        "voltage", "worship", "medicine", "luggage", "meat", "pong", "rolling", "wrestling", "swimming",
        "coffee", "sunshine", "poop", "corn", "lettuce", "cabbage", "ginger", "chocolate", "honey", "stew", "soup",
        "paella", "pasta", "wine", "champagne", "whisky", "beer", "rain", "snow", "lightning", "confetti", "steam",
        "golf", "archery", "love", "smoking", "applause", "cutlery", "cheese", "up", "on", "off", "blown", "out",
        "soccer", "delicious", "wrong", "right", "hello", "sleep", "100", "beetroot", "salad",
    }
)  # fmt: skip
SKIN = re.compile(r"(.+), ((?:medium-)?light|medium|(?:medium-)?dark) skin tone")
BARE = ("flag of ", "keycap ", "no ", "thumbs ", "input ")
THE = ("statue of liberty", "milky way", "wheel of dharma", "star of david")


def captions(concept: Concept, style: str, everyday_weight: int = 1) -> list[str]:
    """Eight to twenty different captions of `concept` in `style`; the first is "<label>, <style words> style".

    Those in everyday words stand `everyday_weight` times in the list, so that training shows them as much more often.
    """
    label, words = concept.label, STYLE_WORDS[style]
    end = f", {words} style"
    thing = with_article(label)
    said = {label, *re.findall(r"[\w'-]+", label), *label.split(", ")}
    new = [tag for tag in concept.tags if tag.isascii() and tag not in said]
    tags = _shuffled(new, concept, style, "tags")[:MAX_TAGS]
    media = [medium.format(thing) for medium in _shuffled(MEDIA, concept, style, "media")]
    natural, kind = _natural(concept, style), _kind(concept)
    found = [label + end, label, thing + end, thing, media[0] + end, media[1]]
    if natural:
        found += [natural + end, natural]
    names = _shuffled(_everyday(concept), concept, style, "everyday")[:MAX_EVERYDAY]
    everyday = [with_article(name) + ending for name in names for ending in (end, "")]
    found += everyday
    if tags:
        found += [f"{label}, {', '.join(tags[:3])}{end}", f"{', '.join(tags[-2:])}, {label}"]
    if len(tags) > 2:
        found += [f"{', '.join(_shuffled(tags, concept, style, 'again')[:4])}, {label}{end}"]
    if kind:
        found += [f"{label}, {kind}{end}"]
    found += [f"{label} emoji{end}", f"{label} in {words} style", media[2] + end, f"{words} emoji, {label}"]
    different = list(dict.fromkeys(found))[:MAX_CAPTIONS]
    return different + [text for text in different if text in everyday] * (everyday_weight - 1)


def with_article(label: str) -> str:
    """The label as it is said: "red apple" becomes "a red apple"; plurals and uncountable things stay as they are."""
    if label in THE:
        return f"the {label}"
    head = TAIL.sub("", label)
    plural = PLURAL.search(head) and not NOT_PLURAL.search(head)
    uncounted = head.split(" ")[-1] in UNCOUNTED and not head.startswith("face ")
    if plural or uncounted or not head or label.startswith(BARE):
        return label
    vowel = re.match(r"(?!uni|use|eu|ew|one|ufo|u\b)[aeiou]|hour|x-|8", label)
    return f"{'an' if vowel else 'a'} {label}"


def _everyday(concept: Concept) -> tuple[str, ...]:
    """What else people call it; of a coloured thing with its colour before it, unless the name has another; of a hand
    with its skin tone behind it."""
    if match := SKIN.fullmatch(concept.label):
        return tuple(f"{name}, {match[2]} skin tone" for name in EVERYDAY.get(match[1], ()))
    if concept.group != COLOURS:
        return EVERYDAY.get(concept.label, ())
    names = EVERYDAY.get(concept.label.removeprefix(f"{concept.subgroup} "), ())
    return tuple(f"{concept.subgroup} {name}" for name in names if not COLOUR_WORDS & set(name.split()))


def _natural(concept: Concept, style: str) -> str:
    """Another way to say the label, or "": a face is a smiley, the "cat face" of the animals is the head of a cat."""
    label = concept.label
    if concept.group == COMBINATIONS:
        word = _shuffled(("wearing", "in"), concept, style, "wear")[0]
        return with_article(label.replace(" with ", f" {word} "))
    if concept.group == COLOURS:
        return f"{with_article(label.removeprefix(f'{concept.subgroup} '))} in {concept.subgroup}"
    if match := SKIN.fullmatch(label):
        return f"{with_article(match[1])} with {match[2]} skin"
    if concept.subgroup in SMILEYS and re.search(r"\bface\b", label):
        return with_article(re.sub(r"\bface\b", "smiley", label))
    if concept.group == "animals-nature" and label.endswith(" face"):
        return f"the head of {with_article(label.removesuffix(' face'))}"
    if concept.subgroup == "cat-face":
        return with_article(re.sub(r"\bcat\b", "cat face", label))
    if match := re.fullmatch(r"(\w+) (heart|circle|square)", label):
        return f"{with_article(match[2])} in {match[1]}"
    if match := re.fullmatch(r"(person|man|woman), (\w+ hair|beard)", label):
        return f"a {match[1]} with {with_article(match[2]) if match[2] == 'beard' else match[2]}"
    if concept.subgroup == "warning":
        return f"a {label} sign"
    if label.startswith("flag of "):
        return f"the {label}"
    return ""


def _kind(concept: Concept) -> str:
    """What the thing is one of, where the label does not say so itself."""
    kind = "smiley" if concept.subgroup in SMILEYS else KINDS.get(concept.subgroup, "")
    return "" if kind in re.findall(r"\w+", concept.label) else kind


def _shuffled(items: Sequence[str], concept: Concept, style: str, purpose: str) -> list[str]:
    """The items in an order that depends on nothing but the arguments."""

    def key(item: str) -> bytes:
        return hashlib.sha256(f"{concept.hexcode}/{style}/{purpose}/{item}".encode()).digest()

    return sorted(items, key=key)
