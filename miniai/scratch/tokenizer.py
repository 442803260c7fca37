"""34. CLIP's tokenizer: words cut into the pieces that byte-pair encoding has learned, each piece a number.

Names and results are those of sd/tokenizer.py. Which character is a letter is asked of Python's own Unicode tables, so
letters younger than those may be cut otherwise.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021),
`simple_tokenizer.py`; the byte alphabet is GPT-2's (Radford et al. 2019); Sennrich et al. 2016, algorithm 1.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniai.scratch.folder import read_json

Pair = tuple[str, str]
END_OF_WORD = "</w>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
NOT_SPACES = "\x1c\x1d\x1e\x1f"  # Python calls these white space, Unicode does not
ROLES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def kind(char: str) -> str:
    """ "L" for a letter, "N" for a number, " " for white space, "" for anything else."""
    if char.isspace() and char not in NOT_SPACES:
        return " "
    category = unicodedata.category(char)[0]
    return category if category in "LN" else ""


def normalise(text: str) -> str:
    """Composed (NFC), in small letters; half of a character (a lone surrogate) becomes U+FFFD."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(char.lower() for char in unicodedata.normalize("NFC", text))


def split_words(text: str) -> list[str]:
    """Words of a normalised text: English contractions, runs of letters, single digits, runs of anything else."""
    kinds, words, i = [kind(char) for char in text], [], 0
    while i < len(text):
        end = i + next((len(short) for short in CONTRACTIONS if text.startswith(short, i)), 1)
        if end == i + 1 and kinds[i] != "N":
            while end < len(text) and kinds[end] == kinds[i]:
                end += 1
        if kinds[i] != " ":
            words.append(text[i:end])
        i = end
    return words


def byte_alphabet() -> dict[int, str]:
    """A printable character for each of the 256 bytes: itself where it is one, else the next unused from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def apply_merges(symbols: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Of all neighbours, those learned first are joined, wherever they stand; again, until none is left."""
    parts = list(symbols)
    while True:
        known = [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]
        if not known:
            return parts
        first, second = min(known, key=ranks.__getitem__)
        joined, i = [], 0
        while i < len(parts):
            fits = parts[i] == first and parts[i + 1 : i + 2] == [second]
            joined.append(first + second if fits else parts[i])
            i += 2 if fits else 1
        parts = joined


class CLIPTokenizer:
    """`vocab` maps token to id, `merges` lists pairs from the first learned to the last, `added` maps the tokens that
    are found in the text as they stand; `model_max_length` is the window in tokens, start and end included."""

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[Pair],
        added: Mapping[str, int],
        bos_id: int,
        eos_id: int,
        pad_id: int,
        model_max_length: int,
    ) -> None:
        self.vocab, self.added, self.model_max_length = dict(vocab), dict(added), model_max_length
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.alphabet = byte_alphabet()

    def __len__(self) -> int:
        """How many rows an embedding needs: the highest id and one."""
        return max([*self.vocab.values(), *self.added.values()]) + 1

    @classmethod
    def from_pretrained(cls, folder: Path) -> "CLIPTokenizer":
        """Reads vocab.json, merges.txt and tokenizer_config.json. Raises ValueError naming file and fault."""
        vocab, config = read_json(folder / "vocab.json"), read_json(folder / "tokenizer_config.json")
        if not vocab or not all(type(i) is int and i >= 0 for i in vocab.values()):
            raise ValueError(f"{folder / 'vocab.json'}: a token's id is not a whole number; get the file again")
        merges = read_merges(folder / "merges.txt", vocab)
        length = config.get("model_max_length", 77)
        if type(length) is not int or length < 2:
            raise ValueError(f"{folder}: model_max_length must be a whole number of at least 2, not {length!r}")
        tokens = [token_content(config.get(role, default), folder) for role, default in ROLES.items()]
        added = read_added(config.get("added_tokens_decoder", {}), folder)
        added |= {token: vocab[token] for token in tokens if token in vocab and token not in added}
        missing = [token for token in tokens if token not in added]
        if missing:
            raise ValueError(f"{folder}: no id for {missing[0]!r}; get the folder again")
        bos_id, eos_id, pad_id = (added[token] for token in tokens)
        return cls(vocab, merges, added, bos_id, eos_id, pad_id, length)

    def encode(self, text: str) -> list[int]:
        """All token ids of `text`, without start and end. An added token written in the text is that token."""
        ids: list[int] = []
        longest_first = sorted(self.added, key=len, reverse=True)
        for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
            if part in self.added:
                ids.append(self.added[part])
            else:
                for word in split_words(normalise(part)):
                    ids += self.encode_word(word)
        return ids

    def encode_word(self, word: str) -> list[int]:
        """Its UTF-8 bytes as characters of the alphabet, the last marked as the word's end; then the merges."""
        symbols = [self.alphabet[byte] for byte in word.encode()]
        symbols[-1] += END_OF_WORD
        return [self.vocab.get(symbol, self.eos_id) for symbol in apply_merges(symbols, self.ranks)]

    def __call__(self, text: str) -> list[int]:
        """`model_max_length` ids: start, the tokens that fit, end, padding."""
        ids = [self.bos_id, *self.encode(text)[: self.model_max_length - 2], self.eos_id]
        return ids + [self.pad_id] * (self.model_max_length - len(ids))


def read_merges(path: Path, vocab: Mapping[str, int]) -> list[Pair]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of merges ({error}); get the file again") from error
    merges: list[Pair] = []
    for line in lines:
        if not line.strip() or line.startswith("#version"):
            continue
        first, _, second = line.rstrip("\r").partition(" ")
        if first + second not in vocab:
            raise ValueError(f"{path}: {line!r} makes no token of vocab.json; the files do not belong together")
        merges.append((first, second))
    return merges


def token_content(value: Any, folder: Path) -> str:
    """A token is written as plain text, or as an object with its text as `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise ValueError(f"{folder / 'tokenizer_config.json'}: {value!r} is no token; get the file again")
    return content


def read_added(decoder: Any, folder: Path) -> dict[str, int]:
    """`added_tokens_decoder`: id to token."""
    where = folder / "tokenizer_config.json"
    if not isinstance(decoder, dict) or not all(key.isdecimal() for key in decoder):
        raise ValueError(f"{where}: added_tokens_decoder does not map ids to tokens; get the file again")
    for token in decoder.values():
        if isinstance(token, dict) and (token.get("normalized") or token.get("single_word")):
            raise ValueError(
                f"{where}: {token_content(token, folder)!r} is matched in a way that is not supported here"
            )
    return {token_content(token, folder): int(key) for key, token in decoder.items()}
