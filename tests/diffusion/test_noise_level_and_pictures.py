"""Estimated noise levels on data where the best estimate is known; pictures of the path in and out of the noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.diffusion.continuous import CosineTime
from miniai.diffusion.gaussian import GaussianData
from miniai.diffusion.noise_level import NoiseLevelObjective, timeless, told_by
from miniai.diffusion.pictures import denoising_path, noising, plot_quality, save_path, side_by_side
from miniai.diffusion.samplers import ddim, euler, euler_a

GREY = torch.full((2, 1, 8, 8), 0.5)
SIGMAS = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])


def level_of_grey(x_t: Tensor) -> Tensor:
    """t of a picture that was 0.5 everywhere: its deviation is sin of the angle t pi / 2."""
    return torch.asin(x_t.flatten(1).std(dim=1).clamp(max=1)) * 2 / torch.pi


def test_the_level_objective_is_small_for_one_who_can_tell_and_the_variance_of_t_for_one_who_cannot() -> None:
    schedule, pictures = CosineTime(0.0), torch.full((64, 1, 24, 24), 0.5)
    objective = NoiseLevelObjective(schedule)
    blind = objective(lambda x_t: torch.full((len(x_t),), 0.5), (pictures, None), make_generator(1))
    assert blind.item() == pytest.approx(1 / 12, rel=0.02)
    assert objective(level_of_grey, (pictures, None), make_generator(1)).item() < 0.01
    again = objective(level_of_grey, (pictures, None), make_generator(1))
    assert torch.equal(again, objective(level_of_grey, (pictures, None), make_generator(1)))


def test_an_estimated_level_corrects_a_sampler_that_is_wrong_about_it() -> None:
    schedule, data = CosineTime(0.0), GaussianData.draw((1, 4, 4), seed=2)
    true = torch.full((3,), 0.8, dtype=torch.float64)
    x = data.samples(3, make_generator(3), 0.8)

    def knows(x_t: Tensor) -> Tensor:
        return schedule.time(true)

    right = data(x, true)
    torch.testing.assert_close(told_by(knows, data, schedule)(x, 3 * true), right)
    assert not torch.allclose(data(x, 3 * true), right, atol=1e-2)


def test_a_network_without_time_serves_where_time_and_condition_are_given() -> None:
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(timeless(lambda x: x + 1)(x, torch.zeros(2), "condition"), x + 1)
    assert torch.equal(timeless(lambda x: x + 1)(x, torch.zeros(2)), x + 1)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")).astype(float)


def test_noising_shows_the_picture_first_and_plain_noise_last() -> None:
    sheet = pixels(noising(GREY, [0.0, 1.0, 1e5], make_generator(4)))
    assert sheet.shape == (17, 26)
    assert np.all(sheet[:8, :8] == 191)
    assert sheet[:8, 9:17].std() > 20
    noise = torch.randn(GREY.shape, generator=make_generator(4))
    last = ((noise[0, 0] / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert np.abs(sheet[:8, 18:] - last).max() <= 1


def test_the_denoising_path_ends_in_what_the_sampler_returns_and_is_an_endless_gif(tmp_path: Path) -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 / (1 + sigma[:, None, None, None]) + 0 * x

    x = torch.randn(2, 1, 8, 8) * 10
    sheet, frames = denoising_path(euler, denoiser, x, SIGMAS, n_shown=3)
    assert sheet.size == (26, 17)
    assert len(frames) == 4
    expected = round((0.5 / 1.3 / 2 + 0.5) * 255)
    assert np.all(pixels(frames[-1])[:, :8] == expected)
    assert np.all(pixels(sheet)[:8, 18:] == expected)
    save_path(tmp_path / "path.gif", frames)
    with Image.open(tmp_path / "path.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (4, 0)
        gif.seek(3)
        assert gif.info["duration"] == 1500
    _, colours = denoising_path(euler, denoiser, x, SIGMAS, decode=lambda z: z.repeat(1, 3, 2, 2))
    assert colours[0].size == (33, 16)


def test_samplers_side_by_side_start_from_the_same_noise() -> None:
    def noise() -> object:
        generator = make_generator(5)
        return lambda i: torch.randn(2, 1, 8, 8, generator=generator)

    x = torch.randn(2, 1, 8, 8) * 10
    rows = {"Euler": euler, "DDIM": ddim, "Euler a": euler_a, "Euler a again": euler_a}
    sheet = pixels(
        side_by_side(rows, lambda x, sigma: x / (1 + sigma[:, None, None, None] ** 2), x, SIGMAS, noise=noise)
    )
    assert sheet.shape == (35, 17)
    first, second, third, fourth = (sheet[9 * row : 9 * row + 8] for row in range(4))
    assert np.abs(first - second).max() <= 1  # the same method
    assert np.array_equal(third, fourth)
    assert not np.array_equal(first, third)


def test_the_plot_of_quality_over_steps_is_a_file(tmp_path: Path) -> None:
    plot = plot_quality(tmp_path / "fid.png", {"Euler": {20: 5.0, 10: 9.0}}, real=2.6)
    assert (tmp_path / "fid.png").read_bytes() == plot.png
