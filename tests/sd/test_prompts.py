"""Weights in prompts, read as A1111 and as ComfyUI read them, and prompts longer than the window."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import WINDOW, tiny_pipeline, tiny_tokenizer

from miniai.base.errors import UserError, UserNotice
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.prompt_chunks import Token, into_chunks, windows
from miniai.sd.prompt_weights import SYNTAXES, Weighted, a1111, comfyui
from miniai.sd.prompts import PromptReader, weigh_against, weigh_and_restore_mean

LONG = "a cat, a red apple, a rocket in the sky, a smiling cat with sunglasses, a red cat on a rocket in the sky"


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    made = tiny_pipeline()
    norm = made.text_encoder.text_model.final_layer_norm
    with torch.no_grad():  # as in a trained model: without it every mean is zero
        norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
        norm.bias.copy_(torch.linspace(-0.3, 0.6, len(norm.bias)))
    return made


def reader(pipe: StableDiffusionPipeline, **options: Any) -> PromptReader:
    return PromptReader(pipe.tokenizer, pipe.text_encoder, **options)


def paint(pipe: StableDiffusionPipeline, **changes: Any) -> torch.Tensor:
    request = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "latent"}
    return pipe(**request | changes, generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [  # the documented examples of A1111's parser
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a ", 1.0), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1.0), (" a ", 1.1)],
                *[("hill", 0.55), (", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1)],
            ],
        ),
        # and what follows from its rules
        ("a (word:1.3)", [("a ", 1.0), ("word", 1.3)]),
        ("(word: .5 )", [("word", 0.5)]),
        ("((word))", [("word", 1.1 * 1.1)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("[a (b:2)]", [("a ", 1 / 1.1), ("b", 2 / 1.1)]),
        ("(a:-1)", [("a", -1.0)]),
        ("a: b) c] :1)", [("a: b) c] :1)", 1.0)]),
        (r"a\\b \c", [(r"a\b c", 1.0)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
    ],
)
def test_weights_are_read_as_a1111_reads_them(prompt: str, expected: list[Weighted]) -> None:
    (section,) = a1111(prompt)
    assert [text for text, _ in section] == [text for text, _ in expected]
    assert [weight for _, weight in section] == pytest.approx([weight for _, weight in expected], rel=1e-12)


def test_break_begins_a_new_section_in_a1111s_reading_alone() -> None:
    assert a1111("a cat BREAK (a rocket)") == [[("a cat", 1.0)], [("a rocket", 1.1)]]
    assert a1111("(a BREAK b)") == [[("a", 1.1)], [("b", 1.1)]]
    assert a1111("BREAKFAST") == [[("BREAKFAST", 1.0)]]
    assert len(comfyui("a BREAK b")) == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("a (word:1.3)", [("a ", 1.0), ("word", 1.3)]),
        ("((word))", [("word", 1.1 * 1.1)]),
        ("((word:1.3))", [("word", 1.3)]),  # what is written counts alone
        ("(a (b:1.2) c:1.5)", [("a ", 1.5), ("b", 1.2), (" c", 1.5)]),
        ("(a: b)", [("a: b", 1.1)]),
        ("(:2)", [(":2", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("[word]", [("[word]", 1.0)]),
        (r"\(word\)", [("(word)", 1.0)]),
        ("(open", [("(open", 1.0)]),
        ("a) (b:2)", [("a) (b:2)", 1.0)]),  # one that closes nothing takes the next pair's meaning
        ("a) ((b:2)", [("a) (", 1.0), ("b", 2.0)]),
        ("(a (b)", [("a (b", 1.1)]),  # nor does it see which of two was meant
        ("", [("", 1.0)]),
    ],
)
def test_weights_are_read_as_comfyui_reads_them(prompt: str, expected: list[Weighted]) -> None:
    (section,) = comfyui(prompt)
    assert [text for text, _ in section] == [text for text, _ in expected]
    assert [weight for _, weight in section] == pytest.approx([weight for _, weight in expected], rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab (:)[]\\1.,", max_size=40), st.sampled_from(sorted(SYNTAXES)))
def test_any_text_is_read_in_every_syntax_and_loses_no_letter(prompt: str, syntax: str) -> None:
    sections = SYNTAXES[syntax](prompt)
    letters = "".join(text for section in sections for text, _ in section)
    assert re.sub("[^ab]", "", letters) == re.sub("[^ab]", "", prompt)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab ,.!", max_size=40), st.sampled_from(sorted(SYNTAXES)))
def test_text_without_brackets_is_the_same_in_every_syntax(prompt: str, syntax: str) -> None:
    assert SYNTAXES[syntax](prompt) == [[(prompt, 1.0)]]


def tokens(*ids: int) -> list[Token]:
    return [Token(i) for i in ids]


def test_chunks_are_filled_to_the_window_and_sections_begin_anew() -> None:
    tokenizer = tiny_tokenizer()
    numbers = list(range(300, 340))
    whole = into_chunks(tokenizer, [tokens(*numbers)])
    assert [len(chunk) for chunk in whole] == [14, 14, 12]
    assert [token.token_id for chunk in whole for token in chunk] == numbers
    assert into_chunks(tokenizer, [[]]) == [[]]
    assert into_chunks(tokenizer, [tokens(300), tokens(301)]) == [tokens(300), tokens(301)]
    assert into_chunks(tokenizer, [tokens(300), []]) == [tokens(300)]  # a BREAK at the end adds nothing
    assert into_chunks(tokenizer, [[], tokens(300)]) == [[], tokens(300)]


def test_a_chunk_that_would_cut_a_phrase_ends_at_its_last_comma() -> None:
    tokenizer = tiny_tokenizer()
    comma = tokenizer.vocab[",</w>"]
    before, phrase = list(range(300, 308)), list(range(320, 330))
    chunks = into_chunks(tokenizer, [tokens(*before, comma, *phrase)])
    assert chunks == [tokens(*before, comma), tokens(*phrase)]
    full = list(range(300, 314))
    assert into_chunks(tokenizer, [tokens(*full, comma, 320)]) == [tokens(*full), tokens(comma, 320)]


def test_a_comma_further_back_than_a1111_looks_is_passed_over() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 32
    comma = tokenizer.vocab[",</w>"]
    for n_after, kept in ((19, 11), (20, 11), (21, 30)):
        before = [300] * (30 - 1 - n_after) if kept == 30 else [300] * (29 - n_after)
        chunks = into_chunks(tokenizer, [tokens(*before, comma, *[301] * (n_after + 1))])
        assert len(chunks[0]) == (30 - n_after if n_after < 20 else 30)


@pytest.mark.parametrize("syntax", ["a1111", "comfyui"])
def test_weight_one_everywhere_is_the_plain_prompt(pipe: StableDiffusionPipeline, syntax: Any) -> None:
    plain = paint(pipe, prompt="a red apple, a cat")
    assert torch.equal(paint(pipe, prompt="a red apple, a cat", prompt_syntax=syntax), plain)
    assert torch.equal(paint(pipe, prompt="(a red apple:1), a cat", prompt_syntax=syntax), plain)
    assert not torch.allclose(paint(pipe, prompt="(a red apple:1.5), a cat", prompt_syntax=syntax), plain)


def test_a_prompt_that_fits_is_the_same_in_chunks_as_plain(pipe: StableDiffusionPipeline) -> None:
    assert torch.equal(paint(pipe, long_prompts="chunks"), paint(pipe))


@pytest.mark.parametrize("syntax", ["a1111", "comfyui"])
def test_brackets_that_mean_nothing_by_default_are_text(pipe: StableDiffusionPipeline, syntax: Any) -> None:
    assert not torch.allclose(paint(pipe, prompt="(cat:1.5)"), paint(pipe, prompt="(cat:1.5)", prompt_syntax=syntax))


def test_a_weight_scales_its_own_tokens_and_the_mean_is_restored(pipe: StableDiffusionPipeline) -> None:
    plain = reader(pipe).encode(["a cat"])[0]
    weighted = reader(pipe, syntax="a1111").encode(["a (cat:1.5)"])[0]
    place = pipe.tokenizer(["a cat"])[0].tolist().index(pipe.tokenizer.eos_id) - 1  # of the cat, one token
    assert len(pipe.tokenizer.encode("cat")) == 1
    ratio = weighted / plain
    assert torch.allclose(weighted.mean(), plain.mean(), rtol=1e-5, atol=1e-6)
    others = [i for i in range(WINDOW) if i != place]
    assert torch.allclose(ratio[others], ratio[0, 0].expand_as(ratio[others]), rtol=1e-4)
    assert torch.allclose(ratio[place], 1.5 * ratio[0, 0].expand_as(ratio[place]), rtol=1e-4)


def test_comfyui_weighs_the_distance_from_the_empty_text(pipe: StableDiffusionPipeline) -> None:
    plain, empty = reader(pipe).encode(["a cat", ""])
    weighted = reader(pipe, syntax="comfyui").encode(["a (cat:1.5)"])[0]
    place = pipe.tokenizer(["a cat"])[0].tolist().index(pipe.tokenizer.eos_id) - 1
    expected = plain.clone()
    expected[place] = empty[place] + 1.5 * (plain[place] - empty[place])
    assert torch.allclose(weighted, expected, rtol=1e-5, atol=1e-6)
    nothing = reader(pipe, syntax="comfyui").encode(["(a cat:0)"])[0]
    assert torch.allclose(nothing[1 : place + 1], empty[1 : place + 1], rtol=1e-5, atol=1e-6)


def test_both_ways_of_weighing_leave_weight_one_as_it_is() -> None:
    vectors, empty = torch.randn(2, 5, 4), torch.randn(1, 5, 4)
    one = torch.ones(2, 5, 1)
    assert torch.equal(weigh_against(vectors, one, empty), vectors)
    assert torch.allclose(weigh_and_restore_mean(vectors, one), vectors)


def test_a_mean_of_zero_is_not_restored_to_infinity() -> None:
    vectors = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    weights = torch.tensor([[[1.0], [1.5]]])
    assert torch.equal(weigh_and_restore_mean(vectors, weights), vectors * weights)


def test_a_long_prompt_in_chunks_is_its_parts_side_by_side(pipe: StableDiffusionPipeline) -> None:
    chunks = into_chunks(pipe.tokenizer, [[Token(i) for i in pipe.tokenizer.encode(LONG)]])
    assert len(chunks) > 2
    whole = reader(pipe, long_prompts="chunks").encode([LONG, "a cat"])
    parts = pipe.text_encoder(torch.tensor(windows(pipe.tokenizer, chunks)[0])).last_hidden_state
    assert torch.allclose(whole[0], torch.cat(list(parts)), atol=1e-5)
    rest = [reader(pipe).encode([""])[0]] * (len(chunks) - 1)
    assert torch.allclose(whole[1], torch.cat([reader(pipe).encode(["a cat"])[0], *rest]), atol=1e-5)


def test_break_puts_parts_side_by_side(pipe: StableDiffusionPipeline) -> None:
    both = reader(pipe, syntax="a1111", long_prompts="chunks").encode(["a cat BREAK a rocket"])[0]
    assert torch.allclose(both, torch.cat(list(reader(pipe).encode(["a cat", "a rocket"]))), atol=1e-5)


def test_long_and_short_prompts_of_one_request_paint_together(
    pipe: StableDiffusionPipeline, recwarn: pytest.WarningsRecorder
) -> None:
    request: dict[str, Any] = {"long_prompts": "chunks", "prompt_syntax": "a1111", "output_type": "latent"}
    request |= {"num_inference_steps": 2, "prompt": [LONG, "a (cat:1.2)"], "negative_prompt": ["red", LONG]}
    painted = pipe(**request, generator=[torch.Generator().manual_seed(i) for i in range(2)]).images
    assert painted.isfinite().all()
    assert not [warning for warning in recwarn if issubclass(warning.category, UserNotice)]
    cut = paint(pipe, prompt=LONG[:20], long_prompts="chunks")
    assert not torch.allclose(cut, painted[:1])


def test_a_long_prompt_is_cut_with_a_notice_in_every_syntax(pipe: StableDiffusionPipeline) -> None:
    for syntax in SYNTAXES:
        with pytest.warns(UserNotice, match="longer than the model's 14 tokens; cut off: '.*rocket in the sky'"):
            paint(pipe, prompt=LONG, prompt_syntax=syntax)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prompt_syntax": "midjourney"}, "unknown prompt_syntax 'midjourney': there are plain, a1111, comfyui"),
        ({"long_prompts": "fold"}, "unknown long_prompts 'fold': there are cut and chunks"),
    ],
)
def test_an_unknown_way_of_reading_is_a_user_error(
    pipe: StableDiffusionPipeline, changes: dict[str, Any], complaint: str
) -> None:
    options = {{"prompt_syntax": "syntax"}.get(name, name): value for name, value in changes.items()}
    with pytest.raises(UserError, match=complaint):
        PromptReader.__post_init__(_unchecked(pipe, **options))


def _unchecked(pipe: StableDiffusionPipeline, **options: Any) -> PromptReader:
    """A reader with values that the type annotations, checked while tests run, would not let in."""
    made = object.__new__(PromptReader)
    values = {"tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder, "clip_skip": None}
    for name, value in (values | {"syntax": "plain", "long_prompts": "cut"} | options).items():
        object.__setattr__(made, name, value)
    return made
