"""Learned words, beside Diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from sd_oracle import make_diffusers_pipeline, relative_error

from miniai.base.errors import UserError
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.prompt_chunks import into_chunks, section_tokens

WIDTH = 16


def vectors(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    make_diffusers_pipeline(folder / "tokenizer", "epsilon").save_pretrained(folder / "model")
    return folder / "model"


def read_both(model: Path) -> tuple[diffusers.StableDiffusionPipeline, StableDiffusionPipeline]:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model)
    theirs.set_progress_bar_config(disable=True)
    return theirs, StableDiffusionPipeline.from_pretrained(model)


def paint(pipe: Any, prompt: str | list[str], **options: Any) -> torch.Tensor:
    n = 1 if isinstance(prompt, str) else len(prompt)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(n, 1, 1, 1)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "latents": start, "output_type": "latent"} | options
    return pipe(prompt, **options).images


def write(folder: Path, form: str) -> tuple[Path, str | None]:
    """A file of each layout, and the token that Diffusers needs to be told."""
    if form == "folder":
        save_file({"<toy>": vectors(2)}, folder / "learned_embeds.safetensors")
        return folder, None
    if form == "a1111":
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(3)}, "name": "<toy>", "step": 5}
        torch.save(content, folder / "other.pt")
        return folder / "other.pt", None
    if form == "one vector":
        torch.save({"<toy>": vectors(1)[0]}, folder / "learned_embeds.bin")
        return folder / "learned_embeds.bin", None
    save_file({"emb_params": vectors(2)}, folder / "<toy>.safetensors")
    return folder / "<toy>.safetensors", "<toy>"


@pytest.mark.parametrize("form", ["folder", "a1111", "one vector", "kohya"])
def test_a_learned_word_is_read_as_in_diffusers(model: Path, form: str, tmp_path: Path) -> None:
    path, token = write(tmp_path, form)
    theirs, ours = read_both(model)
    prompts = ["a cat <toy> on a hat", "<toy>", "a<toy>b <toy>, cat", "a cat"]
    negative = ["", "a <toy>", "red", "red"]
    before = paint(ours, prompts, negative_prompt=negative)
    theirs.load_textual_inversion(path, token=token)
    ours.load_textual_inversion(path)
    expected = paint(theirs, prompts, negative_prompt=negative)
    got = paint(ours, prompts, negative_prompt=negative)
    assert relative_error(got, expected) < 1e-4
    assert torch.equal(got[3], before[3])
    assert all(relative_error(got[i], before[i]) > 0.01 for i in range(3))


def test_a_word_is_known_in_any_case_of_letters(model: Path) -> None:
    theirs, ours = read_both(model)
    for pipe in (theirs, ours):
        pipe.load_textual_inversion(vectors(1), token="MyCat")
    got = paint(ours, ["a mycat", "a MYCAT"])
    assert relative_error(got, paint(theirs, ["a mycat", "a MYCAT"])) < 1e-4
    assert torch.equal(got[0], got[1])


def test_several_words_and_one_that_goes(model: Path) -> None:
    theirs, ours = read_both(model)
    sources, tokens = [vectors(2, 1), vectors(1, 2), vectors(3, 3)], ["<a>", "<b>", "<c>"]
    for pipe in (theirs, ours):
        pipe.load_textual_inversion(list(sources), token=list(tokens))
    prompts = ["<a> and <b>", "<c> <b>", "<c>"]
    assert relative_error(paint(ours, prompts), paint(theirs, prompts)) < 1e-4
    before = paint(ours, ["<c> <a>"])
    ours.unload_textual_inversion("<b>")
    assert torch.equal(paint(ours, ["<c> <a>"]), before)
    assert "<b>" not in ours.tokenizer.added.ids
    theirs.unload_textual_inversion(["<b>"])
    assert relative_error(paint(ours, "<b>"), paint(theirs, "<b>")) < 1e-4


def test_all_words_unloaded_leave_the_model_as_it_was(model: Path) -> None:
    _, ours = read_both(model)
    before = {name: t.clone() for name, t in ours.text_encoder.state_dict().items()}
    ids = ours.tokenizer.encode("a <toy>")
    config = ours.text_encoder.config
    ours.load_textual_inversion([vectors(2), vectors(1)], token=["<toy>", "<boy>"])
    assert ours.tokenizer.encode("a <toy>") != ids
    ours.unload_textual_inversion()
    assert all(torch.equal(t, before[name]) for name, t in ours.text_encoder.state_dict().items())
    assert ours.tokenizer.encode("a <toy>") == ids
    assert ours.text_encoder.config == config


def test_a_saved_model_knows_its_words_here_and_in_diffusers(model: Path, tmp_path: Path) -> None:
    _, ours = read_both(model)
    ours.load_textual_inversion(vectors(3), token="<toy>")
    expected = paint(ours, "a <toy>")
    ours.save_pretrained(tmp_path)
    theirs, again = read_both(tmp_path)
    assert torch.equal(paint(again, "a <toy>"), expected)
    assert relative_error(paint(theirs, "a <toy>"), expected) < 1e-4
    again.unload_textual_inversion("<toy>")
    assert (
        again.text_encoder.config.vocab_size
        == StableDiffusionPipeline.from_pretrained(model).text_encoder.config.vocab_size
    )


def test_a_learned_word_can_be_weighted_and_counts_as_its_vectors(model: Path) -> None:
    _, ours = read_both(model)
    ours.load_textual_inversion(vectors(2), token="<toy>")
    plain = paint(ours, "a <toy>", prompt_syntax="a1111")
    assert torch.equal(plain, paint(ours, "a <toy>"))
    assert relative_error(paint(ours, "a (<toy>:1.4)", prompt_syntax="a1111"), plain) > 1e-3
    assert torch.equal(paint(ours, "a <toy> <toy>_1"), paint(ours, "a <toy><toy>_1"))


def test_a_word_of_a_single_file_named_by_nothing_is_the_files_name(model: Path, tmp_path: Path) -> None:
    _, ours = read_both(model)
    torch.save(vectors(2), tmp_path / "blob.pt")
    torch.save({"string_to_param": {"*": vectors(1)}, "name": None}, tmp_path / "other.pt")
    ours.load_textual_inversion([tmp_path / "blob.pt", tmp_path / "other.pt"])
    assert list(ours.tokenizer.added.ids)[-3:] == ["blob", "blob_1", "other"]


def test_pipelines_that_share_a_text_encoder_share_its_words(model: Path) -> None:
    _, first = read_both(model)
    second = StableDiffusionPipeline.from_pipe(first)
    first.load_textual_inversion(vectors(1, 1), token="<a>")
    alone = paint(first, "<a>")
    second.load_textual_inversion(vectors(2, 2), token="<b>")
    assert torch.equal(paint(first, "<a>"), alone)
    assert torch.equal(paint(first, "<b>"), paint(second, "<b>"))
    first.unload_textual_inversion("<a>")
    assert "<a>" not in second.tokenizer.added.ids


def test_a_learned_word_is_never_cut_between_windows(model: Path) -> None:
    _, ours = read_both(model)
    ours.load_textual_inversion(vectors(4), token="<toy>")
    ids = [ours.tokenizer.added.ids[name] for name in ("<toy>", "<toy>_1", "<toy>_2", "<toy>_3")]
    tokens = section_tokens(ours.tokenizer, [("a a a a a a a a a a a a <toy> a", 1.0)])
    chunks = [[token.token_id for token in chunk] for chunk in into_chunks(ours.tokenizer, [tokens])]
    assert [len(chunk) for chunk in chunks] == [12, 5]
    assert chunks[1][:4] == ids


BAD: dict[str, tuple[Callable[[Path], Any], str | None, str]] = {
    "no word": (lambda p: vectors(1), None, "name no word"),
    "known word": (lambda p: vectors(1), "<|endoftext|>", "is known already"),
    "empty word": (lambda p: vectors(1), " ", "is known already"),
    "in other letters": (lambda p: vectors(1), "<|EndOfText|>", "is known already"),
    "no name": (lambda p: p.parent / "number.pt", None, "is no learned word"),
    "wide": (lambda p: torch.ones(1, 17), "<t>", "have 16: it was learned for another model"),
    "cube": (lambda p: torch.ones(1, 1, 16), "<t>", "expected vectors of numbers"),
    "whole numbers": (lambda p: torch.ones(1, 16, dtype=torch.int64), "<t>", "expected vectors of numbers"),
    "nothing": (lambda p: torch.ones(0, 16), "<t>", "expected vectors of numbers"),
    "infinite": (lambda p: vectors(1) / 0, "<t>", "not finite"),
    "text": (lambda p: {"<t>": "cat"}, None, "expected vectors of numbers"),
    "empty": (lambda p: {}, None, "is no learned word"),
    "sdxl": (lambda p: {"clip_l": vectors(1), "clip_g": vectors(1)}, None, "is for SDXL"),
    "two": (lambda p: {"<s>": vectors(1), "<t>": vectors(1)}, "<u>", "has 2 words"),
    "missing": (lambda p: p / "nowhere.pt", None, "nowhere.pt is missing"),
    "no file": (lambda p: p, None, "has no learned_embeds.safetensors"),
    "dangerous": (lambda p: p.parent / "code.pt", None, "could run code"),
}


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1 + 1",)


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_learned_word_is_one_line_and_changes_nothing(model: Path, what: str, tmp_path: Path) -> None:
    torch.save({"<t>": Code()}, tmp_path / "code.pt")
    torch.save({7: vectors(1)}, tmp_path / "number.pt")
    (tmp_path / "folder").mkdir()
    _, ours = read_both(model)
    tokenizer, n = ours.tokenizer, ours.text_encoder.config.vocab_size
    make, token, said = BAD[what]
    with pytest.raises(UserError, match=said) as error:
        ours.load_textual_inversion(make(tmp_path / "folder"), token=token)
    assert "\n" not in str(error.value)
    assert (ours.tokenizer, ours.text_encoder.config.vocab_size) == (tokenizer, n)


def test_a_word_does_not_take_in_another(model: Path) -> None:
    _, ours = read_both(model)
    ours.load_textual_inversion(vectors(1), token="<a>_1")
    with pytest.raises(UserError, match="would take in <a>_1"):
        ours.load_textual_inversion(vectors(1), token="<a>")
    with pytest.raises(UserError, match="no word to learn"):
        ours.load_textual_inversion([])


def test_words_and_tokens_are_paired_and_unknown_words_are_told(model: Path) -> None:
    _, ours = read_both(model)
    with pytest.raises(UserError, match=r"2 learned words and 1 tokens"):
        ours.load_textual_inversion([vectors(1), vectors(1)], token=["<a>"])
    with pytest.raises(UserError, match=r"'<\|endoftext\|>' is no learned word: there are none"):
        ours.unload_textual_inversion("<|endoftext|>")
