"""Tokens that stand beside the byte-pair vocabulary: start and end of text, padding, the names of learned concepts.

A checkpoint's folder may speak of them in four places, which have grown over the years; this is what
`transformers.CLIPTokenizer.from_pretrained` makes of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.sd.bpe import END_OF_TEXT, START_OF_TEXT
from miniai.sd.clip_text import normalise

_ROLES = {"bos_token": START_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": END_OF_TEXT}


@dataclass(frozen=True)
class AddedToken:
    """`content` is found in the raw text, or, if `normalized`, in the normalised one (so in any case of letters)."""

    content: str
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class AddedTokens:
    """Every added token with its id, and the four tokens with a role."""

    ids: dict[str, int]
    tokens: dict[str, AddedToken]
    bos: str = START_OF_TEXT
    eos: str = END_OF_TEXT
    unk: str = END_OF_TEXT
    pad: str = END_OF_TEXT

    def fragments(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut `text` at the added tokens: (token, id), or (normalised text, None) for what lies between."""
        for raw, token_id in _cut(text, {name: self.ids[name] for name, t in self.tokens.items() if not t.normalized}):
            if token_id is not None:
                yield raw, token_id
            else:
                normalized = {normalise(name): self.ids[name] for name, t in self.tokens.items() if t.normalized}
                yield from _cut(normalise(raw), normalized)

    def whole(self, name: str) -> list[str]:
        """The tokens that `name` stands for: those learned as one word are called name, name_1, name_2, …"""
        names = [name]
        while f"{name}_{len(names)}" in self.ids:
            names.append(f"{name}_{len(names)}")
        return names


def _cut(text: str, ids: Mapping[str, int]) -> Iterator[tuple[str, int | None]]:
    """The leftmost token first, of several that start there the longest."""
    if not ids:
        yield text, None
        return
    pattern = "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True))
    for i, part in enumerate(re.split(f"({pattern})", text)):
        if part:
            yield part, (ids[part] if i % 2 else None)


def plain_added_tokens(vocab: Mapping[str, int]) -> AddedTokens:
    """Those of a fresh vocabulary: start of text, and end of text that also pads and stands for what is unknown."""
    names = (START_OF_TEXT, END_OF_TEXT)
    return AddedTokens({name: vocab[name] for name in names}, {name: AddedToken(name) for name in names})


def read_added_tokens(folder: Path, config: dict[str, Any], vocab: Mapping[str, int]) -> AddedTokens:
    """Collect the added tokens of a tokenizer folder; `config` is the content of its tokenizer_config.json.

    In order: `added_tokens_decoder` of the config if it is there; else special_tokens_map.json, added_tokens.json, and
    the `added_tokens` of tokenizer.json. A role given as a plain string is matched in the raw text. A token that the
    vocabulary lacks gets the next free id.
    """
    roles: dict[str, Any] = dict(config)
    declared: dict[str, AddedToken] = {}
    where = folder / "tokenizer_config.json"
    if "added_tokens_decoder" in config:
        decoder = _mapping(config["added_tokens_decoder"], where)
        for key in sorted(decoder, key=lambda key: (len(key), key)):  # by number
            token = _token(decoder[key], special=False, where=where)
            declared[token.content] = token
    else:
        where = folder / "special_tokens_map.json"
        if where.is_file():
            entries = _mapping(read_json(where), where)
            roles |= {k: {**v, "special": True} if isinstance(v, dict) else v for k, v in entries.items()}
        declared |= _legacy(folder, roles)
    chosen = {role: declared.get(_content(roles.get(role) or default, where)) or roles.get(role) or default
              for role, default in _ROLES.items()}  # fmt: skip
    tokens = dict(declared)
    for value in [*chosen.values(), *_extra(roles, where)]:
        token = value if isinstance(value, AddedToken) else _token(value, special=True, where=where)
        if token.content not in declared:
            tokens[token.content] = token
    ids: dict[str, int] = {}
    for name in tokens:
        ids[name] = vocab[name] if name in vocab else max([len(vocab) - 1, *ids.values()]) + 1
    bos, eos, unk, pad = (_content(value, where) for value in chosen.values())
    return AddedTokens(ids, tokens, bos, eos, unk, pad)


def added_tokens_entries(added: AddedTokens) -> dict[str, Any]:
    """What tokenizer_config.json says of them: id -> properties, and the roles."""
    decoder = {
        str(added.ids[name]): {
            "content": name,
            "lstrip": False,
            "normalized": token.normalized,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for name, token in sorted(added.tokens.items(), key=lambda item: added.ids[item[0]])
    }
    return {"added_tokens_decoder": decoder, **special_tokens_map(added)}


def special_tokens_map(added: AddedTokens) -> dict[str, Any]:
    return {"bos_token": added.bos, "eos_token": added.eos, "pad_token": added.pad, "unk_token": added.unk}


def _legacy(folder: Path, roles: Mapping[str, Any]) -> dict[str, AddedToken]:
    declared: dict[str, AddedToken] = {}
    where = folder / "added_tokens.json"
    if where.is_file():
        specials = {_content(roles[role], where) for role in _ROLES if roles.get(role)}
        specials |= {_content(value, where) for value in _extra(roles, where)}
        entries = _mapping(read_json(where), where)
        for name in sorted(entries, key=lambda name: entries[name]):
            declared[name] = AddedToken(name, normalized=name not in specials, special=name in specials)
    where = folder / "tokenizer.json"
    if where.is_file():
        for entry in _mapping(read_json(where), where).get("added_tokens") or []:
            token = _token(entry, special=False, where=where)
            declared[token.content] = token
    return declared


def _extra(roles: Mapping[str, Any], where: Path) -> list[Any]:
    extra = [*(roles.get("additional_special_tokens") or []), *(roles.get("extra_special_tokens") or [])]
    return [value for value in extra if _content(value, where)]


def _content(value: Any, where: Path) -> str:
    content = value.content if isinstance(value, AddedToken) else value
    content = content.get("content") if isinstance(content, dict) else content
    if not isinstance(content, str):
        raise UserError(f"{where}: a token is neither text nor an object with a content: {value!r}; get the file again")
    return content


def _token(value: Any, special: bool, where: Path) -> AddedToken:
    """A plain string, or an object with the token's properties."""
    if isinstance(value, str):
        return AddedToken(value, normalized=not special, special=special)
    content = _content(value, where)
    if value.get("single_word"):
        raise UserError(f"{where}: token {content!r} is single_word, which is not supported; set it to false")
    is_special = bool(value.get("special", special))
    normalized = bool(value.get("normalized", not is_special))
    return AddedToken(content, normalized, is_special or special)


def _mapping(value: Any, where: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object; get the file again")
    return value
