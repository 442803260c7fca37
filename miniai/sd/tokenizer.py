"""CLIP's tokenizer: text to token ids and back, with the files that Diffusers and transformers read and write.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.files import atomic_file, make_folder, read_json, write_json
from miniai.sd.added_tokens import (
    AddedTokens,
    added_tokens_entries,
    plain_added_tokens,
    read_added_tokens,
    special_tokens_map,
)
from miniai.sd.bpe import Pair, apply_merges, train_bpe
from miniai.sd.clip_text import END_OF_WORD, byte_alphabet, split_words, word_symbols

_VERSION_LINE = "#version: 0.2"
_DEFAULT_LENGTH = 77
_MAX_CACHED_WORDS, _MAX_CACHED_LENGTH = 50_000, 64


class CLIPTokenizer:
    """Byte-pair tokenizer with the start-of-text and end-of-text tokens of CLIP.

    `vocab` maps token to id, `merges` lists pairs from the first merged to the last, `model_max_length` is the window
    in tokens, start and end included. Raises UserError if vocabulary and merges do not fit together.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[Pair],
        model_max_length: int = _DEFAULT_LENGTH,
        added: AddedTokens | None = None,
        where: str = "the vocabulary",
    ) -> None:
        _check(vocab, merges, model_max_length, where)
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.model_max_length = model_max_length
        self.added = plain_added_tokens(vocab) if added is None else added
        ids = self.vocab | self.added.ids
        self.bos_id, self.eos_id, self.pad_id = (ids[t] for t in (self.added.bos, self.added.eos, self.added.pad))
        self._unk_id = ids[self.added.unk]
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._tokens = {token_id: token for token, token_id in ids.items()}
        self._cache: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Number of rows that an embedding table needs: the highest id and one."""
        return max(self._tokens) + 1

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, model_max_length: int = _DEFAULT_LENGTH) -> "CLIPTokenizer":
        """Learn a vocabulary of at most `vocab_size` tokens from `texts`; the end-of-text token pads, as in SD 1.x."""
        return cls(*train_bpe(texts, vocab_size), model_max_length)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "CLIPTokenizer":
        """Read vocab.json, merges.txt and the small files beside them; or tokenizer.json, where it stands, instead."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such tokenizer folder; check the path")
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        if not isinstance(config, dict):
            raise UserError(f"{folder / 'tokenizer_config.json'}: expected a JSON object; get the file again")
        length = config.get("model_max_length", _DEFAULT_LENGTH)
        if isinstance(length, float) or (isinstance(length, int) and length > 1_000_000):
            length = _DEFAULT_LENGTH  # transformers writes 1e30 for "not known"
        vocab, merges, where = _read_vocabulary(folder)
        _check(vocab, merges, length, where)
        return cls(vocab, merges, length, read_added_tokens(folder, config, vocab), where)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json, each whole or not at all."""
        folder = Path(folder)
        make_folder(folder)
        write_json(folder / "vocab.json", self.vocab)
        with atomic_file(folder / "merges.txt") as file:
            file.write("".join(f"{line}\n" for line in [_VERSION_LINE, *map(" ".join, self.merges)]).encode())
        roles = special_tokens_map(self.added)
        write_json(folder / "special_tokens_map.json", roles)
        config = {
            "add_prefix_space": False,
            **added_tokens_entries(self.added),
            "clean_up_tokenization_spaces": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.model_max_length,
            "tokenizer_class": "CLIPTokenizer",
        }
        write_json(folder / "tokenizer_config.json", config)

    def with_added(self, added: AddedTokens) -> "CLIPTokenizer":
        """The same vocabulary with other tokens beside it."""
        return CLIPTokenizer(self.vocab, self.merges, self.model_max_length, added)

    def take_added(self, added: AddedTokens) -> None:
        """Know other tokens beside the vocabulary from now on, in place."""
        vars(self).update(vars(self.with_added(added)))

    def encode(self, text: str) -> list[int]:
        """All token ids of `text`, without start and end. A special token written in the text is that token."""
        ids: list[int] = []
        for fragment, token_id in self.added.fragments(text):
            if token_id is not None:
                ids.append(token_id)
            else:
                for word in split_words(fragment):
                    ids += self._encode_word(word)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, in small letters, one space between words; bytes that are no character become U+FFFD."""
        byte_of = {char: byte for byte, char in byte_alphabet().items()}
        out = b""
        for token_id in ids:
            token = self._tokens.get(token_id)
            if token is None:
                raise ValueError(f"no token has the id {token_id}")
            out += bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode()
        return out.decode(errors="replace").replace(END_OF_WORD, " ").strip()

    def __call__(self, texts: list[str]) -> Int[Tensor, "b n"]:
        """Ids of shape (b, model_max_length): start, the tokens that fit, end, padding."""
        rows = []
        for text in texts:
            row = [self.bos_id, *self.encode(text)[: self.model_max_length - 2], self.eos_id]
            rows.append(row + [self.pad_id] * (self.model_max_length - len(row)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.model_max_length)

    def cut(self, text: str) -> str:
        """The end of `text` that falls outside the window, as the model would have read it; "" if it all fits."""
        return self.decode(self.encode(text)[self.model_max_length - 2 :])

    def _encode_word(self, word: str) -> list[int]:
        ids = self._cache.get(word)
        if ids is None:
            symbols = apply_merges(word_symbols(word), self._ranks)
            ids = [self.vocab.get(symbol, self._unk_id) for symbol in symbols]
            if len(word) <= _MAX_CACHED_LENGTH:
                if len(self._cache) >= _MAX_CACHED_WORDS:
                    self._cache.clear()
                self._cache[word] = ids
        return ids


def _read_vocabulary(folder: Path) -> tuple[Any, list[Any], str]:
    """Vocabulary and merges as they stand in the files, still to be checked, and where they stand."""
    whole = folder / "tokenizer.json"
    if whole.is_file():
        content: Any = read_json(whole)
        model = content.get("model") if isinstance(content, dict) else None
        if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
            raise UserError(f"{whole}: not a byte-pair tokenizer; get the file again")
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return model.get("vocab"), [tuple(pair) if isinstance(pair, list) else pair for pair in merges], str(whole)
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    vocab = read_json(vocab_path)
    try:
        lines = merges_path.read_bytes().decode().split("\n")
    except FileNotFoundError as error:
        raise UserError(f"{merges_path} is missing: check the path, or get the file again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {merges_path}: {error}; get the file again") from error
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    return vocab, pairs, f"{vocab_path} with merges.txt"


def _check(vocab: Any, merges: Any, model_max_length: Any, where: str) -> None:
    """Refuse what cannot be a CLIP vocabulary, in one line."""
    if not isinstance(vocab, Mapping) or not vocab:
        raise UserError(f"{where}: expected a vocabulary, token to id; get the file again")
    if not all(isinstance(token, str) and type(i) is int and i >= 0 for token, i in vocab.items()):
        raise UserError(f"{where}: a token's id is not a whole number; get the file again")
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"{where}: two tokens have the same id; get the file again")
    for n, pair in enumerate(merges, 1):
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise UserError(f"{where}: merge {n} is not a pair of tokens: {pair!r}; get the file again")
        unknown = [token for token in (*pair, "".join(pair)) if token not in vocab]
        if unknown:
            raise UserError(f"{where}: merge {n} needs {unknown[0]!r}, not in the vocabulary; the files do not match")
    if type(model_max_length) is not int or model_max_length < 2:
        raise UserError(f"{where}: model_max_length must be a whole number of at least 2, not {model_max_length!r}")
