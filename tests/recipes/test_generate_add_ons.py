"""`miniai generate` with LoRAs and learned words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.base.images import open_image, read_parameters
from miniai.cli import run
from miniai.recipes.generate_request import GenerateRequest, read_lora_option, take_lora_tags

Generate = Callable[..., tuple[int, str]]


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Runs the command beside a model, two LoRAs, one learned word; returns exit code and what it says."""
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    for seed, name in enumerate(("sketch", "gold")):
        generator = torch.Generator().manual_seed(seed)
        sizes = {"down": (2, 16), "up": (16, 2)}
        layers = ("mid_block_attentions_0_transformer_blocks_0_attn2_to_q", "mid_block_attentions_0_proj_in")
        lora = {
            f"lora_unet_{layer}.lora_{part}.weight": torch.randn(*size, generator=generator)
            for layer in layers
            for part, size in sizes.items()
        }
        save_file(lora, tmp_path / f"{name}.safetensors")
    save_file({"<toy>": torch.randn(2, 16)}, tmp_path / "toy.safetensors")

    def call(prompt: str, *options: str, out: str = "out.png") -> tuple[int, str]:
        fixed = ("--model", "model", "--steps", "3", "--seed", "5", "--guidance-scale", "2", "--out", out)
        return run(("generate", prompt, *options, *fixed)), capsys.readouterr().err

    return call


def pixels(path: str) -> np.ndarray:
    return np.asarray(open_image(path)).astype(int)


def painted(generate: Generate, prompt: str, *options: str) -> np.ndarray:
    code, said = generate(prompt, *options)
    assert code == 0, said
    return pixels("out.png")


def test_a_lora_counts_as_much_as_its_strength_says_and_the_png_names_it(generate: Generate) -> None:
    without = painted(generate, "a cat")
    assert (painted(generate, "a cat", "--lora", "sketch.safetensors:0") == without).all()
    whole = painted(generate, "a cat", "--lora", "sketch.safetensors")
    both = painted(generate, "a cat", "--lora", "sketch.safetensors:0.5", "--lora", "gold.safetensors")
    assert (whole != without).any()
    assert (both != whole).any()
    assert 'LoRA: "sketch:0.5, gold:1"' in str(read_parameters("out.png"))


def test_a1111s_tags_set_the_strength_and_are_no_part_of_the_prompt(generate: Generate) -> None:
    plain = painted(generate, "a cat", "--lora", "sketch.safetensors:0.5")
    tagged = painted(generate, "a cat<lora:sketch:0.5>", "--lora", "sketch.safetensors", "--prompt-syntax", "a1111")
    assert (tagged == plain).all()
    assert str(read_parameters("out.png")).startswith("a cat<lora:sketch:0.5>\n")


def test_a_learned_word_is_told_and_read(generate: Generate) -> None:
    without = painted(generate, "a <toy>")
    code, said = generate("a <toy>", "--embedding", "toy.safetensors")
    assert code == 0
    assert "toy.safetensors: write <toy> in the prompt" in said
    assert (pixels("out.png") != without).any()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--lora", "nowhere.safetensors"), "there is no LoRA nowhere.safetensors"),
        (("--lora", "toy.safetensors"), "toy.safetensors has <toy>, which is no part of a LoRA"),
        (("--lora", "sketch.safetensors:nan"), "the strength must be a number"),
        (("--lora", "sketch.safetensors", "--lora", "sketch.safetensors"), "already"),
        (("--embedding", "nowhere.pt"), "nowhere.pt is missing"),
        (("--embedding", "sketch.safetensors"), "it was learned for another model"),
        (("--prompt-syntax", "a1111"), "the prompt asks for the LoRA 'gold': give its file, --lora gold.safetensors"),
        (("--prompt-syntax", "a1111", "--lora", "gold.safetensors"), "<lora:gold:much> in the prompt"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_nothing_is_written(
    generate: Generate, options: tuple[str, ...], line: str
) -> None:
    code, said = generate("a cat <lora:gold:much>", *options)
    assert code == 2
    assert line in said
    assert said.count("\n") == 1
    assert not Path("out.png").exists()


@pytest.mark.parametrize("tag", ["<lora:gold:nan>", "<lora:gold:0.8:0.5>", "<lora:gold:0.8:lbw=ALL>", "<lora:gold:>"])
def test_a_tag_that_says_more_than_a_strength_is_one_line(tag: str) -> None:
    request = GenerateRequest(f"a {tag}", prompt_syntax="a1111", loras=((Path("gold.safetensors"), 1.0),))
    with pytest.raises(UserError, match="give one strength, a number, such as <lora:gold:0.8>"):
        take_lora_tags(request)


def test_a_folder_is_called_by_its_whole_name() -> None:
    request = GenerateRequest("a <lora:v1.5:0.3>", prompt_syntax="a1111", loras=((Path("runs/v1.5"), 1.0),))
    assert take_lora_tags(request).loras == ((Path("runs/v1.5"), 0.3),)


def test_a_path_may_have_colons_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a:0.5").touch()
    assert read_lora_option(str(tmp_path / "a:0.5")) == (tmp_path / "a:0.5", 1.0)
    assert read_lora_option("c:style:-0.5") == (Path("c:style"), -0.5)
    assert read_lora_option("c:style") == (Path("c:style"), 1.0)
    for text in ("", ":0.8"):
        with pytest.raises(UserError, match="names no file"):
            read_lora_option(text)
    with pytest.raises(UserError, match="must be a number"):
        read_lora_option("style:inf")


def test_in_other_syntaxes_a_tag_is_text() -> None:
    request = GenerateRequest("a <lora:x:1>")
    assert take_lora_tags(request) == request
