"""The text side of CLIP's tokenizer: normalise, cut into words, write a word's bytes as printable characters.

All of it equals what `transformers.CLIPTokenizer` does in its compiled code, on every code point. That code knows
other versions of the Unicode tables than the Python it runs under, so the characters on which they differ are listed
below: results then do not depend on the version of Python either.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021),
`simple_tokenizer.py`; the byte alphabet is GPT-2's (Radford et al. 2019).
"""

import re
import unicodedata
from functools import cache

END_OF_WORD = "</w>"


def _code_points(ranges: str) -> frozenset[int]:
    """Code points of "a0 b0-b4": hexadecimal numbers and inclusive ranges."""
    points: set[int] = set()
    for item in ranges.split():
        first, _, last = item.partition("-")
        points.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(points)


# Letters and numbers that Unicode 15 and 16 added; Python 3.11 knows Unicode 14.
_LATER_LETTERS = _code_points(
    "1c89-1c8a a7cb-a7cd a7da-a7dc 105c0-105f3 10d4a-10d65 10d6f-10d85 10ec2-10ec4 1123f-11240 11380-11389 1138b 1138e "
    "11390-113b5 113b7 113d1 113d3 11bc0-11be0 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa 16100-1611d "
    "16d40-16d6c 18cff 1b132 1b155 1df25-1df2a 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 2ebf0-2ee5d 31350-323af"
)
_LATER_NUMBERS = _code_points(
    "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 1d2c0-1d2d3 "
    "1e4f0-1e4f9 1e5f1-1e5fa"
)
# Capitals that Unicode 15 to 17 added, as (first, last, first small letter).
_LATER_CAPITALS = (
    (0x1C89, 0x1C89, 0x1C8A), (0xA7CB, 0xA7CB, 0x0264), (0xA7CC, 0xA7CC, 0xA7CD), (0xA7CE, 0xA7CE, 0xA7CF),
    (0xA7D2, 0xA7D2, 0xA7D3), (0xA7D4, 0xA7D4, 0xA7D5), (0xA7DA, 0xA7DA, 0xA7DB), (0xA7DC, 0xA7DC, 0x019B),
    (0x10D50, 0x10D65, 0x10D70), (0x16EA0, 0x16EB8, 0x16EBB),
)  # fmt: skip
# Combining marks that the tables of Unicode 9 lack, to which NFC must do nothing: neither reorder nor compose. (U+11930
# is the second half of the one composition younger than those tables.)
_MARKS_LEFT_ALONE = _code_points(
    "7fd 898-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1ace 1df6-1dfa a82c 10d24-10d27 10eab-10eac 10efd-10eff "
    "10f46-10f50 10f82-10f85 11070 1133b 1145e 11839-1183a 11930 1193d-1193e 11943 119e0 11a34 11a47 11a99 "
    "11d42 11d44-11d45 11d97 11f41-11f42 16ff0-16ff1 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef"
)

_SPACES = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_COMPOSABLE = re.compile(f"[^{''.join(map(chr, sorted(_MARKS_LEFT_ALONE)))}]+")
_WORD = re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+",
)


class _LowerCase(dict[int, str]):
    """For `str.translate`: each character by itself, so that no final sigma is told from a middle one."""

    def __missing__(self, point: int) -> str:
        self[point] = chr(point).lower()
        return self[point]


class _Shape(dict[int, str]):
    """For `str.translate`: a letter beyond ASCII becomes "z", a number "0", a space " ", anything else "!"."""

    def __missing__(self, point: int) -> str:
        self[point] = _shape(chr(point))
        return self[point]


def _shape(char: str) -> str:
    if _SPACES.match(char):
        return " "
    category = unicodedata.category(char)[0]
    if category == "L" or ord(char) in _LATER_LETTERS:
        return "z" if ord(char) > 127 else char.lower()
    if category == "N" or ord(char) in _LATER_NUMBERS:
        return "0"
    return char if ord(char) < 127 else "!"


_LOWER_CASE = _LowerCase(
    {big: chr(small + big - first) for first, last, small in _LATER_CAPITALS for big in range(first, last + 1)}
)
_SHAPES = _Shape()


def normalise(text: str) -> str:
    """Compose (NFC), make every run of white space one space, write small. Lone surrogates become U+FFFD."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _COMPOSABLE.sub(lambda run: unicodedata.normalize("NFC", run[0]), text)
    return _SPACES.sub(" ", text).translate(_LOWER_CASE)


def split_words(text: str) -> list[str]:
    """Words of a normalised text: English contractions, runs of letters, single digits, runs of anything else.

    The pattern of CLIP speaks of Unicode classes (`\\p{L}`, `\\p{N}`, `\\s`), which the standard library's `re` lacks.
    So it is matched against the text's shape, an ASCII string of the same length with one stand-in for each class.
    """
    words: list[str] = []
    for match in _WORD.finditer(text.translate(_SHAPES)):
        word = text[match.start() : match.end()]
        # A special token that the caller left as text is three words, and no longer run with what follows it.
        words += [word[:2], word[2:-2], word[-2:]] if match[0] in ("<|startoftext|>", "<|endoftext|>") else [word]
    return words


@cache
def byte_alphabet() -> dict[int, str]:
    """byte -> printable character, in the order in which CLIP's vocabulary lists the 256 of them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def word_symbols(word: str) -> list[str]:
    """The word's UTF-8 bytes as characters of the byte alphabet; the last one ends in `</w>`."""
    alphabet = byte_alphabet()
    symbols = [alphabet[byte] for byte in word.encode()]
    symbols[-1] += END_OF_WORD
    return symbols


COMMA = len(byte_alphabet()) + list(byte_alphabet()).index(ord(","))  # the id of the word ","
