"""Distillation on data whose exact denoiser is known: a perfect student takes N steps where its teacher takes 2 N."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch

from miniai.base.seeds import make_generator
from miniai.diffusion.continuous_objectives import EDMDenoiser
from miniai.diffusion.denoiser import clipped, conditioned, guided
from miniai.diffusion.distillation import (
    GuidanceObjective,
    GuidedCondition,
    ProgressiveObjective,
    draw_scales,
    guidance_scale_embedding,
    halved,
    one_step_target,
    told_scale,
    two_step_target,
)
from miniai.diffusion.gaussian import GaussianData
from miniai.diffusion.ladder import karras_sigmas
from miniai.diffusion.parametrisation import cos_sin, from_x0, like_images
from miniai.diffusion.samplers import Denoiser, ddim, euler
from miniai.diffusion.weighting import EDMWeight, TruncatedSNR
from miniai.nn.unet2d import UNet2DConfig, UNet2DModel

DATA = GaussianData.draw((2, 4, 4), seed=1)
SIGMAS = torch.tensor([*karras_sigmas(0.002, 80.0, 16), 0.0], dtype=torch.float64)
SIGMA_DATA = 0.5
TINY = UNet2DConfig(
    sample_size=4,
    in_channels=2,
    out_channels=2,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    num_class_embeds=3,
)


def perfect_student(teacher: Denoiser, sigmas: torch.Tensor) -> Denoiser:
    """Who answers the target itself, on the rungs of `halved(sigmas)`."""

    def student(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        rung = (sigmas[:-1:2][None] / sigma[:, None]).log().abs().argmin(dim=1)
        return two_step_target(teacher, x, *(sigmas[2 * rung + k] for k in range(3)))

    return student


def as_network(denoiser: Any, sigma_data: float = SIGMA_DATA) -> Any:
    """The network behind EDM's preconditioning that makes the student `denoiser(x, sigma, condition)`, in float64."""

    def network(scaled: torch.Tensor, time: torch.Tensor, condition: Any) -> torch.Tensor:
        sigma = (4 * time.double()).exp()
        x = scaled.double() * like_images((sigma**2 + sigma_data**2).sqrt(), scaled)
        return from_x0(denoiser(x, sigma, condition), x, sigma, "edm", sigma_data)

    return network


def random_unet(seed: int, **changes: Any) -> UNet2DModel:
    model, generator = UNet2DModel(replace(TINY, **changes)), make_generator(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.mark.parametrize("sampler", [euler, ddim])
def test_perfect_students_take_half_the_steps_and_a_quarter_and_land_where_the_teacher_does(sampler: Any) -> None:
    x = DATA.samples(3, make_generator(2), 80.0)
    expected = euler(DATA, x, SIGMAS)
    student, few = perfect_student(DATA, SIGMAS), halved(SIGMAS)
    torch.testing.assert_close(sampler(student, x, few), expected)
    last, fewer = perfect_student(student, few), halved(few)
    assert (len(few), len(fewer)) == (9, 5)
    torch.testing.assert_close(sampler(last, x, fewer), expected)
    assert (euler(DATA, x, fewer) - expected).abs().max() > 0.05  # which without a student four steps do not reach


def test_students_path_is_every_second_point_of_the_teachers() -> None:
    seen: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}
    x = DATA.samples(2, make_generator(3), 80.0)
    euler(DATA, x, SIGMAS, callback=lambda i, x, sigma, x0: seen["teacher"].append(x))
    student = perfect_student(DATA, SIGMAS)
    euler(student, x, halved(SIGMAS), callback=lambda i, x, sigma, x0: seen["student"].append(x))
    torch.testing.assert_close(seen["student"], seen["teacher"][1::2])


def test_the_target_is_that_of_algorithm_2_in_the_papers_coordinates() -> None:
    """There z = alpha x and the deviation of the noise is alpha sigma, with alpha^2 + (alpha sigma)^2 = 1."""
    x, x_next = (DATA.samples(2, make_generator(seed), 1.0) for seed in (4, 5))
    sigma, sigma_next = (torch.tensor(s, dtype=torch.float64) for s in ([80.0, 0.7], [3.0, 0.0]))
    (alpha, spread), (alpha_next, spread_next) = (
        (like_images(part, x) for part in cos_sin(level)) for level in (sigma, sigma_next)
    )
    ratio = spread_next / spread
    expected = (alpha_next * x_next - ratio * (alpha * x)) / (alpha_next - ratio * alpha)
    torch.testing.assert_close(one_step_target(x, x_next, sigma, sigma_next), expected)
    torch.testing.assert_close(expected[1], x_next[1])  # the step to sigma 0


def test_the_target_is_a_mean_of_the_teachers_two_estimates() -> None:
    said: list[torch.Tensor] = []

    def teacher(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        said.append(DATA(x, sigma))
        return said[-1]

    for i in range(0, 16, 2):
        said.clear()
        x = DATA.samples(2, make_generator(i), float(SIGMAS[i]))
        sigma, mid, after = (level.expand(2) for level in SIGMAS[i : i + 3])
        target = two_step_target(teacher, x, sigma, mid, after)
        weights = like_images(after / mid * (1 - mid / sigma), x), like_images(1 - after / mid, x)
        expected = (weights[0] * said[0] + weights[1] * said[1]) / (weights[0] + weights[1])
        torch.testing.assert_close(target, expected)


def test_an_odd_number_of_steps_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="3 steps cannot be halved"):
        halved(SIGMAS[-4:])
    assert set(halved(SIGMAS).tolist()) < set(SIGMAS.tolist())


@pytest.mark.parametrize("weight", [None, TruncatedSNR()])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_a_perfect_student_has_no_loss_and_a_copy_of_the_teacher_has(weight: Any, clip: float | None) -> None:
    def teacher(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return DATA(x, sigma) + 0.1 * like_images(condition, x)  # what it is told counts

    def student(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        one = conditioned(teacher, condition)
        return perfect_student(one if clip is None else clipped(one, clip), SIGMAS)(x, sigma)

    objective = ProgressiveObjective(teacher, SIGMAS, SIGMA_DATA, clip=clip, weight=weight)
    batch = DATA.samples(32, make_generator(6)), torch.linspace(-1, 1, 32, dtype=torch.float64)
    losses = [objective(as_network(one), batch, make_generator(7)).item() for one in (student, teacher)]
    assert losses[0] < 1e-9  # networks see float32
    assert losses[1] > 1e-3


def test_without_a_weight_the_loss_is_the_plain_error_of_the_networks_own_prediction() -> None:
    off = 0.25

    def student(x: torch.Tensor, sigma: torch.Tensor, condition: Any) -> torch.Tensor:
        return perfect_student(DATA, SIGMAS)(x, sigma)

    def network(*asked: Any) -> torch.Tensor:
        return as_network(student)(*asked) + off

    batch = DATA.samples(16, make_generator(8)), None
    objective = ProgressiveObjective(lambda x, sigma, condition: DATA(x, sigma), SIGMAS, SIGMA_DATA)
    assert objective(network, batch, make_generator(9)).item() == pytest.approx(off**2, rel=1e-4)


def test_the_papers_weights_are_snr_cut_off_below_and_snr_plus_one() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 30.0], dtype=torch.float64)
    snr = sigma**-2
    torch.testing.assert_close(TruncatedSNR()(sigma), torch.maximum(snr, torch.ones_like(snr)))
    torch.testing.assert_close(EDMWeight(1.0)(sigma), snr + 1)


def test_each_rung_of_the_student_is_as_likely_as_any_other_and_stands_with_its_next_two() -> None:
    objective = ProgressiveObjective(DATA, SIGMAS)
    drawn = torch.stack(objective.draw(80, make_generator(10)), dim=1)
    triples, counts = drawn.unique(dim=0, return_counts=True)
    assert counts.tolist() == [10] * 8
    expected = [[*two, float(SIGMAS[2 * i + 1])] for i, two in enumerate(pairwise(halved(SIGMAS).tolist()))]
    assert sorted(triples.tolist()) == sorted([first, mid, last] for first, last, mid in expected)


def test_gradients_reach_the_student_alone() -> None:
    teacher, student = random_unet(1), random_unet(2)
    batch = torch.randn(6, 2, 4, 4), torch.arange(6) % 3
    ProgressiveObjective(EDMDenoiser(teacher), SIGMAS)(student, batch, make_generator(11)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in student.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())

    teacher, student = random_unet(1), random_unet(2, time_cond_proj_dim=16)
    objective = GuidanceObjective(EDMDenoiser(teacher), torch.tensor(2), (1.0, 3.0))
    objective(told_scale(student, 16), batch, make_generator(12)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in student.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_student_who_says_what_guidance_says_has_no_loss_and_one_without_guidance_has() -> None:
    def teacher(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return DATA(x, sigma) + 0.1 * like_images(labels.double(), x)

    told: list[GuidedCondition] = []

    def student(x: torch.Tensor, sigma: torch.Tensor, condition: GuidedCondition) -> torch.Tensor:
        told.append(condition)
        said = torch.zeros_like(x)
        for i, scale in enumerate(condition.scale.tolist()):  # one by one, by the sampler's own guidance
            labels, one = condition.labels[i : i + 1], slice(i, i + 1)
            said[one] = guided(teacher, labels, torch.full_like(labels, 7), scale)(x[one], sigma[one])
        return said

    def unguided(x: torch.Tensor, sigma: torch.Tensor, condition: GuidedCondition) -> torch.Tensor:
        return teacher(x, sigma, condition.labels)

    objective = GuidanceObjective(teacher, torch.tensor(7), (1.0, 4.0), sigma_data=SIGMA_DATA)
    batch = DATA.samples(32, make_generator(13)), torch.arange(32) % 4
    losses = [objective(as_network(one), batch, make_generator(14)).item() for one in (student, unguided)]
    assert losses[0] < 1e-9
    assert losses[1] > 1e-3
    assert torch.equal(told[0].labels, batch[1])
    assert 1 <= told[0].scale.min() < 1.2 < 3.8 < told[0].scale.max() <= 4


def test_scales_are_uniform_between_their_bounds() -> None:
    drawn = draw_scales(400, 1.0, 3.0, make_generator(15)).sort().values
    torch.testing.assert_close(drawn, torch.linspace(1, 3, 400), rtol=0, atol=0.01)
    assert torch.equal(draw_scales(3, 2.0, 2.0, make_generator(15)), torch.full((3,), 2.0))


@pytest.mark.parametrize("dim", [16, 33])
def test_the_scale_is_embedded_as_diffusers_embeds_it(dim: int) -> None:
    scale = torch.tensor([1.0, 1.5, 2.75, 8.0])
    theirs: Any = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = theirs(None, scale - 1, dim)
    # A rounding in the frequency, times an angle of up to 7000.
    torch.testing.assert_close(guidance_scale_embedding(scale, dim), expected, rtol=0, atol=3e-3)


def test_the_time_embedding_with_a_scale_equals_that_of_diffusers() -> None:
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        time_cond_proj_dim=16,
    ).time_embedding
    ours = UNet2DModel(replace(TINY, time_cond_proj_dim=16)).time_embedding
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    time, scale = torch.randn(5, 8), torch.randn(5, 16)
    torch.testing.assert_close(ours(time, scale), theirs(time, scale))
    torch.testing.assert_close(ours(time), theirs(time))


def test_a_student_told_the_scale_begins_as_its_teacher_exactly_and_then_listens() -> None:
    teacher, student = random_unet(3), UNet2DModel(replace(TINY, time_cond_proj_dim=16))
    student.load_state_dict(student.state_dict() | teacher.state_dict())
    x, time, labels = torch.randn(4, 2, 4, 4), torch.randn(4), torch.tensor([0, 1, 2, 0])
    condition = GuidedCondition(labels, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(told_scale(student, 16)(x, time, condition), teacher(x, time, labels))
    torch.nn.init.ones_(student.time_embedding.cond_proj.weight)
    assert not torch.equal(told_scale(student, 16)(x, time, condition), teacher(x, time, labels))


def test_a_network_without_a_scale_has_no_weights_for_it_and_says_so() -> None:
    x, time, labels = torch.randn(1, 2, 4, 4), torch.zeros(1), torch.tensor([0])
    plain, told = UNet2DModel(TINY), UNet2DModel(replace(TINY, time_cond_proj_dim=16))
    assert told.state_dict().keys() - plain.state_dict().keys() == {"time_embedding.cond_proj.weight"}
    with pytest.raises(ValueError, match="has no time_cond_proj_dim"):
        plain(x, time, labels, torch.zeros(1, 16))
    with pytest.raises(ValueError, match="needs timestep_cond"):
        told(x, time, labels)


def test_guidance_by_a_scale_for_each_picture_is_guidance_by_each_scale() -> None:
    def denoiser(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return x * like_images(condition, x)

    x, sigma = torch.randn(3, 1, 2, 2), torch.ones(3)
    condition, negative = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    together = guided(denoiser, condition, negative, torch.tensor([1.0, 2.5, 0.0]))(x, sigma)
    for i, scale in enumerate((1.0, 2.5, 0.0)):
        torch.testing.assert_close(together[i], guided(denoiser, condition, negative, scale)(x, sigma)[i])
