"""The tokenizer of the lowest floor against the one above it, which equals transformers'."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import few
from tiny_model import tiny_tokenizer

from miniai.recipes.generate_request import packaged_model
from miniai.scratch.tokenizer import CLIPTokenizer
from miniai.sd.tokenizer import CLIPTokenizer as UpperTokenizer

TEXTS = [
    "a red apple, twemoji style",
    "A  Smiling\tCat\nwith\u3000sunglasses",
    "it's they're I've i'm we'll he'd don't 'sun' ''s !'s 'S",
    "2024 1st x2 ½ ² Ⅷ ٣",
    "naïve café, cafe\u0301, ÅNGSTRÖM, ΣΊΣΥΦΟΣ, İstanbul, ß",
    "猫が好き 🎸👍🏽 👩\u200d🚀 \ufe0f",
    "<|startoftext|>cat<|endoftext|> dog <|endoftext|",
    "a\ud800b \x1c \x85 \xa0 \u200b",
    "",
    "   ",
    "word" * 300,
    "~!@#$%^&*()_+{}|:\"<>?`-=[]\\;',./",
]
alphabet = st.sampled_from("aBcéÉßΣσς İı'stremdlv0123½²Ⅷ猫の🎸👍🏽\u0301\u200d\xa0\u3000\t\n\x1c\x85!?.-_<|> ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def equal() -> Callable[[str], None]:
    """Fails unless both tokenizers, with the packaged vocabulary, make the same ids and the same window of a text."""
    ours = CLIPTokenizer.from_pretrained(packaged_model() / "tokenizer")
    theirs = UpperTokenizer.from_pretrained(packaged_model() / "tokenizer")
    assert len(ours) == len(theirs)

    def check(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text), ascii(text)
        assert ours(text) == theirs([text])[0].tolist(), ascii(text)

    return check


@pytest.mark.parametrize("text", TEXTS)
def test_texts_become_the_ids_of_the_tokenizer_above(equal: Callable[[str], None], text: str) -> None:
    equal(text)


@few
@given(st.text(alphabet, max_size=30))
def test_any_text_becomes_the_ids_of_the_tokenizer_above(equal: Callable[[str], None], text: str) -> None:
    equal(text)


def test_a_token_that_was_added_is_found_in_the_text_the_longest_first(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"] |= {"900": {"content": "<x"}, "901": {"content": "<x>"}}
    path.write_text(json.dumps(config))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("<x><x") == [901, 900]
    assert len(tokenizer) == 902


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{}", "vocab.json: a token's id is not a whole number"),
        ("vocab.json", '{"a": "0"}', "vocab.json: a token's id is not a whole number"),
        ("vocab.json", "<html>", "vocab.json is not JSON"),
        ("merges.txt", "zz qq\n", "'zz qq' makes no token of vocab.json"),
        ("tokenizer_config.json", '{"model_max_length": 1}', "model_max_length must be a whole number of at least 2"),
        ("tokenizer_config.json", '{"bos_token": 3}', "3 is no token"),
        ("tokenizer_config.json", '{"bos_token": "<bos>"}', "no id for '<bos>'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "does not map ids to tokens"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"9": {"content": "x", "single_word": true}}}',
            "'x' is matched in a way that is not supported here",
        ),
    ],
)
def test_a_damaged_tokenizer_is_named_with_its_fault(
    folder: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        CLIPTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
