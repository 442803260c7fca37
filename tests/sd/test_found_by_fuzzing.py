"""Requests in which ours once differed from Diffusers, found by a thousand random ones."""

from typing import Any

import pytest
import torch
from sd_oracle import relative_error
from three_pipelines import Models, mask, picture

from miniai.base.seeds import randn
from miniai.diffusion.sampling import find_sampler, schedule_config
from miniai.diffusion.schedule import NoiseSchedule

TWO = {"prompt": ["a cat", "a rocket"], "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("plain"), "epsilon")


@pytest.fixture(scope="module")
def factor_8(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("factor_8"), "factor_8")


def test_pictures_that_share_a_generator_are_one_draw() -> None:
    shared, one = (torch.Generator().manual_seed(0) for _ in range(2))
    assert torch.equal(randn((2, 4, 5, 3), [shared, shared]), torch.randn(2, 4, 5, 3, generator=one))


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
@pytest.mark.parametrize("kind", ["from_text", "from_image", "inpaint"])
def test_one_generator_for_latents_of_any_number(factor_8: Models, kind: str, sampler: str) -> None:
    size = {"height": 40, "width": 24}
    pictures = [picture(24, 40, seed) for seed in range(2)]
    own: dict[str, dict[str, Any]] = {
        "from_text": size,
        "from_image": {"image": pictures, "strength": 0.8},
        "inpaint": {"image": pictures, "mask_image": mask(24, 40), **size},
    }
    factor_8.assert_equal(kind, sampler, **TWO, **own[kind])


@pytest.mark.parametrize("kind", ["from_text", "from_image", "inpaint"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_an_end_above_sigma_0(plain: Models, sampler: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"final_sigmas_type": "sigma_min"}
    monkeypatch.setattr(plain, "schedule", dict(plain.schedule) | ends)
    monkeypatch.setattr(plain.ours, "scheduler_config", plain.ours.scheduler_config | ends)
    given = {"image": picture()} if kind != "from_text" else {}
    given |= {"mask_image": mask()} if kind == "inpaint" else {}
    plain.assert_equal(kind, sampler, prompt="a cat", **given)


@pytest.mark.parametrize("last", [0.0, 0.5])
def test_sigmas_of_the_callers(plain: Models, last: float) -> None:
    plain.assert_equal("from_text", "euler", prompt="a cat", sigmas=[10.0, 3.0, 1.0, last])


def test_sigmas_of_the_callers_in_place_of_karras(plain: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "schedule", dict(plain.schedule) | {"use_karras_sigmas": True})
    lists = {"sigmas": [10.0, 3.0, 1.0, 0.0]}
    theirs = plain.theirs("from_text", "euler", prompt="a cat", generator=torch.Generator().manual_seed(3), **lists)
    ours = plain.paint(prompt="a cat", sampler="euler_karras", generator=torch.Generator().manual_seed(3), **lists)
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_within_a_mask_what_a_callback_changes_stays_changed(plain: Models, sampler: str, strength: float) -> None:
    def fainter(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 0.9}

    request = {"image": picture(), "mask_image": mask(), "strength": strength, "callback_on_step_end": fainter}
    plain.assert_equal("inpaint", sampler, prompt="a cat", **request)


def test_karras_sigmas_end_exactly_where_they_should() -> None:
    sampler = find_sampler("dpmpp_2m_karras")
    file = {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"}
    schedule = NoiseSchedule(schedule_config(file, sampler, "file"))
    for n_steps in range(2, 61):
        assert sampler.ladder(schedule, n_steps).sigmas[-1] == schedule.sigma[0]
