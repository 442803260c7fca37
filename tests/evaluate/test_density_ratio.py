"""Density ratios against SciPy's minimum of the same loss, and against normal data, whose ratio is known."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from miniai.base.seeds import make_generator
from miniai.evaluate.density_ratio import DensityRatio, fit_density_ratio


def test_the_minimum_is_scipys() -> None:
    generator = make_generator(0)
    real = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 2, 30, 0.1, 1]) + torch.tensor(
        [0.5, 0, 9, 0, 0]
    )
    other = torch.randn(170, 5, generator=generator) * torch.tensor([1.0, 3, 30, 0.1, 2])
    both = torch.cat([real, other]).double().numpy()
    rows = (both - both.mean(0)) / both.std(0, ddof=1)
    signs, shares = np.repeat([1.0, -1.0], [300, 170]), np.repeat([0.5 / 300, 0.5 / 170], [300, 170])

    def loss(w: np.ndarray) -> float:
        return float((shares * np.logaddexp(0, -signs * (rows @ w[:-1] + w[-1]))).sum() + 0.02 * (w[:-1] ** 2).sum())

    found = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
    ours = fit_density_ratio(real, other, ridge=0.02)
    np.testing.assert_allclose(ours.weights, found[:-1], atol=1e-5)
    np.testing.assert_allclose(ours.bias, found[-1], atol=1e-5)
    np.testing.assert_allclose(ours(real), np.exp(rows[:300] @ found[:-1] + found[-1]), rtol=1e-4)


def test_the_ratio_of_two_normal_distributions_is_found() -> None:
    """For the same covariance, log p/q is linear: (x - (a + b) / 2) · (a - b)."""
    generator, n = make_generator(1), 100_000
    a, b = torch.tensor([0.5, -0.2, 0.0]), torch.tensor([0.0, 0.3, 0.0])
    p, q = (torch.randn(k, 3, generator=generator) + mean for k, mean in ((n, a), (3 * n, b)))
    ratio = fit_density_ratio(p, q, ridge=1e-6)
    x = torch.randn(1000, 3, generator=generator)
    exact = ((x - (a + b) / 2) @ (a - b)).double()
    assert (ratio(x).log() - exact).abs().max() < 0.06
    assert float(ratio(q).mean()) == pytest.approx(1, abs=0.01)
    # What is kept by it has the mean of the others.
    kept = torch.rand(len(q), generator=generator) < (ratio(q) / 5).clamp(max=1)
    assert (q[kept].mean(0) - a).abs().max() < 0.03
    assert (q.mean(0) - a).abs().max() > 0.4


def test_features_that_never_change_and_parted_data_have_a_finite_ratio() -> None:
    real, other = torch.tensor([[1.0, 7.0], [2.0, 7.0]]), torch.tensor([[-1.0, 7.0], [-2.0, 7.0], [-1.5, 7.0]])
    ratio = fit_density_ratio(real, other)
    assert ratio.weights[1] == 0
    assert (ratio(real) > 5).all()
    assert (ratio(other) < 0.2).all()
    assert ratio(real).isfinite().all()
    again = DensityRatio(**ratio.tensors())
    assert torch.equal(again(other), ratio(other))


@pytest.mark.parametrize(("n", "ridge"), [(5, 0.0), (5, -1.0), (1, 1e-3)])
def test_what_has_no_ratio_is_refused(n: int, ridge: float) -> None:
    with pytest.raises(ValueError, match="a ridge above 0 and two rows of each"):
        fit_density_ratio(torch.randn(n, 2), torch.randn(9, 2), ridge)
