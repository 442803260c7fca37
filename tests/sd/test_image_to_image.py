"""Painting from a picture, within a mask, and from vectors: Diffusers' pipelines are the oracle."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from sd_oracle import relative_error
from three_pipelines import Models, mask, picture

from miniai.base.errors import UserError
from miniai.sd.image_outputs import check_output_type
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.request_checks import check_whole

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("plain"), "epsilon")


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("inpainting"), "inpainting")


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_a_start_from_a_picture_gives_the_latents_of_diffusers(models: Models, sampler: str) -> None:
    models.assert_equal("from_image", sampler, prompt="a cat", image=picture(), strength=0.6, guidance_scale=2.0)


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_any_strength_gives_the_latents_of_diffusers(plain: Models, strength: float) -> None:
    plain.assert_equal("from_image", prompt="a cat", image=picture(), strength=strength)


@pytest.mark.parametrize("strength", [0.2, 0.4])
def test_pndm_starts_late_as_diffusers_does(plain: Models, strength: float) -> None:
    request = {"prompt": "a cat", "image": picture(), "strength": strength, "num_inference_steps": 10}
    plain.assert_equal("from_image", "pndm", **request)
    plain.assert_equal("inpaint", "pndm", **request, mask_image=mask())


def test_several_pictures_of_several_prompts_draw_as_in_diffusers(plain: Models) -> None:
    prompts = ["a cat", "a rocket"]
    plain.assert_equal("from_image", "euler_a", (3, 4), prompt=prompts, image=[picture(), picture(seed=1)])
    plain.assert_equal("from_image", "euler_a", (3, 4), prompt="a cat", image=picture(), num_images_per_prompt=2)
    plain.assert_equal("from_image", "euler_a", prompt=prompts, image=picture())
    plain.assert_equal("from_image", "euler_a", prompt=prompts, image=[picture(), picture(seed=1)])


def test_a_picture_may_come_as_pixels_tensor_array_or_latents(plain: Models) -> None:
    array = np.asarray(picture()).astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)

    def paint(image: Any) -> torch.Tensor:
        return plain.paint(prompt="a cat", image=image, generator=torch.Generator().manual_seed(0))

    expected = paint(picture())
    for image in (array, array[None], [array], tensor, tensor[None], [tensor], tensor * 2 - 1, [picture()]):
        torch.testing.assert_close(paint(image), expected, rtol=1e-4, atol=1e-4)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    plain.assert_equal("from_image", prompt="a cat", image=latents)


def test_a_picture_is_resized_as_diffusers_resizes_it(plain: Models) -> None:
    plain.assert_equal("from_image", prompt="a cat", image=picture(17, 23))
    request = {"prompt": "a cat", "image": picture(17, 23), "mask_image": mask(17, 23), "height": 20, "width": 12}
    plain.assert_equal("inpaint", **request)
    tensor = torch.rand(1, 3, 23, 17, generator=torch.Generator().manual_seed(0))
    plain.assert_equal("inpaint", **request | {"image": tensor, "mask_image": (tensor[:, :1] > 0.4).float()})


IN_A_MASK = [name for name in SCHEDULERS if name != "dpm2"]  # whose steps in between differ: test_differences.py


@pytest.mark.parametrize(("sampler", "strength"), [(name, strength) for name in IN_A_MASK for strength in (0.6, 1.0)])
def test_inpainting_by_blending_gives_the_latents_of_diffusers(models: Models, sampler: str, strength: float) -> None:
    models.assert_equal(
        "inpaint", sampler, prompt="a cat", image=picture(), mask_image=mask(), strength=strength, guidance_scale=2.0
    )


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_a_nine_channel_model_inpaints_as_in_diffusers(inpainting: Models, sampler: str, strength: float) -> None:
    request = {"image": picture(), "mask_image": mask(), "strength": strength, "guidance_scale": 2.0}
    inpainting.assert_equal("inpaint", sampler, prompt="a cat", **request)
    inpainting.assert_equal("inpaint", sampler, prompt=["a cat", "a rocket"], **request)


def test_what_the_mask_keeps_is_kept_and_the_rest_is_not(plain: Models) -> None:
    request = {"prompt": "a cat", "image": picture(), "mask_image": mask(), "generator": torch.Generator()}
    kept = (torch.from_numpy(np.array(mask()))[::2, ::2] < 128)[None, None].expand(1, 4, -1, -1)
    request["image"] = torch.from_numpy(np.asarray(picture()).astype(np.float32) / 255).permute(2, 0, 1)
    painted = plain.paint(**request)
    known = plain.ours.vae.encode(request["image"][None] * 2 - 1).mode() * plain.ours.vae.config.scaling_factor
    difference = (painted - known).abs().detach()
    assert difference[kept].mean() < 0.3 * difference[~kept].mean()


def test_a_callback_sees_the_blended_latents_that_diffusers_shows(plain: Models) -> None:
    seen: dict[str, list[torch.Tensor]] = {"theirs": [], "paint": []}
    for name in seen:

        def record(pipe: Any, step: int, t: Any, tensors: dict[str, torch.Tensor], name: str = name) -> dict[str, Any]:
            seen[name].append(tensors["latents"].clone())
            return {}

        request = {"prompt": "a cat", "image": picture(), "mask_image": mask(), "callback_on_step_end": record}
        request |= {"generator": torch.Generator().manual_seed(1), "callback_on_step_end_tensor_inputs": ["latents"]}
        plain.theirs("inpaint", **request) if name == "theirs" else plain.paint(**request)
    for here, there in zip(seen["paint"], seen["theirs"], strict=True):
        assert relative_error(here, there) < 1e-4


def test_a_wrong_output_type_or_number_of_steps_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="unknown output_type 'pillow': there are pil, pt, np, latent"):
        check_output_type("pillow")
    with pytest.raises(UserError, match=r"num_inference_steps 2\.0 is not possible: give a whole number"):
        check_whole(num_images_per_prompt=1, num_inference_steps=2.0)


def in_place_by_a_number(pipe: Any, step: int, timestep: float, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    tensors["latents"] *= 0.9
    return tensors


def in_place_in_a_part(pipe: Any, step: int, timestep: float, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    tensors["latents"][:, :, :4] = 0
    return tensors


@pytest.mark.parametrize("change", [in_place_by_a_number, in_place_in_a_part])
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_callback_may_change_latents_in_place(plain: Models, sampler: str, change: Any) -> None:
    plain.assert_equal("from_text", sampler, prompt="a cat", callback_on_step_end=change)


@pytest.mark.parametrize("sides", [(32, 24), (17, 23)])
def test_within_a_mask_the_size_is_the_models_as_in_diffusers(
    plain: Models, inpainting: Models, sides: tuple[int, int]
) -> None:
    for models in (plain, inpainting):
        request = {"prompt": "a cat", "image": picture(*sides), "mask_image": mask(*sides)}
        models.assert_equal("inpaint", **request)


def test_masks_come_in_every_form_that_diffusers_takes(plain: Models) -> None:
    two = np.stack([np.asarray(mask()), np.asarray(mask()).T]) > 127
    pictures = [picture(), picture(seed=1)]
    request: dict[str, Any] = {"prompt": "a cat", "image": pictures, "num_images_per_prompt": 2, "seeds": (3, 4)}
    for form in (
        two.astype(np.float32),
        torch.from_numpy(two).float(),
        (two * 255).astype(np.uint8),
        two[:, None].astype(np.float32).transpose(0, 2, 3, 1),
    ):
        plain.assert_equal("inpaint", mask_image=form, **request)
    same: dict[str, Any] = {"prompt": "a cat", "image": picture()}
    one = plain.paint(**same, mask_image=mask(), generator=torch.Generator().manual_seed(0))
    for form in (two[:1].astype(np.float32), torch.from_numpy(two[0]), two[0], torch.from_numpy(two[:1])):
        again = plain.paint(**same, mask_image=form, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again, one)


@pytest.mark.parametrize("guidance_rescale", [0.7, 1.0])
def test_guidance_rescale_gives_the_latents_of_diffusers(models: Models, guidance_rescale: float) -> None:
    models.assert_equal("from_text", "euler", prompt="a cat", guidance_rescale=guidance_rescale)


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_gives_the_latents_of_diffusers(models: Models, clip_skip: int) -> None:
    models.assert_equal("from_text", prompt="a cat", negative_prompt="red", clip_skip=clip_skip)


def test_ddim_with_eta_gives_the_latents_of_diffusers(plain: Models) -> None:
    plain.assert_equal("from_text", prompt="a cat", eta=0.6)


def test_vectors_in_place_of_texts_give_the_latents_of_diffusers(plain: Models) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, negative = torch.randn(2, 2, 16, 16, generator=generator).unbind()
    request = {"prompt_embeds": vectors, "seeds": (1, 2, 3, 4), "num_images_per_prompt": 2}
    plain.assert_equal("from_text", **request, negative_prompt_embeds=negative)
    plain.assert_equal("from_text", **request)
    texts = plain.paint(prompt="a cat", negative_prompt="red", generator=torch.Generator().manual_seed(0))
    own = plain.ours.encode_text(["a cat", "red"])
    given = {"prompt_embeds": own[:1], "negative_prompt_embeds": own[1:]}
    painted = plain.paint(**given, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(painted, texts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mask_image": mask()}, "a mask needs a picture"),
        ({"image": picture(), "mask_image": mask(8, 16)}, "the mask has 8x16 pixels, the picture 16x16"),
        ({"image": picture(), "mask_image": torch.zeros(1, 3, 16, 16)}, "mask_image has 3 channels: give 1 channel"),
        ({"image": picture(), "mask_image": torch.zeros(3, 16, 16)}, "3 masks for 1 pictures: give one"),
        ({"image": torch.zeros(1, 16, 16)}, "image has 1 channels: give 3 channels"),
        ({"image": np.zeros((16, 16, 3), np.uint8)}, "image holds whole numbers: divide by 255"),
        ({"image": [torch.zeros(3, 16, 16), torch.zeros(3, 8, 16)]}, "must be of one size"),
        ({"image": torch.zeros(3)}, "image is no picture"),
        ({"image": []}, "image is an empty list"),
        ({"image": picture(1, 1)}, "a picture of 0x0 pixels cannot be painted"),
        ({"image": picture(), "height": 15}, "a picture of 16x15 pixels cannot be painted"),
        ({"image": [picture()] * 3, "num_images_per_prompt": 2}, "3 pictures to start from for 2 pictures"),
        ({"image": torch.zeros(1, 4, 8, 8), "mask_image": mask()}, "inpainting needs the picture itself"),
        ({"image": torch.zeros(1, 4, 8, 8), "height": 20}, "latents of a picture of 16x16 pixels cannot be resized"),
        ({"image": picture(), "strength": 1.5}, "strength 1.5 is not possible"),
        ({"image": picture(), "strength": 0.1}, "strength 0.1 of 5 steps leaves none"),
        ({"guidance_rescale": 2}, "guidance_rescale 2 is not possible"),
        ({"clip_skip": 3}, "clip_skip 3 is not possible: the text encoder has 2 layers"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 16, 16)}, "either prompt or prompt_embeds"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 16, 9)}, r"shape \(1, 16, 9\): this model reads"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 20, 16)}, "give negative_prompt_embeds of the same shape"),
    ],
)
def test_pictures_masks_and_vectors_that_do_not_fit_are_a_user_error(
    plain: Models, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        plain.paint(**{"prompt": "a cat"} | changes)
    assert "\n" not in str(caught.value)


def test_an_inpainting_model_without_a_mask_is_a_user_error(inpainting: Models) -> None:
    for changes in ({}, {"image": picture()}):
        with pytest.raises(UserError, match="made for inpainting: give image and mask_image"):
            inpainting.paint(prompt="a cat", **changes)


def test_an_inpainting_model_that_we_save_loads_in_diffusers(inpainting: Models, tmp_path: Path) -> None:
    inpainting.ours.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)) is type(theirs)
    assert theirs.unet.config.in_channels == 9
    assert StableDiffusionPipeline.from_pretrained(tmp_path).unet.config.in_channels == 9
