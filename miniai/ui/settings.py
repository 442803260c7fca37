"""The settings of a picture, read back from the text that it carries."""

import json
import re
from collections.abc import Callable
from typing import Any

EXACT = 2**53  # whole numbers up to here are exact in a browser
# "Name: value, ", where a value that holds a separator stands in quotes, as JSON.
_SETTING = re.compile(r'\s*([^:,"]+): ("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')


def read_settings(parameters: str) -> dict[str, Any]:
    """The fields of an `Order` in what `parameters_text` writes; {} if it is none of that. What the text leaves out was
    as it is by default; pictures to start from are not in it.

    >>> text = "a cat\\nSteps: 9, Sampler: Euler a, CFG scale: 2.5, Seed: 3, Size: 64x32, Clip skip: 2, RNG: CPU"
    >>> found = read_settings(text)
    >>> found["prompt"], found["sampler"], found["height"], found["clip_skip"]
    ('a cat', 'Euler a', 32, 1)
    """
    said, newline, rest = parameters.rpartition("\nSteps: ")
    if not newline:
        return {}
    written = {name: _unquoted(value) for name, value in _SETTING.findall(f"Steps: {rest}")}
    prompt, _, negative = said.partition("\nNegative prompt: ")
    settings: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    try:
        for title, (field, read) in _FIELDS.items():
            if title in written:
                settings[field] = read(written[title])
        settings["width"], settings["height"] = map(int, written["Size"].split("x"))
        if settings["seed"] > EXACT:
            del settings["seed"]
        return settings if {"steps", "sampler", "guidance_scale"} <= set(settings) else {}
    except (KeyError, ValueError):
        return {}


def _interval(text: str) -> list[float]:
    low, high = text.split(" to ")
    return [float(low), float(high)]


def _loras(text: str) -> list[list[Any]]:
    """ "ink:0.5, tux:1" """
    pairs = [one.rpartition(":") for one in text.split(", ")]
    return [[name, float(strength)] for name, _, strength in pairs]


_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", int),
    "Sampler": ("sampler", str),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Denoising strength": ("strength", float),
    "Masked area padding": ("mask_padding", int),
    "Clip skip": ("clip_skip", lambda text: int(text) - 1),  # as A1111 counts
    "Eta": ("eta", float),
    "CFG rescale": ("guidance_rescale", float),
    "Guidance interval": ("guidance_interval", _interval),
    "Cache interval": ("cache_interval", int),
    "Prompt syntax": ("prompt_syntax", str),
    "Long prompts": ("long_prompts", str),
    "LoRA": ("loras", _loras),
}


def _unquoted(value: str) -> str:
    return json.loads(value) if value.startswith('"') else value.strip()
