"""Weights written into prompts, "a (red:1.3) cat", as the two programs that people use read them.

Sources: the documented examples of stable-diffusion-webui (A1111), `modules/prompt_parser.py`; ComfyUI,
`comfy/sd1_clip.py`. A prompt becomes sections, and a section runs of text of one weight each.
"""

import math
import re

Weighted = tuple[str, float]

_STEP = 1.1  # one pair of brackets
_NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*"
_A1111 = re.compile(rf"\\[()\[\]\\]|\\|[()\[\]]|:{_NUMBER}\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


def plain(prompt: str) -> list[list[Weighted]]:
    """The prompt as it stands: one section, one run."""
    return [[(prompt, 1.0)]]


def a1111(prompt: str) -> list[list[Weighted]]:
    r"""A1111's reading.

    (text) is 1.1 times as strong, [text] 1.1 times weaker, (text:1.3) 1.3 times as strong; nested they multiply, and
    brackets left open reach to the end. \( \) \[ \] \\ are the characters themselves. BREAK begins a new
    section, within brackets too (where A1111 itself takes it for a word, since there its mark is weighted as well).
    """
    runs: list[Weighted | None] = []  # None is a BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        runs[start:] = [run and (run[0], run[1] * factor) for run in runs[start:]]

    for found in _A1111.finditer(prompt):
        part, number = found[0], found[1]
        if part in opened:
            opened[part].append(len(runs))
        elif part[0] == "\\":
            runs.append((part[1:], 1.0))  # a backslash before anything else vanishes
        elif number is not None and opened["("]:
            close("(", float(number))
        elif part == ")" and opened["("]:
            close("(", _STEP)
        elif part == "]" and opened["["]:
            close("[", 1 / _STEP)
        else:
            for i, text in enumerate(_BREAK.split(part)):
                runs += [None, (text, 1.0)] if i else [(text, 1.0)]
    while opened["("]:
        close("(", _STEP)
    while opened["["]:
        close("[", 1 / _STEP)
    return [_joined(section) for section in _split(runs)]


def comfyui(prompt: str) -> list[list[Weighted]]:
    r"""ComfyUI's reading.

    (text) is 1.1 times as strong, nested they multiply; (text:1.3) is 1.3, whatever stands around it. Square brackets
    are text, and mostly so are round ones that do not match: after a ")" too many, as in "a smile :) (cat:1.3)", no
    bracket counts. \( \) are the characters themselves.
    """
    hidden = prompt.replace("\\)", "\0").replace("\\(", "\1")
    shown = [(text.replace("\0", ")").replace("\1", "("), weight) for text, weight in _comfyui(hidden, 1.0)]
    return [_joined(shown)]


SYNTAXES = {"plain": plain, "a1111": a1111, "comfyui": comfyui}


def _comfyui(text: str, weight: float) -> list[Weighted]:
    runs: list[Weighted] = []
    for part in _top_level(text):
        if len(part) < 2 or (part[0], part[-1]) != ("(", ")"):
            runs.append((part, weight))
            continue
        inner, factor = part[1:-1], weight * _STEP
        before, colon, number = inner.rpartition(":")
        if colon and before and (given := _finite(number)) is not None:
            inner, factor = before, given
        runs += _comfyui(inner, factor)
    return runs


def _top_level(text: str) -> list[str]:
    """Brackets at depth 0, and what stands between them. A closing bracket too many lowers the depth below 0, from
    where an opening one only comes back to it; whatever is left open goes to the end."""
    parts, start, depth = [], 0, 0
    for place, char in enumerate(text):
        if char == "(":
            if depth == 0:
                parts.append(text[start:place])
                start = place
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                parts.append(text[start : place + 1])
                start = place + 1
    return [part for part in (*parts, text[start:]) if part]


def _finite(number: str) -> float | None:
    try:
        value = float(number)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _split(runs: list[Weighted | None]) -> list[list[Weighted]]:
    sections: list[list[Weighted]] = [[]]
    for run in runs:
        if run is None:
            sections.append([])
        else:
            sections[-1].append(run)
    return sections


def _joined(runs: list[Weighted]) -> list[Weighted]:
    """Neighbours of one weight as one run, without empty ones; nothing at all is an empty run."""
    joined: list[Weighted] = []
    for text, weight in runs:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        elif text:
            joined.append((text, weight))
    return joined or [("", 1.0)]
