"""Several conditions at once: closed forms, and guidance by one."""

import pytest
import torch

from miniai.base.seeds import make_generator
from miniai.diffusion.composition import composed
from miniai.diffusion.denoiser import guided


def denoiser(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Not linear in what is asked for, and another for each noise level."""
    return torch.tanh(x * condition.mean((1, 2))[:, None, None, None]) / (1 + sigma[:, None, None, None])


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=make_generator(seed))


@pytest.mark.parametrize("interval", [(0.0, float("inf")), (0.5, 2.0)])
def test_one_condition_of_weight_one_is_guidance(interval: tuple[float, float]) -> None:
    x, asked, empty = draw(3, 2, 4, 4, seed=0), draw(3, 5, 6, seed=1), draw(3, 5, 6, seed=2)
    sigma = torch.tensor([0.3, 1.0, 2.0])
    ours = composed(denoiser, asked[None], torch.ones(3, 1), empty, 2.5, interval=interval)(x, sigma)
    torch.testing.assert_close(ours, guided(denoiser, asked, empty, 2.5, interval=interval)(x, sigma))


def test_each_picture_adds_up_its_own_conditions_by_their_weights() -> None:
    x, empty, sigma = draw(2, 2, 4, 4, seed=0), draw(2, 5, 6, seed=1), torch.tensor([0.7, 3.0])
    asked, weights = draw(3, 2, 5, 6, seed=2), torch.tensor([[1.0, 0.5, -0.8], [0.3, 0.0, 2.0]])
    ours = composed(denoiser, asked, weights, empty, 4)(x, sigma)
    for i in range(2):
        one = slice(i, i + 1)
        away = denoiser(x[one], sigma[one], empty[one])
        expected = away + sum(
            4 * weights[i, k] * (denoiser(x[one], sigma[one], asked[k, one]) - away) for k in range(3)
        )
        torch.testing.assert_close(ours[one], expected)
