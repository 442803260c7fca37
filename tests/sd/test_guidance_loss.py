"""A loss of one's own guides the pipeline: its gradient against differences of what the unguided pipeline paints."""

import pytest
import torch
from tiny_model import tiny_pipeline
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.diffusion.sampling import find_sampler, schedule_config
from miniai.diffusion.schedule import NoiseSchedule
from miniai.sd.pipeline import StableDiffusionPipeline

BLUE = torch.tensor([-1.0, -1.0, 1.0])


def unlike_blue(images: Tensor) -> Tensor:
    """How far the mean colour of each picture is from blue."""
    return (images.mean((2, 3)) - BLUE).square().sum(1)


def paint(pipe: StableDiffusionPipeline, latents: Tensor, steps: int, **options: object) -> Tensor:
    return pipe(
        ["a cat"] * len(latents), num_inference_steps=steps, sampler="euler", guidance_scale=3.0,
        latents=latents, output_type="latent", **options,
    ).images  # fmt: skip


def test_one_step_is_moved_by_the_gradient_of_the_loss_through_decoder_and_network() -> None:
    pipe = tiny_pipeline()
    start, way = (torch.randn(1, 4, 8, 8, generator=make_generator(i)) for i in (0, 1))
    method = find_sampler("euler")
    sigma = float(method.ladder(NoiseSchedule(schedule_config(pipe.scheduler_config, method, "")), 1).sigmas[0])
    scale = 0.01

    # One step of Euler ends in the estimate, so that is what the unguided pipeline paints.
    def loss(latents: Tensor) -> Tensor:
        with torch.no_grad():
            return unlike_blue(pipe.decode(paint(pipe, latents, 1)))

    def moved_along(direction: Tensor) -> Tensor:
        found = paint(pipe, start, 1, guidance_loss=unlike_blue, guidance_loss_scale=scale) - paint(pipe, start, 1)
        return (found * direction).sum()

    unit = max(1.0, (1 + sigma**2) ** 0.5)  # the start is so many times as large as the latents given
    h = 1e-2
    slope = (loss(start + h * way) - loss(start - h * way)) / (2 * h * unit)
    expected = float((-scale * sigma**2 * slope)[0])
    assert abs(expected) > 1e-5
    assert float(moved_along(way)) == pytest.approx(expected, rel=0.03)


def test_guidance_by_a_loss_lowers_it_and_a_scale_of_0_changes_nothing() -> None:
    pipe = tiny_pipeline()
    start = torch.randn(2, 4, 8, 8, generator=make_generator(0))
    plain, none, guided = (
        paint(pipe, start, 6, **({} if scale is None else {"guidance_loss": unlike_blue, "guidance_loss_scale": scale}))
        for scale in (None, 0, 0.3)
    )
    torch.testing.assert_close(none, plain, rtol=0, atol=2e-4)  # other kernels where there is a gradient
    with torch.no_grad():
        before, after = (unlike_blue(pipe.decode(latents)) for latents in (plain, guided))
    assert (after < before).all()
