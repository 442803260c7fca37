"""Diffusers is the oracle: same folder, same start, same latents."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from sd_oracle import make_diffusers_pipeline, relative_error
from tiny_model import tiny_pipeline
from torch import Tensor

from miniai.base.errors import UserError, UserNotice
from miniai.base.files import read_json, write_json
from miniai.nn import painting
from miniai.sd.pipeline import StableDiffusionPipeline


@dataclass(frozen=True)
class Pair:
    """The same model in Diffusers and here."""

    theirs: diffusers.StableDiffusionPipeline
    scheduler_config: Any
    ours: StableDiffusionPipeline


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "three_levels", "zero_snr"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Made by Diffusers, saved by Diffusers, read by us."""
    folder = tmp_path_factory.mktemp(request.param)
    make_diffusers_pipeline(folder / "tokenizer", request.param).save_pretrained(folder / "model")
    if request.param == "epsilon":  # the file of Stable Diffusion 1.5 lacks this key: each sampler has its own default
        path = folder / "model" / "scheduler" / "scheduler_config.json"
        write_json(path, {key: value for key, value in read_json(path).items() if key != "timestep_spacing"})
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder / "model")
    theirs.set_progress_bar_config(disable=True)
    return Pair(theirs, theirs.scheduler.config, StableDiffusionPipeline.from_pretrained(folder / "model"))


def use_scheduler(pair: Pair, name: str) -> None:
    pair.theirs.scheduler = getattr(diffusers, name).from_config(pair.scheduler_config)


def start(pair: Pair, n_images: int) -> torch.Tensor:
    side = pair.ours.unet.config.sample_size
    return torch.randn(n_images, 4, side, side, generator=torch.Generator().manual_seed(1))


# Diffusers' DDIM takes steps of 1000 // n, whatever the timestep spacing: n must divide 1000 for the two to agree.
N_STEPS = 4
PROMPTS = ["a cat with sunglasses", "a rocket"]


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        ("DDIMScheduler", "ddim"),
        ("EulerDiscreteScheduler", "euler"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
    ],
)
def test_the_same_start_gives_the_same_latents_as_diffusers(pair: Pair, scheduler: str, sampler: str) -> None:
    use_scheduler(pair, scheduler)
    request: dict[str, Any] = {
        "prompt": PROMPTS,
        "negative_prompt": ["red", ""],
        "num_inference_steps": N_STEPS,
        "guidance_scale": 2.0,
        "latents": start(pair, 2),
        "output_type": "latent",
    }
    theirs = pair.theirs(**request).images
    ours = pair.ours(**request, sampler=sampler).images
    assert theirs.std() > 0.1
    assert relative_error(ours, theirs) < 1e-4


def test_freeu_is_that_of_diffusers_until_it_is_disabled(pair: Pair) -> None:
    use_scheduler(pair, "EulerDiscreteScheduler")
    request = {"prompt": PROMPTS, "num_inference_steps": N_STEPS, "latents": start(pair, 2), "output_type": "latent"}
    plain = pair.ours(**request, sampler="euler").images
    for weights in ({"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}, {"s1": 0.4, "s2": 0.7, "b1": 0.8, "b2": 1.2}):
        for pipe in (pair.theirs, pair.ours):
            pipe.enable_freeu(**weights)
        theirs, ours = pair.theirs(**request).images, pair.ours(**request, sampler="euler").images
        assert relative_error(ours, theirs) < 1e-4
        assert relative_error(ours, plain) > 0.01
    for pipe in (pair.theirs, pair.ours):
        pipe.disable_freeu()
    assert torch.equal(pair.ours(**request, sampler="euler").images, plain)


@pytest.mark.parametrize("weights", [(0.9, 0.2, 1.5, 0.0), (float("nan"), 0.2, 1.5, 1.6)])
def test_freeu_by_impossible_weights_is_a_user_error(weights: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"(b2 0.0|s1 nan) is not possible: give a number above 0"):
        tiny_pipeline().enable_freeu(*weights)


@pytest.mark.parametrize(
    ("scheduler", "sampler", "lists"),
    [
        ("EulerDiscreteScheduler", "euler", {"sigmas": [10.0, 4.5, 1.0, 0.3, 0.0]}),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", {"timesteps": [999, 850, 645, 455, 233, 24]}),
    ],
)
def test_steps_that_are_given_are_those_of_diffusers(
    pair: Pair, scheduler: str, sampler: str, lists: dict[str, Any]
) -> None:
    use_scheduler(pair, scheduler)
    request: dict[str, Any] = {"prompt": PROMPTS, "guidance_scale": 2.0, "latents": start(pair, 2), **lists}
    theirs, _ = pair.theirs(**request, output_type="latent", return_dict=False)
    ours, flags = pair.ours(**request, output_type="latent", return_dict=False, sampler=sampler)
    assert flags is None
    assert relative_error(ours, theirs) < 1e-4


def test_the_sampler_named_in_the_folder_is_the_default(pair: Pair) -> None:
    request: dict[str, Any] = {
        "prompt": PROMPTS,
        "num_inference_steps": N_STEPS,
        "guidance_scale": 2.0,
        "latents": start(pair, 2),
    }
    named = pair.ours(**request, sampler="ddim", output_type="latent").images
    assert torch.equal(pair.ours(**request, output_type="latent").images, named)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5])
def test_the_same_seed_gives_the_same_pixels_as_diffusers(pair: Pair, guidance_scale: float) -> None:
    use_scheduler(pair, "EulerDiscreteScheduler")

    def paint(pipe: Callable[..., Any], output_type: str, **sampler: str) -> Any:
        return pipe(
            "a red apple",
            num_images_per_prompt=3,
            num_inference_steps=N_STEPS,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 7)],
            output_type=output_type,
            **sampler,
        ).images

    ours, theirs = paint(pair.ours, "pil", sampler="euler"), paint(pair.theirs, "pil")
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == other.size
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    for output_type in ("np", "pt"):
        one, other = paint(pair.ours, output_type, sampler="euler"), paint(pair.theirs, output_type)
        assert type(one) is type(other)
        assert one.shape == other.shape
        assert abs(one - other).max() < 1e-4


def test_one_generator_for_all_pictures_draws_as_in_diffusers(pair: Pair) -> None:
    use_scheduler(pair, "EulerAncestralDiscreteScheduler")
    theirs, ours = (
        pipe(
            PROMPTS,
            num_inference_steps=N_STEPS,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
            **sampler,
        ).images
        for pipe, sampler in ((pair.theirs, {}), (pair.ours, {"sampler": "euler_a"}))
    )
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize(("scheduler", "sampler"), [("DDIMScheduler", "ddim"), ("EulerDiscreteScheduler", "euler")])
def test_a_callback_sees_the_steps_that_diffusers_shows(pair: Pair, scheduler: str, sampler: str) -> None:
    use_scheduler(pair, scheduler)

    def record(into: list[Any]) -> Callable[..., dict[str, torch.Tensor]]:
        def callback(_: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            into.append((step, float(timestep), tensors["latents"].clone()))
            return {"latents": tensors["latents"] * 0.9}  # and may change them

        return callback

    seen_there: list[Any] = []
    seen_here: list[Any] = []
    request: dict[str, Any] = {
        "prompt": "a cat",
        "num_inference_steps": N_STEPS,
        "guidance_scale": 2.0,
        "latents": start(pair, 1),
    }
    request["output_type"] = "latent"
    theirs = pair.theirs(**request, callback_on_step_end=record(seen_there)).images
    ours = pair.ours(**request, sampler=sampler, callback_on_step_end=record(seen_here)).images
    assert relative_error(ours, theirs) < 1e-4
    for here, there in zip(seen_here, seen_there, strict=True):
        assert here[0] == there[0]
        assert here[1] == pytest.approx(there[1])
        assert relative_error(here[2], there[2]) < 1e-4


def test_a_prompt_beyond_the_window_is_cut_where_diffusers_cuts_it(pair: Pair) -> None:
    use_scheduler(pair, "DDIMScheduler")
    request: dict[str, Any] = {
        "prompt": "a cat and a rocket " * 9,
        "num_inference_steps": N_STEPS,
        "guidance_scale": 2.0,
    }
    request |= {"latents": start(pair, 1), "output_type": "latent"}
    with pytest.warns(UserNotice, match="cut off: '.*rocket a cat and a rocket'"):
        ours = pair.ours(**request).images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pair.theirs(**request).images
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_folder_that_we_save_loads_in_diffusers_and_paints_the_same(tmp_path: Path, prediction_type: str) -> None:
    ours = tiny_pipeline(prediction_type=prediction_type)
    ours.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    request: dict[str, Any] = {
        "prompt": PROMPTS,
        "num_inference_steps": N_STEPS,
        "guidance_scale": 2.0,
        "output_type": "latent",
    }
    request["latents"] = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert relative_error(ours(**request).images, theirs(**request).images) < 1e-4
    own = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(own(**request).images, ours(**request).images)


@pytest.mark.parametrize("tiles", [True, False])
def test_with_weights_made_ready_either_way_the_pixels_are_those_of_diffusers(
    pair: Pair, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolve, outputs = painting.convolve, []

    def noted(*arguments: Any) -> Tensor:
        answers = convolve(*arguments)
        outputs.append(answers.shape[1])
        return answers

    monkeypatch.setattr(painting, "convolve", noted)
    if tiles:  # as if the networks were large
        monkeypatch.setattr(painting, "CARRYING", 0)
        monkeypatch.setattr(painting, "ENOUGH_TILES", 1)
    use_scheduler(pair, "EulerDiscreteScheduler")
    request: dict[str, Any] = {"prompt": PROMPTS, "num_inference_steps": N_STEPS, "latents": start(pair, 2)}
    ours = pair.ours(**request, sampler="euler", output_type="np").images
    theirs = pair.theirs(**request, output_type="np").images
    assert np.abs(ours - theirs).max() < 1e-4
    # the last layer of the U-Net has four channels, the decoder's three
    assert (outputs.count(4), outputs.count(3)) == ((N_STEPS, 1) if tiles else (0, 0))
    for network in (pair.ours.unet, pair.ours.vae):
        assert not any(isinstance(layer, painting.PaintingConv2d) for layer in network.modules())


def test_half_precision_weights_load_as_float32_in_both(tmp_path: Path) -> None:
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path)
    ours = StableDiffusionPipeline.from_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    assert ours.dtype is torch.float32
    request: dict[str, Any] = {
        "prompt": PROMPTS,
        "num_inference_steps": N_STEPS,
        "guidance_scale": 2.0,
        "output_type": "latent",
    }
    request["latents"] = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert relative_error(ours(**request).images, theirs(**request).images) < 1e-4
