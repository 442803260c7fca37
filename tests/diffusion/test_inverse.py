"""Restoration and guidance by a loss against closed forms: on normal data the posterior is known."""

import pytest
import torch

from miniai.base.seeds import make_generator
from miniai.diffusion.gaussian import GaussianData
from miniai.diffusion.inverse import (
    Averaged,
    Blurred,
    Grey,
    Masked,
    Measurement,
    Operator,
    conjugate_gradients,
    loss_guided,
    restoring,
)
from miniai.diffusion.ladder import karras_sigmas
from miniai.diffusion.samplers import euler_a, heun

SHAPE = (3, 4, 4)
N = 48
DEVIATION = 0.6
MASK = (torch.rand(4, 4, generator=make_generator(5), dtype=torch.float64) < 0.5).double()
OPERATORS: dict[str, Operator] = {
    "masked": Masked(MASK),
    "averaged": Averaged(2),
    "blurred": Blurred(0.7),
    "grey": Grey(),
}


def even_data() -> GaussianData:
    """Of the same deviation along every axis."""
    mean = 0.3 * torch.randn(SHAPE, generator=make_generator(0), dtype=torch.float64)
    return GaussianData(mean, torch.full((N,), DEVIATION**2).double(), torch.eye(N).double())


def matrix_of(operator: Operator) -> torch.Tensor:
    """The operator as a matrix, column by column."""
    return operator(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).flatten(1).T


def posterior(data: GaussianData, operator: Operator, observed: torch.Tensor, sigma_y: float) -> tuple:
    """Mean and covariance of x0 given what was observed: Bishop 2006, eq. 2.116, in the form with a gain."""
    a, prior = matrix_of(operator), data.axes @ torch.diag(data.variances) @ data.axes.T
    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + sigma_y**2 * torch.eye(len(a)))
    mean = data.mean.flatten() + (observed.flatten(1) - a @ data.mean.flatten()) @ gain.T
    return mean.reshape(-1, *SHAPE), prior - gain @ a @ prior


@pytest.mark.parametrize("name", OPERATORS)
def test_the_restoring_denoiser_is_the_posterior_mean_of_normal_data_of_one_deviation(name: str) -> None:
    data, operator, sigma_y = even_data(), OPERATORS[name], 0.1
    sigma = torch.tensor([0.05, 0.7, 9.0], dtype=torch.float64)
    x = torch.cat([data.samples(1, make_generator(i), float(level)) for i, level in enumerate(sigma)])
    observed = operator(data.samples(3, make_generator(8)))
    # x is a second measurement, of the whole picture: what it says is the prior of the first.
    shrunk = DEVIATION**2 * sigma**2 / (DEVIATION**2 + sigma**2)
    expected = []
    for i in range(3):
        seen = GaussianData(data(x, sigma)[i], shrunk[i].expand(N), data.axes)
        expected.append(posterior(seen, operator, observed[i : i + 1], sigma_y)[0])
    found = restoring(data, Measurement(operator, observed, sigma_y), sigma_data=DEVIATION)(x, sigma)
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)


def test_pictures_that_are_sampled_so_have_the_posteriors_mean_and_covariance() -> None:
    data, operator, sigma_y, n = even_data(), OPERATORS["averaged"], 0.2, 4000
    observed = operator(data.samples(1, make_generator(3)))
    mean, covariance = posterior(data, operator, observed, sigma_y)
    denoiser = restoring(data, Measurement(operator, observed.expand(n, -1, -1, -1), sigma_y), sigma_data=DEVIATION)
    sigmas = torch.tensor([*karras_sigmas(0.01, 20.0, 30), 0.0], dtype=torch.float64)
    x = 20 * torch.randn((n, *SHAPE), generator=make_generator(4), dtype=torch.float64)
    drawn = heun(denoiser, x, sigmas)
    torch.testing.assert_close(drawn.mean(0, keepdim=True), mean, rtol=0, atol=0.04)
    torch.testing.assert_close(torch.cov(drawn.flatten(1).T), covariance, rtol=0, atol=0.05)


def test_data_of_uneven_deviation_are_restored_nearly_as_well_as_can_be() -> None:
    data, operator = GaussianData.draw(SHAPE, seed=2), OPERATORS["averaged"]
    truth = data.samples(50, make_generator(1))
    observed = operator(truth)
    denoiser = restoring(data, Measurement(operator, observed, 0.01), sigma_data=0.3)
    generator = make_generator(2)

    def noise(i: int) -> torch.Tensor:
        return torch.randn(truth.shape, generator=generator, dtype=torch.float64)

    sigmas = torch.tensor([*karras_sigmas(0.01, 20.0, 40), 0.0], dtype=torch.float64)
    restored = euler_a(denoiser, 20 * noise(0), sigmas, noise=noise)
    assert (operator(restored) - observed).square().mean().sqrt() < 0.02
    # Of two draws from the posterior (the truth is one) the mean squared distance is twice its variance.
    _, covariance = posterior(data, operator, observed, 0.01)
    assert (restored - truth).square().mean() / (2 * covariance.diagonal().mean()) == pytest.approx(1, abs=0.15)


def test_guidance_by_a_loss_moves_the_estimate_by_its_gradient_through_the_denoiser() -> None:
    data = GaussianData.draw(SHAPE, seed=4)
    x, sigma = data.samples(2, make_generator(1), 1.0), torch.tensor([0.5, 2.0], dtype=torch.float64)
    goal, scale = data.samples(2, make_generator(2)), 3.0
    found = loss_guided(data, lambda x0: (x0 - goal).square().flatten(1).sum(1), scale=scale)(x, sigma)
    # D is linear, so its Jacobian is a matrix, which the denoiser's own answers to unit pictures give.
    units = torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)
    for i in range(2):
        level = sigma[i].expand(N)
        jacobian = (data(data.mean + units, level) - data.mean).flatten(1)  # row k: what unit k does
        x0 = data(x[i : i + 1], sigma[i : i + 1])
        gradient = jacobian @ (2 * (x0 - goal[i])).flatten()
        torch.testing.assert_close(found[i].flatten(), x0.flatten() - scale * sigma[i] ** 2 * gradient)


def test_conjugate_gradients_solve_what_torch_solves() -> None:
    generator = make_generator(0)
    a = torch.randn(3, 7, 7, generator=generator, dtype=torch.float64)
    matrix = a @ a.mT + 0.1 * torch.eye(7)
    right = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], right, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right))
    assert torch.equal(conjugate_gradients(lambda v: 2 * v, torch.zeros(1, 3)), torch.zeros(1, 3))


def test_the_blur_keeps_flat_pictures_and_is_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    picture = torch.rand(1, 2, 9, 12, generator=make_generator(0), dtype=torch.float64)
    expected = ndimage.gaussian_filter(picture.numpy(), (0, 0, 1.3, 1.3), mode="mirror", radius=(0, 0, 4, 4))
    torch.testing.assert_close(Blurred(1.3)(picture), torch.from_numpy(expected))


def test_a_blur_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Blurred(0)


def test_a_measurement_without_any_error_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma_y must be above 0"):
        Measurement(Grey(), torch.zeros(1, 1, 2, 2), 0.0)


def test_the_callers_gradients_and_pictures_are_left_alone() -> None:
    data = even_data()
    x, sigma = data.samples(2, make_generator(1), 1.0), torch.ones(2, dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        found = restoring(data, Measurement(Grey(), torch.zeros(2, 1, 4, 4)), sigma_data=DEVIATION)(x, sigma)
    assert not found.requires_grad
    assert not x.requires_grad
    assert torch.equal(x, before)
