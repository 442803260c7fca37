"""Prompts of several parts: "a cat AND a hat :0.5". The loop is Diffusers' own, with the parts' guidance added up."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from sd_oracle import relative_error
from three_pipelines import Models, mask, picture

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.sd.prompt_parts import split_parts


@pytest.fixture(scope="module", params=["v_prediction", "inpainting"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("plain"), "epsilon")


def paint(models: Models, prompt: str | list[str], **request: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(1 if isinstance(prompt, str) else len(prompt))]
    asked = {"prompt": prompt, "prompt_syntax": "a1111", "generator": generators, "guidance_scale": 3.0}
    return models.paint(**asked | request)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat AND a dog", [("a cat", 1.0), ("a dog", 1.0)]),
        ("a cat :1.2 AND a dog:-0.5 AND a (hat:1.3) : 2.", [("a cat", 1.2), ("a dog", -0.5), ("a (hat:1.3)", 2.0)]),
        ("a cat AND", [("a cat", 1.0), ("", 1.0)]),
        ("a clock at 12:30 AND a cat :+.5", [("a clock at 12", 30.0), ("a cat", 0.5)]),
        ("one\nAND\ntwo : three", [("one", 1.0), ("two : three", 1.0)]),
    ],
)
def test_a_prompt_is_cut_at_each_and(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = split_parts(prompt)
    assert found is not None
    assert [texts[0] for texts in found.texts] == [text for text, _ in parts]
    assert found.weights[0].tolist() == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize("prompt", ["a cat and a dog", "SAND ANDES", "a clock at 12:30", ""])
def test_what_has_no_and_is_one_text(prompt: str) -> None:
    assert split_parts(prompt) is None


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 1.3, -0.4)])
def test_the_parts_guidance_is_added_up_in_diffusers_loop(plain: Models, weights: tuple[float, ...]) -> None:
    texts, scale = ["a cat", "a red hat", "a rocket"], 3.0
    pipe = plain.from_text
    scheduler = diffusers.EulerDiscreteScheduler.from_config(plain.schedule)
    scheduler.set_timesteps(4)
    embeds = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in (*texts, "blurred")]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x = latents * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t)
            *toward, away = (pipe.unet(seen, t, encoder_hidden_states=one).sample for one in embeds)
            guided = away + sum(scale * w * (one - away) for w, one in zip(weights, toward, strict=True))
            x = scheduler.step(guided, t, x).prev_sample
    prompt = " AND ".join(f"{text} :{weight}" for text, weight in zip(texts, weights, strict=True))
    asked = {"negative_prompt": "blurred", "num_inference_steps": 4, "sampler": "euler", "latents": latents}
    assert relative_error(paint(plain, prompt, **asked), x) < 1e-4


def test_prompts_of_one_request_may_have_different_numbers_of_parts(models: Models) -> None:
    prompts = ["a cat AND a hat :0.5", "a rocket", "a dog :0.7 AND a hat AND a cat :-0.3"]
    beside = {"image": picture(), "mask_image": mask()} if models.ours.unet.config.in_channels == 9 else {}
    together = paint(models, prompts, negative_prompt=["", "red", "blue"], **beside)
    for i, (prompt, negative) in enumerate(zip(prompts, ("", "red", "blue"), strict=True)):
        generator = torch.Generator().manual_seed(i)
        alone = paint(models, prompt, negative_prompt=negative, generator=generator, **beside)
        assert relative_error(together[i : i + 1], alone) < 1e-4
    generators = [torch.Generator().manual_seed(i) for i in (5, 0)]
    twice = paint(models, prompts[0], num_images_per_prompt=2, generator=generators, **beside)
    once = paint(models, prompts[0], generator=torch.Generator().manual_seed(0), **beside)
    assert relative_error(twice[1:], once) < 1e-4


def test_a_part_that_counts_nothing_changes_nothing_and_one_that_counts_does(plain: Models) -> None:
    alone = paint(plain, "a cat")
    assert relative_error(paint(plain, "a cat AND a rocket :0"), alone) < 1e-4
    assert relative_error(paint(plain, "a cat :0.5 AND a cat :0.5"), alone) < 1e-4
    assert relative_error(paint(plain, "a cat AND a rocket :0.5"), alone) > 1e-3
    long = "a cat with sunglasses and a hat " * 3
    mixed = paint(plain, f"{long} AND a rocket :0", long_prompts="chunks")
    assert relative_error(mixed, paint(plain, long, long_prompts="chunks")) < 1e-4


@pytest.mark.parametrize("syntax", ["plain", "comfyui"])
def test_elsewhere_and_is_a_word(plain: Models, syntax: Any) -> None:
    texts = "a cat AND a rocket", "a cat and a rocket"
    one, other = (paint(plain, text, prompt_syntax=syntax) for text in texts)
    assert torch.equal(one, other)  # letters are read as small ones


def test_a_callback_may_change_the_first_text_and_the_scale(plain: Models) -> None:
    def stronger(pipe: Any, step: int, t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pipe._guidance_scale = 6.0
        return {"prompt_embeds": tensors["prompt_embeds"].flip(0)}  # what it should be and should not, exchanged

    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}

    asked = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    changed = paint(plain, "a cat AND a rocket", callback_on_step_end=stronger, **asked)
    assert relative_error(changed, paint(plain, "a cat AND a rocket")) > 1e-3
    with pytest.raises(UserError, match="may not end guidance"):
        paint(plain, "a cat AND a rocket", callback_on_step_end=stop, **asked)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"guidance_scale": 1.0}, "AND needs guidance: give a guidance_scale above 1"),
        ({"guidance_rescale": 0.5}, "AND does not go with guidance_rescale"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts and 2 negative prompts"),
        ({"prompt_embeds": torch.zeros(1, 16, 16)}, "give either prompt or prompt_embeds"),
    ],
)
def test_what_cannot_be_composed_is_told_in_one_line(plain: Models, request_: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        paint(plain, "a cat AND a rocket", **request_)


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    Models(tmp_path / "made", "epsilon").ours.save_pretrained(folder)
    for name, prompt in (("a", "a cat AND a rocket :0.5"), ("b", "a cat AND a rocket :0")):
        arguments = ["generate", prompt, "--model", str(folder), "--prompt-syntax", "a1111", "--steps", "3"]
        assert run([*arguments, "--seed", "1", "--out", str(tmp_path / f"{name}.png")]) == 0
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert (a != b).any()
