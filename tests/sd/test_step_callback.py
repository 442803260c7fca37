"""Callbacks that change the guidance between steps, as Diffusers' users write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from sd_oracle import relative_error
from three_pipelines import Models, mask, picture

from miniai.base.errors import UserError

Kwargs = dict[str, Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("callbacks"), "epsilon")


def cut_off(pipe: Any, step: int, timestep: Any, kwargs: Kwargs) -> Kwargs:
    """Diffusers' own example of dynamic guidance."""
    if step == int(pipe.num_timesteps * 0.4):
        kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return kwargs


def weaker(pipe: Any, step: int, timestep: Any, kwargs: Kwargs) -> Kwargs:
    pipe._guidance_scale = pipe.guidance_scale * 0.7
    return kwargs


def other_text(pipe: Any, step: int, timestep: Any, kwargs: Kwargs) -> Kwargs:
    if step == 2:
        assert pipe.do_classifier_free_guidance
        kwargs["prompt_embeds"] = kwargs["prompt_embeds"].flip(2)
    return kwargs


def by_the_timestep(pipe: Any, step: int, timestep: Any, kwargs: Kwargs) -> Kwargs:
    assert isinstance(timestep, torch.Tensor)
    assert timestep.ndim == 0
    return {"latents": kwargs["latents"] * (1 + timestep.item() / 1e4)}


CALLBACKS: dict[str, Callable[[], Callable[..., Kwargs]]] = {
    "Diffusers' example": lambda: cut_off,
    "Diffusers' own": lambda: SDCFGCutoffCallback(cutoff_step_ratio=0.4),
    "weaker and weaker": lambda: weaker,
    "another text": lambda: other_text,
    "by the timestep": lambda: by_the_timestep,
}


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_changes_what_it_changes_in_diffusers(plain: Models, name: str, sampler: str) -> None:
    request = {"prompt": "a cat", "guidance_scale": 7.5, "num_inference_steps": 6}
    names = ["latents", "prompt_embeds"]
    changed = request | {"callback_on_step_end_tensor_inputs": names}
    made = [
        paint("from_text", sampler, **changed, callback_on_step_end=CALLBACKS[name](), generator=torch.manual_seed(3))
        for paint in (plain.theirs, lambda _, sampler, **given: plain.paint(sampler=sampler, **given))
    ]
    assert relative_error(made[1], made[0]) < 1e-4
    as_it_is = plain.paint(**request, sampler=sampler, generator=torch.manual_seed(3))
    assert relative_error(made[1], as_it_is) > 1e-3
    again = plain.paint(**request, sampler=sampler, generator=torch.manual_seed(3))  # it was for one run alone
    assert torch.equal(again, as_it_is)


def test_guidance_changes_within_a_mask_and_beside_an_interval_too(plain: Models) -> None:
    request: Kwargs = {"prompt": "a cat", "guidance_scale": 7.5, "num_inference_steps": 6, "sampler": "ddim"}
    request |= {"callback_on_step_end": cut_off, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    for more in ({"image": picture(), "mask_image": mask()}, {"guidance_interval": (0.5, 20.0)}):
        seen = plain.paint(**request, **more, generator=torch.manual_seed(3))
        without = plain.paint(**request | {"callback_on_step_end": None}, **more, generator=torch.manual_seed(3))
        assert relative_error(seen, without) > 1e-3


def test_whole_timesteps_are_whole_and_the_others_are_not(plain: Models) -> None:
    for sampler, dtype in (("ddim", torch.int64), ("euler", torch.float32)):
        seen = []
        plain.paint(
            prompt="a cat",
            sampler=sampler,
            callback_on_step_end=lambda _, i, t, kwargs: seen.append(t),  # noqa: B023
        )
        assert {one.dtype for one in seen} == {dtype}


def leave(**changes: Any) -> Callable[..., Kwargs]:
    def change(pipe: Any, step: int, timestep: Any, kwargs: Kwargs) -> Kwargs:
        pipe._guidance_scale = changes.get("scale", pipe._guidance_scale)
        return {name: value for name, value in changes.items() if name != "scale"}

    return change


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scale": 0.0}, r"guidance scale 1 and prompt_embeds \(2, 16, 16\): for 1 picture\(s\) that needs 1 text"),
        ({"prompt_embeds": torch.zeros(1, 16, 16)}, r"guidance scale 3 and prompt_embeds \(1, 16, 16\).* 2 text"),
        ({"prompt_embeds": torch.zeros(2, 16, 9)}, r"prompt_embeds \(2, 16, 9\)"),
        ({"scale": float("nan")}, "guidance scale nan is not possible"),
        ({"latents": torch.zeros(1, 4, 2, 2)}, r"returned latents \(1, 4, 2, 2\), and not \(1, 4, 8, 8\)"),
        ({"latents": 3}, "returned latents int"),
    ],
)
def test_what_a_callback_leaves_that_cannot_be_is_a_user_error(
    plain: Models, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        plain.paint(prompt="a cat", guidance_scale=3.0, sampler="ddim", callback_on_step_end=leave(**changes))
    assert "\n" not in str(caught.value)


def test_a_tensor_that_no_callback_sees_is_a_user_error(plain: Models) -> None:
    with pytest.raises(UserError, match="may see latents, denoised, prompt_embeds, negative_prompt_embeds, not noise"):
        plain.paint(prompt="a cat", callback_on_step_end_tensor_inputs=["noise"])


def test_what_a_step_takes_for_the_picture_is_what_diffusers_takes_for_it(plain: Models, tmp_path: Path) -> None:
    """`denoised` beside the `pred_original_sample` of Diffusers' scheduler, asked anew at each step."""
    pipe, ours = plain.from_text, []
    steps: list[tuple[torch.Tensor, int]] = []
    request = {"prompt": "a cat", "guidance_scale": 1.0, "num_inference_steps": 4}
    start = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0))

    def note(_: Any, i: int, t: torch.Tensor, kwargs: Kwargs) -> None:
        ours.append(kwargs["denoised"])
        steps.append((kwargs["latents"], int(t)))

    plain.paint(**request, sampler="ddim", latents=start, callback_on_step_end=note)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(plain.schedule)
    pipe.scheduler.set_timesteps(4)
    text = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
    before = start
    for denoised, (latents, t) in zip(ours, steps, strict=True):
        with torch.no_grad():
            prediction = pipe.unet(before, t, text).sample
        expected = pipe.scheduler.step(prediction, t, before)
        assert relative_error(denoised, expected.pred_original_sample) < 1e-4
        assert relative_error(latents, expected.prev_sample) < 1e-4
        before = latents


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("sampler", "every"), [("ddim", 1), ("ddim", 2), ("euler", 3), ("heun", 1)])
@pytest.mark.parametrize("beside", [False, True])
def test_the_callback_that_diffusers_had_before_sees_and_changes_the_same(
    plain: Models, sampler: str, every: int, beside: bool
) -> None:
    heard: list[list[tuple[int, float, torch.Tensor]]] = []

    def old(step: int, timestep: Any, latents: torch.Tensor) -> None:
        heard[-1].append((step, float(timestep), latents.clone()))

    asked: Kwargs = {"prompt": "a cat", "num_inference_steps": 5, "callback": old, "callback_steps": every}
    asked |= {"callback_on_step_end": by_the_timestep} if beside and sampler != "heun" else {}
    latents = []
    for paint in (plain.theirs, lambda _, sampler, **request: plain.paint(sampler=sampler, **request)):
        heard.append([])
        latents.append(paint("from_text", sampler, generator=torch.Generator().manual_seed(0), **asked))
    assert relative_error(latents[1], latents[0]) < 1e-4
    theirs, ours = heard
    assert [one[0] for one in ours] == [one[0] for one in theirs] == list(range(0, 5, every))
    for mine, other in zip(ours, theirs, strict=True):
        assert relative_error(mine[2], other[2]) < 1e-4
        if sampler != "heun":  # Diffusers says the timestep of the second call there
            assert mine[1] == pytest.approx(other[1], abs=1)


def test_an_interval_of_no_steps_is_a_user_error(plain: Models) -> None:
    with pytest.raises(UserError, match="callback_steps 0 is not possible"):
        plain.paint(prompt="a cat", callback=lambda *_: None, callback_steps=0)
