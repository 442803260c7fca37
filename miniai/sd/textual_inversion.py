"""Learned words: vectors that stand for a thing or a style, found by textual inversion (Gal et al. 2022, arXiv
2208.01618), in every layout that is in use.

{"<cat-toy>": vectors}                             Diffusers; one entry for each word
{"string_to_param": {"*": vectors}, "name": word}  A1111, pickled
{"emb_params": vectors}                            kohya-ss; the word is the file's name
vectors                                            a tensor alone; likewise
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.weights import is_safetensors, read_pickled, read_weights
from miniai.nn.clip import CLIPTextModel
from miniai.sd.added_tokens import AddedToken
from miniai.sd.clip_text import normalise
from miniai.sd.hub import find_model
from miniai.sd.tokenizer import CLIPTokenizer

FILE_STEM = "learned_embeds"  # what Diffusers calls the file in a folder
Source = str | os.PathLike[str] | Tensor | dict[str, Any]


@dataclass(frozen=True)
class LearnedWord:
    """A word of prompts and the vectors that it becomes, one or more."""

    word: str
    vectors: Float[Tensor, "n d"]


class TextualInversionNames:
    """What Diffusers' pipelines have for textual inversion, under its names.

    A word of several vectors is as many tokens, "<cat>", "<cat>_1", …; whoever writes the first in a prompt gets all.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Source | list[Any],
        token: str | list[str] | None = None,
        *,
        weight_name: str | None = None,
        revision: str = "main",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = True,
    ) -> None:
        """Know the words of a file, of a folder's learned_embeds, of a hub id in the local cache, of a tensor or a
        dictionary as in a file; or of each of a list of these.

        `token` is the word for it, or a list of one for each; None is what the file says, or its name.
        Raises UserError, and changes nothing, for a file of another kind or model, and for a word that is known.
        """
        sources = pretrained_model_name_or_path
        listed = sources if isinstance(sources, list) else [sources]
        tokens = token if isinstance(token, list) else [token] * len(listed)
        if len(tokens) != len(listed):
            raise UserError(f"{len(listed)} learned words and {len(tokens)} tokens: give one token for each")
        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
        words = [
            word for one, name in zip(listed, tokens, strict=True) for word in read_words(one, name, weight_name, **hub)
        ]
        add_words(self.tokenizer, self.text_encoder, words)

    def unload_textual_inversion(self, tokens: str | list[str] | None = None) -> None:
        """Forget these words, or all. Raises UserError for one that was not learned."""
        names = [tokens] if isinstance(tokens, str) else tokens
        remove_words(self.tokenizer, self.text_encoder, names)


def read_words(
    source: Source, token: str | None = None, weight_name: str | None = None, **hub: Any
) -> list[LearnedWord]:
    """The words of a source, see `TextualInversionNames.load_textual_inversion`."""
    if isinstance(source, Tensor | dict):
        content: Any = source
        where, stem = "the given tensors", None
    else:
        path = find_model(source, files=[weight_name or f"{FILE_STEM}.*"], **hub)
        if path.is_dir():
            path = _file_in(path, weight_name)
        content = read_weights(path) if is_safetensors(path) else read_pickled(path)
        where, stem = str(path), path.stem
    found = _by_word(content, where, token or stem)
    if token is not None:
        if len(found) != 1:
            raise UserError(f"{where} has {len(found)} words: leave the token out")
        found = {token: next(iter(found.values()))}
    return [LearnedWord(word, _vectors(vectors, where)) for word, vectors in found.items()]


def add_words(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, words: Sequence[LearnedWord]) -> None:
    """Give `tokenizer` the words and `text_encoder` their vectors, both in place: whoever shares them knows them, too.

    Raises UserError, and changes nothing, if a learned word or a token is called so already, or vectors are of another
    width. A word of the vocabulary's own, whose token ends in "</w>", is taken over, as in Diffusers.
    """
    if not words:
        raise UserError("there is no word to learn: give at least one")
    added = tokenizer.added
    known = {normalise(name) for name in added.ids} | set(tokenizer.vocab)
    table = text_encoder.text_model.embeddings.token_embedding.weight.detach()
    named: dict[str, Tensor] = {}
    for one in words:
        if one.vectors.shape[1] != table.shape[1]:
            raise UserError(
                f"{one.word} has vectors of width {one.vectors.shape[1]}, the text encoder's have {table.shape[1]}: "
                "it was learned for another model"
            )
        for i, vector in enumerate(one.vectors):
            name = f"{one.word}_{i}" if i else one.word
            if not name.strip() or name in tokenizer.vocab or normalise(name) in known:
                raise UserError(f"the word {name!r} is known already: choose another")
            named[name] = vector
            known.add(normalise(name))
        if normalise(f"{one.word}_{len(one.vectors)}") in known:
            raise UserError(f"the word {one.word!r} would take in {one.word}_{len(one.vectors)}: choose another")
    first = len(tokenizer)
    ids = {name: first + i for i, name in enumerate(named)}
    tokens = {name: AddedToken(name, normalized=True, special=False) for name in named}
    vectors = torch.stack([vector.to(table.device, table.dtype) for vector in named.values()])
    text_encoder.give_tokens(torch.cat([table[:first], vectors, table[first + len(vectors) :]]))
    tokenizer.take_added(replace(added, ids=added.ids | ids, tokens=added.tokens | tokens))


def remove_words(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, words: Sequence[str] | None = None) -> None:
    """Undo `add_words` for these words, or for all: the ids of those learned later move down."""
    added = tokenizer.added
    learned = [name for name, token in added.tokens.items() if not token.special and name not in tokenizer.vocab]
    if words is not None:
        unknown = [word for word in words if word not in learned]
        if unknown:
            raise UserError(f"{unknown[0]!r} is no learned word: there are {', '.join(learned) or 'none'}")
        learned = [name for word in words for name in added.whole(word)]
    gone = {added.ids[name] for name in learned}
    kept = sorted(set(range(text_encoder.config.vocab_size)) - gone)
    new_id = {old: new for new, old in enumerate(kept)}
    table = text_encoder.text_model.embeddings.token_embedding.weight.detach()
    text_encoder.give_tokens(table[kept])
    ids = {name: new_id[i] for name, i in added.ids.items() if name not in learned}
    tokens = {name: token for name, token in added.tokens.items() if name not in learned}
    tokenizer.take_added(replace(added, ids=ids, tokens=tokens))


def _by_word(content: Any, where: str, stem: str | None) -> dict[str, Any]:
    """word -> vectors, as a file has them. Where it names none, the file's own name is the word."""

    def own(vectors: Any) -> dict[str, Any]:
        if stem is None:
            raise UserError(f"{where} name no word: give one, token='<...>'")
        return {stem: vectors}

    if isinstance(content, Tensor):
        return own(content)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where} is no learned word: get another file")
    if {"clip_l", "clip_g"} & set(content):
        raise UserError(f"{where} is for SDXL: miniai runs Stable Diffusion 1.x and 2.x")
    if "string_to_param" in content:
        params = content["string_to_param"]
        if not isinstance(params, Mapping) or len(params) != 1:
            raise UserError(f"{where} has no single entry in string_to_param: get another file")
        (vectors,) = params.values()
        return {content["name"]: vectors} if isinstance(content.get("name"), str) else own(vectors)
    if set(content) == {"emb_params"}:
        return own(content["emb_params"])
    if not all(isinstance(word, str) for word in content):
        raise UserError(f"{where} is no learned word: get another file")
    return dict(content)


def _vectors(values: Any, where: str) -> Float[Tensor, "n d"]:
    is_vectors = isinstance(values, Tensor) and values.ndim in (1, 2) and values.is_floating_point()
    if not is_vectors or not values.numel():
        raise UserError(f"{where} is no learned word: expected vectors of numbers")
    if not values.isfinite().all():
        raise UserError(f"{where} holds numbers that are not finite: get the file again")
    return values.detach().reshape(-1, values.shape[-1])


def _file_in(folder: Path, weight_name: str | None) -> Path:
    names = [weight_name] if weight_name else [f"{FILE_STEM}.safetensors", f"{FILE_STEM}.bin"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {names[0]}: name the file")
