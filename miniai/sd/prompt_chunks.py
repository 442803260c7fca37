"""Prompts of any length as windows of tokens, each as long as the text encoder can read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from miniai.sd.prompt_weights import Weighted
from miniai.sd.tokenizer import CLIPTokenizer

# A window that would end within a phrase ends at the last comma instead, if that is at most so many tokens back: the
# default of A1111's setting `comma_padding_backtrack`.
COMMA_REACH = 20


@dataclass(frozen=True)
class Token:
    """`n_together`: how many tokens, itself the first, are one learned word."""

    token_id: int
    weight: float = 1.0
    n_together: int = 1


def section_tokens(tokenizer: CLIPTokenizer, section: list[Weighted]) -> list[Token]:
    """The tokens of one section, without start and end; each run of text is read by itself."""
    return [
        Token(token_id, weight, n)
        for text, weight in section
        for word in _words(tokenizer, text)
        for token_id, n in zip(word, (len(word), *[1] * len(word)), strict=False)
    ]


def _words(tokenizer: CLIPTokenizer, text: str) -> list[list[int]]:
    """The tokens of a text, each alone, and in the place of a learned word's first all of them."""
    added = tokenizer.added
    several = {added.ids[name]: [added.ids[one] for one in added.whole(name)] for name in added.ids}
    return [several.get(first, [first]) for first in tokenizer.encode(text)]


def into_chunks(tokenizer: CLIPTokenizer, sections: list[list[Token]]) -> list[list[Token]]:
    """The tokens in chunks that fit between start and end, at least one: each section begins a new chunk."""
    length, comma = tokenizer.model_max_length - 2, tokenizer.vocab.get(",</w>")
    chunks: list[list[Token]] = []
    for number, section in enumerate(sections):
        chunk: list[Token] = []
        for token in section:
            if chunk and len(chunk) + token.n_together > length >= token.n_together > 1:  # a learned word stays whole
                chunks.append(chunk)
                chunk = []
            if len(chunk) == length:
                keep = length if token.token_id == comma else _phrase_end(chunk, comma)
                chunks.append(chunk[:keep])
                chunk = chunk[keep:]
            chunk.append(token)
        if chunk or number < len(sections) - 1 or not chunks:
            chunks.append(chunk)
    return chunks


def windows(tokenizer: CLIPTokenizer, chunks: list[list[Token]]) -> tuple[list[list[int]], list[list[float]]]:
    """(ids, weights) of each chunk between start and end, padded to the window."""
    window = tokenizer.model_max_length
    ids, weights = [], []
    for chunk in chunks:
        n_pad = window - 2 - len(chunk)
        ids.append([tokenizer.bos_id, *(t.token_id for t in chunk), tokenizer.eos_id, *[tokenizer.pad_id] * n_pad])
        weights.append([1.0, *(t.weight for t in chunk), 1.0, *[1.0] * n_pad])
    return ids, weights


def cut_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Int[Tensor, "b window"]:
    """The token ids of texts as they stand, each cut to one window, learned words with all their vectors."""
    tokens = [section_tokens(tokenizer, [(text, 1.0)])[: tokenizer.model_max_length - 2] for text in texts]
    ids, _ = windows(tokenizer, tokens)
    return torch.tensor(ids, dtype=torch.int64).reshape(len(texts), tokenizer.model_max_length)


def _phrase_end(chunk: list[Token], comma: int | None) -> int:
    """How many tokens of a full chunk stay: up to its last comma, if that is near, or all."""
    for back in range(1, min(COMMA_REACH, len(chunk)) + 1):
        if chunk[-back].token_id == comma:
            return len(chunk) - back + 1
    return len(chunk)
