"""What the pipeline promises beside being equal to Diffusers."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError, UserNotice
from miniai.base.seeds import image_generators, make_generator
from miniai.diffusion.sampling import SAMPLERS, StopSampling
from miniai.sd.pipeline import StableDiffusionPipeline


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline()


def paint(pipe: StableDiffusionPipeline, **changes: Any) -> Any:
    request = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "latent"}
    return pipe(**(request | changes)).images


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_the_same_picture_at_any_batch_size(pipe: StableDiffusionPipeline, sampler: str) -> None:
    three = paint(pipe, sampler=sampler, num_images_per_prompt=3, generator=image_generators(7, 3))
    for i in range(3):
        alone = paint(pipe, sampler=sampler, generator=make_generator(7 + i))
        assert torch.allclose(three[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(three[0], three[1], atol=0.1)


def test_two_runs_of_one_seed_are_bit_equal_and_touch_no_global_state(pipe: StableDiffusionPipeline) -> None:
    before = torch.get_rng_state()
    one, other = (paint(pipe, sampler="euler_a", generator=make_generator(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_generator_each_call_paints_something_else(pipe: StableDiffusionPipeline) -> None:
    assert not torch.allclose(paint(pipe), paint(pipe), atol=0.1)


def test_prompts_and_their_pictures_stand_in_order(pipe: StableDiffusionPipeline) -> None:
    both = paint(
        pipe,
        prompt=["a cat", "a rocket"],
        negative_prompt=["red", "sky"],
        num_images_per_prompt=2,
        generator=image_generators(0, 4),
    )
    rocket = paint(pipe, prompt="a rocket", negative_prompt="sky", generator=make_generator(3))
    assert torch.allclose(both[3:], rocket, rtol=1e-4, atol=1e-4)


def test_the_prompt_and_the_negative_prompt_change_the_picture(pipe: StableDiffusionPipeline) -> None:
    plain = paint(pipe, generator=make_generator(0))
    assert not torch.allclose(plain, paint(pipe, prompt="a rocket", generator=make_generator(0)))
    assert not torch.allclose(plain, paint(pipe, negative_prompt="red", generator=make_generator(0)))
    assert torch.equal(plain, paint(pipe, negative_prompt="", generator=make_generator(0)))


def test_other_sizes_than_the_trained_one_are_painted(pipe: StableDiffusionPipeline) -> None:
    image = pipe("a cat", height=10, width=22, num_inference_steps=1).images[0]
    assert image.size == (22, 10)


def test_half_precision_paints_nearly_the_same(pipe: StableDiffusionPipeline) -> None:
    # float32 arithmetic between the networks' calls: only the networks themselves are rough
    exact = pipe("a cat", num_inference_steps=4, generator=make_generator(1), output_type="np").images
    rough = tiny_pipeline().to(torch.bfloat16)
    close = rough("a cat", num_inference_steps=4, generator=make_generator(1), output_type="np").images
    assert rough.dtype is torch.bfloat16
    assert np.abs(exact - close).mean() < 0.05


def test_a_callback_sees_the_estimate_and_may_stop_with_it(pipe: StableDiffusionPipeline) -> None:
    seen: list[torch.Tensor] = []

    def stop_at_the_second(_: Any, step: int, timestep: float, tensors: dict[str, torch.Tensor]) -> None:
        seen.append(tensors["denoised"])
        if step == 1:
            raise StopSampling

    stopped = paint(pipe, num_inference_steps=9, generator=make_generator(0), callback_on_step_end=stop_at_the_second)
    assert len(seen) == 2
    assert torch.equal(stopped, seen[1])


def test_a_long_prompt_is_painted_with_a_notice_of_what_was_cut(pipe: StableDiffusionPipeline) -> None:
    with pytest.warns(UserNotice, match="longer than .*14 tokens.*cut off: '.*a rocket'"):
        paint(pipe, prompt="a red apple and a cat and a cat and a cat and a cat and a rocket")


def test_a_prompt_that_fits_gives_no_notice(pipe: StableDiffusionPipeline, recwarn: pytest.WarningsRecorder) -> None:
    paint(pipe, prompt="a red apple")
    assert not [warning for warning in recwarn if issubclass(warning.category, UserNotice)]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampler": "magic"}, "unknown sampler 'magic': there are euler, euler_a"),
        ({"num_inference_steps": 0}, "0 sampling steps"),
        ({"num_inference_steps": 1001}, "1001 sampling steps"),
        ({"height": 17}, "height 17 is not possible: this model paints multiples of 2"),
        ({"width": 0}, "width 0 is not possible"),
        ({"width": -16}, "width -16 is not possible"),
        ({"prompt": []}, "nothing to paint"),
        ({"num_images_per_prompt": 0}, "nothing to paint"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts and 2 negative prompts"),
        ({"guidance_scale": float("nan")}, "guidance scale nan"),
        ({"latents": torch.zeros(1, 4, 8, 9)}, r"latents have shape \(1, 4, 8, 9\): this request needs \(1, 4, 8, 8\)"),
        ({"generator": image_generators(0, 2)}, "2 generators for 1 pictures"),
    ],
)
def test_a_request_that_cannot_be_met_is_a_user_error(
    pipe: StableDiffusionPipeline, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        paint(pipe, **changes)
    assert "\n" not in str(caught.value)


def test_numbers_that_overflow_are_an_error_and_not_a_black_picture() -> None:
    broken = tiny_pipeline()
    broken.vae.decoder.conv_out.bias.data[0] = float("inf")
    with pytest.raises(UserError, match="not-a-number in torch.float32"):
        paint(broken, output_type="pil")


def test_the_sampler_in_the_folder_is_named_when_there_is_none_like_it() -> None:
    strange = tiny_pipeline()
    strange.scheduler_config["_class_name"] = "UniPCMultistepScheduler"
    with pytest.raises(UserError, match=r"scheduler_config.json: unknown sampler 'UniPC"):
        paint(strange)
    assert paint(strange, sampler="ddim").shape == (1, 4, 8, 8)
