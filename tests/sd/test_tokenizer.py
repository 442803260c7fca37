"""The tokenizer against `transformers.CLIPTokenizer`, on vocabularies trained here."""

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.base.errors import UserError
from miniai.sd.added_tokens import AddedToken
from miniai.sd.bpe import END_OF_TEXT, START_OF_TEXT, apply_merges, train_bpe
from miniai.sd.clip_text import split_words
from miniai.sd.tokenizer import CLIPTokenizer

logging.getLogger("transformers").setLevel(logging.ERROR)

CAPTIONS = [
    f"{adjective} {thing}, {style} style"
    for adjective in ("a smiling", "a red", "the sleepy", "it's a", "2 happy", "naïve")
    for thing in ("cat", "cats in sunglasses", "café", "grinning face", "guitar 🎸", "猫", "wood house", "woodhouses")
    for style in ("noto", "twemoji", "fluent")
]
N = 16


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.train(CAPTIONS, vocab_size=700, model_max_length=N)


@pytest.fixture(scope="module")
def folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def equal(tokenizer: CLIPTokenizer, oracle: Any) -> Callable[[str], None]:
    """Fails unless both tokenizers make the same ids, the same padded window and the same text again."""

    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == oracle(text, add_special_tokens=False).input_ids, ascii(text)
        padded = oracle(text, padding="max_length", max_length=N, truncation=True).input_ids
        assert tokenizer([text])[0].tolist() == padded, ascii(text)
        assert tokenizer.decode(ids) == oracle.decode(ids), ascii(text)

    return check


pieces = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.characters(categories=["Mn", "Mc", "Me"]),
    st.characters(categories=["Lu", "Ll", "Lt", "N"]),
    st.characters(max_codepoint=0x2FF),
    st.sampled_from(
        ["'s", "'LL", "''re", START_OF_TEXT, END_OF_TEXT, "<|STARTOFTEXT|>", "<|", "|>", "Σ", "İ", "ß", "ǅ", "\u0301",
         "\u3099", "か", "\u1100\u1161\u11a8", "각",
         "🐱", "👩‍👩‍👧", "🏳️‍🌈", "猫", " ", "\n", "\u00a0", "\x1c", "\x85", "\x00", "</w>",
         "smiling cat", "sunglasses", "fluent style", "½", "٣", "ⅷ"]
    ),
)  # fmt: skip


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(pieces, max_size=25).map("".join))
def test_any_text_is_encoded_as_transformers_does(equal: Callable[[str], None], text: str) -> None:
    equal(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n\t ", "a cat in sunglasses, noto style", "It's NOT the cats' 1234 ½ cafés",
     "猫が好き 고양이 قطة кошка γάτα",
     "ΟΔΥΣΣΕΥΣ ΣΑΣ", "İstanbul ISTANBUL", "e\u0301 \u00e9 o\u0302\u0323", "🐱😎 👩‍🚀🏽 🇫🇷 ❤️",
     "<|endoftext|><|startoftext|>x",
     "<|STARTOFTEXT|>!!", "!<|ENDOFTEXT|>!", "\x00\x01\x1f\x7f\x85\ufeff\u200d", "cat " * 500, "x" * 5000, "!?" * 900]
)  # fmt: skip
def test_this_text_is_encoded_as_transformers_does(equal: Callable[[str], None], text: str) -> None:
    equal(text)


def test_every_code_point_is_normalised_and_classed_as_in_transformers(tokenizer: CLIPTokenizer, oracle: Any) -> None:
    """A letter joins with its neighbours, a number stands alone, a mark may change places with the two beside it."""
    # Every 97th of the large blocks (ideographs, hieroglyphs, private use), and every one of the rest.
    blocks = [(0x3400, 0xA000), (0xAC00, 0xD700), (0xD800, 0xF900), (0x12000, 0x16800), (0x17000, 0x18B00)]
    blocks += [(0x1A000, 0x1AFF0), (0x1D800, 0x1DF00), (0x20000, 0x110000)]
    skipped = {i for first, end in blocks for i in range(first, end) if i % 97 or 0xD800 <= i < 0xE000}
    chosen = [chr(i) for i in range(0x110000) if i not in skipped]
    assert len(chosen) > 40_000
    texts = [" ".join(f"q\u0315{c}\u0334Q" for c in chosen[i : i + 50]) for i in range(0, len(chosen), 50)]
    for text, ids in zip(texts, oracle(texts, add_special_tokens=False).input_ids, strict=True):
        assert tokenizer.encode(text) == ids, ascii(text)


def test_random_vocabulary_order_is_applied_as_in_transformers(tmp_path: Path) -> None:
    """Merges in an order that no training gives, with several spellings of a token, still merge alike."""
    alphabet = list("abc")
    vocab, _ = train_bpe([], 514)
    tokens = [token for token in vocab if token not in (START_OF_TEXT, END_OF_TEXT)]
    generator = random.Random(0)
    known = alphabet + [c + "</w>" for c in alphabet]
    merges = []
    for _ in range(60):
        pair = (generator.choice([t for t in known if "</w>" not in t and len(t) < 5]), generator.choice(known))
        if pair not in merges:
            merges.append(pair)
            known.append("".join(pair))
    head, tail = merges[:30], merges[30:]
    generator.shuffle(tail)
    tokens = list(dict.fromkeys([*tokens, *known, START_OF_TEXT, END_OF_TEXT]))
    ours = CLIPTokenizer({token: i for i, token in enumerate(tokens)}, tail + head)
    ours.save_pretrained(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for _ in range(500):
        text = "".join(generator.choices("aabbcc ", k=30))
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


def test_saved_tokenizer_loads_with_the_same_vocabulary_and_files(
    tokenizer: CLIPTokenizer, folder: Path, oracle: Any, tmp_path: Path
) -> None:
    names = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in folder.iterdir()} == names
    again = CLIPTokenizer.from_pretrained(folder)
    assert (again.vocab, again.merges, again.added) == (tokenizer.vocab, tokenizer.merges, tokenizer.added)
    again.save_pretrained(tmp_path)
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert oracle.get_vocab() == tokenizer.vocab
    assert (oracle.model_max_length, len(oracle)) == (N, len(tokenizer))
    assert oracle.pad_token_id == oracle.eos_token_id == tokenizer.pad_id == tokenizer.vocab[END_OF_TEXT]


def test_folder_that_transformers_saved_loads_here(tokenizer: CLIPTokenizer, oracle: Any, tmp_path: Path) -> None:
    oracle.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert (again.vocab, again.merges, again.model_max_length) == (tokenizer.vocab, tokenizer.merges, N)
    for text in CAPTIONS:
        assert again([text]).equal(tokenizer([text]))


def _as_token(content: str, normalized: bool, typed: bool) -> dict[str, Any]:
    kind = {"__type": "AddedToken"} if typed else {}
    return {
        **kind,
        "content": content,
        "lstrip": False,
        "normalized": normalized,
        "rstrip": False,
        "single_word": False,
    }


def _roles(normalized: bool, pad: Any, typed: bool) -> dict[str, Any]:
    start, end = _as_token(START_OF_TEXT, normalized, typed), _as_token(END_OF_TEXT, normalized, typed)
    return {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}


_DECODER = {
    "0": {**_as_token("!", False, False), "special": True},
    "400": {**_as_token(START_OF_TEXT, True, False), "special": True},
    "401": {**_as_token(END_OF_TEXT, False, False), "special": True},
}
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, dict[str, int] | None]] = {
    "Stable Diffusion 1.5": (_roles(True, END_OF_TEXT, True), _roles(True, END_OF_TEXT, False), None),
    "Stable Diffusion 2, padded with !": (_roles(True, "!", True), _roles(True, "!", False), None),
    "SDXL's second, with a decoder": (
        {"added_tokens_decoder": _DECODER, "bos_token": START_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": "!"},
        _roles(True, "!", False), None),
    "a learned concept": (
        _roles(True, END_OF_TEXT, True), _roles(True, END_OF_TEXT, False), {"<cat-toy>": 702, "<x>": 701}),
    "extra special tokens": ({"extra_special_tokens": ["<Extra>", "café"]}, None, None),
    "nothing but the vocabulary": ({}, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_added_tokens_are_read_as_transformers_reads_them(name: str, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    config, roles, added = FOLDERS[name]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": N, **config}))
    (tmp_path / "special_tokens_map.json").unlink()
    if roles is not None:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    if added is not None:
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = CLIPTokenizer.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "saved")
    again = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    theirs_again = transformers.CLIPTokenizer.from_pretrained(tmp_path / "saved")
    assert again.added == ours.added
    assert len(ours) == len(theirs)
    generator = random.Random(0)
    parts = [START_OF_TEXT, "<|ENDOFTEXT|>", END_OF_TEXT, "<cat-toy>", "<CAT-toy>", "<x>", "!", "!!", " ", "cat", "A",
             "<extra>", "<Extra>", "cafe\u0301", "café"]  # fmt: skip
    for _ in range(200):
        text = "".join(generator.choices(parts, k=6))
        expected = theirs(text, padding="max_length", max_length=N, truncation=True).input_ids
        assert ours([text])[0].tolist() == expected, text
        assert again([text])[0].tolist() == expected, text
        assert theirs_again(text, padding="max_length", max_length=N, truncation=True).input_ids == expected, text


def test_batch_has_the_shape_of_the_window_and_starts_and_ends_rightly(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer(["", "cat", "cat " * 100])
    assert ids.shape == (3, N)
    assert ids.dtype == torch.int64
    assert (ids[:, 0] == tokenizer.bos_id).all()
    assert (ids[:, -1] == tokenizer.eos_id).all()
    assert tokenizer([]).shape == (0, N)


def test_cut_is_empty_exactly_when_the_text_fits(tokenizer: CLIPTokenizer) -> None:
    words = ["cat"] * (N - 2)
    assert len(tokenizer.encode(" ".join(words))) == N - 2
    assert tokenizer.cut(" ".join(words)) == ""
    assert tokenizer.cut(" ".join([*words, "GRINNING", "face"])) == "grinning face"


def test_training_gives_the_same_vocabulary_whatever_the_order_of_the_captions() -> None:
    shuffled = random.Random(1).sample(CAPTIONS, len(CAPTIONS))
    assert train_bpe(CAPTIONS, 700) == train_bpe(shuffled, 700)


def _train_naively(texts: list[str], n_merges: int) -> list[tuple[str, str]]:
    """Algorithm 1 of Sennrich et al., counting all pairs anew after each merge."""
    words = [list(word[:-1]) + [word[-1] + "</w>"] for text in texts for word in split_words(text)]
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges:
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        made = {"".join(pair) for pair in merges}
        ranked = sorted((-n, pair) for pair, n in counts.items() if n > 1 and "".join(pair) not in made)
        if not ranked:
            break
        merges.append(ranked[0][1])
        words = [apply_merges(word, {ranked[0][1]: 0}) for word in words]
    return merges


def test_training_merges_the_most_frequent_pair_first() -> None:
    generator = random.Random(2)
    texts = ["".join(generator.choices("aaabbc ", k=40)) for _ in range(15)]
    expected = _train_naively(texts, 40)
    assert len(expected) == 40
    assert train_bpe(texts, 514 + 40)[1] == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text("ab ", max_size=20), max_size=8))
def test_training_never_spells_a_token_twice(texts: list[str]) -> None:
    vocab, merges = train_bpe(texts, 600)
    assert merges == _train_naively(texts, 600 - 514)
    assert len(vocab) == 514 + len(merges)
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_frequent_words_become_one_token(tokenizer: CLIPTokenizer) -> None:
    assert 514 < len(tokenizer) <= 700
    assert len(tokenizer.encode("a cat, noto style")) == 5
    assert len(tokenizer.encode("smiling")) == 1


def test_hundred_thousand_captions_give_a_whole_vocabulary() -> None:
    generator = random.Random(3)
    words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(generator.choices(words, k=6)) for _ in range(100_000)]
    vocab, _ = train_bpe(texts, 4096)  # a quadratic algorithm would take hours here
    assert len(vocab) == 4096


def test_word_of_a_million_letters_is_encoded(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer.encode("smile" * 200_000)) > 100_000  # a quadratic algorithm would take hours here


def test_lone_surrogate_reads_as_the_replacement_character(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="514"):
        train_bpe(["cat"], 513)


DAMAGE: dict[str, tuple[str, str | None]] = {
    "vocab.json is missing": ("vocab.json", None),
    "merges.txt is missing": ("merges.txt", None),
    "vocab.json cut short": ("vocab.json", '{"a": 0, "b'),
    "vocabulary is a list": ("vocab.json", "[1, 2]"),
    "vocabulary is empty": ("vocab.json", "{}"),
    "id is text": ("vocab.json", '{"a": "0"}'),
    "two tokens share an id": ("vocab.json", '{"a": 0, "b": 0}'),
    "another model's merges": ("merges.txt", "#version: 0.2\nzzzz qqqq\n"),
    "merge of three": ("merges.txt", "#version: 0.2\na b c\n"),
    "config is not JSON": ("tokenizer_config.json", "<!doctype html>"),
    "config is a list": ("tokenizer_config.json", "[]"),
    "window of one": ("tokenizer_config.json", '{"model_max_length": 1}'),
    "window is text": ("tokenizer_config.json", '{"model_max_length": "long"}'),
    "start token is a number": ("tokenizer_config.json", '{"added_tokens_decoder": {}, "bos_token": 3}'),
    "decoder is a list": ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
    "single_word token": (
        "tokenizer_config.json", '{"added_tokens_decoder": {"0": {"content": "!", "single_word": true}}}'),
    "added tokens is a list": ("added_tokens.json", "[]"),
    "tokenizer.json of another kind": ("tokenizer.json", '{"model": {"type": "Unigram"}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder_is_one_clear_line_that_names_the_file(name: str, folder: Path, tmp_path: Path) -> None:
    file_name, content = DAMAGE[name]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if "added_tokens" in file_name:
        (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / file_name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file_name).write_text(content)
    with pytest.raises(UserError) as raised:
        CLIPTokenizer.from_pretrained(tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message
    assert "\n" not in message


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        CLIPTokenizer.from_pretrained(tmp_path / "nowhere")


def test_added_token_is_matched_longest_first(tokenizer: CLIPTokenizer) -> None:
    ids = {"<x": 900, "<x>": 901}
    added = type(tokenizer.added)(
        {**tokenizer.added.ids, **ids}, {**tokenizer.added.tokens, **{name: AddedToken(name) for name in ids}}
    )
    longer = CLIPTokenizer(tokenizer.vocab, tokenizer.merges, N, added)
    assert longer.encode("<x><x") == [901, 900]
    assert len(longer) == 902
