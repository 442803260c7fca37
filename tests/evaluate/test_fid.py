"""FID and KID against closed forms, SciPy's matrix root and the definition written out."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from miniai.base.errors import UserNotice
from miniai.evaluate.fid import FEW_SAMPLES, Moments, fid, frechet_distance, kid, moments, squared_mmd


def _features(n: int, d: int, seed: int, shift: float = 0.0, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank or d, d, generator=generator)
    return torch.randn(n, rank or d, generator=generator) @ mix + shift


def test_moments_are_numpys() -> None:
    rows = _features(50, 7, 0)
    found = moments(rows)
    assert np.allclose(found.mean, rows.double().numpy().mean(0), rtol=0, atol=1e-12)
    assert np.allclose(found.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-12)


def test_distance_of_gaussians_with_diagonal_covariances_is_the_closed_form() -> None:
    """There it is the squared distance of the means plus that of the deviations."""
    generator = torch.Generator().manual_seed(1)
    mean_a, mean_b = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    std_a, std_b = torch.rand(2, 12, generator=generator, dtype=torch.float64) * 3
    found = frechet_distance(Moments(mean_a, torch.diag(std_a**2)), Moments(mean_b, torch.diag(std_b**2)))
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(16, 16), (5, 16), (5, 3)])
def test_distance_is_that_of_scipys_matrix_root(rank_a: int, rank_b: int) -> None:
    a, b = moments(_features(200, 16, 2, rank=rank_a)), moments(_features(300, 16, 3, 0.5, rank=rank_b))
    product = a.covariance.numpy() @ b.covariance.numpy()
    if rank_a < 16:  # SciPy's root of a singular matrix needs a nudge
        product = product + 1e-9 * np.eye(16)
    root = scipy.linalg.sqrtm(product).real
    expected = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()) - 2 * np.trace(
        root
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10 if rank_a == 16 else 1e-4)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.filterwarnings("ignore::miniai.base.errors.UserNotice")
def test_fid_of_a_set_with_itself_is_zero_and_of_a_shifted_one_the_shift_squared() -> None:
    rows = _features(100, 20, 4)
    assert fid(rows, rows) < 1e-9
    assert fid(rows, rows.flip(0)) < 1e-9
    assert fid(rows, rows.double() + 0.5) == pytest.approx(20 * 0.25, rel=1e-5)


@pytest.mark.filterwarnings("ignore::miniai.base.errors.UserNotice")
def test_fid_with_fewer_pictures_than_features_is_the_distance_of_their_moments() -> None:
    a, b = _features(10, 64, 5), _features(12, 64, 6, shift=0.3)
    assert fid(a, b) == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-7)
    assert fid(a, a.flip(0)) < 1e-9
    with pytest.raises(ValueError, match="at least two pictures, not 1"):
        fid(a[:1], b)


def test_fid_warns_exactly_below_2048_pictures() -> None:
    rows = torch.randn(FEW_SAMPLES, 3, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fid(rows, rows)
    with pytest.warns(UserNotice, match="2,047 pictures"):
        fid(rows, rows[1:])


def _squared_mmd_by_definition(a: Tensor, b: Tensor) -> float:
    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    x, y = a.double().numpy(), b.double().numpy()
    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(p, q) for p in x for q in y) / (n * m)


def test_squared_mmd_is_its_definition() -> None:
    a, b = _features(9, 5, 7), _features(13, 5, 8, 0.3)
    assert squared_mmd(a, b) == pytest.approx(_squared_mmd_by_definition(a, b), rel=1e-10)


def test_kid_is_unbiased() -> None:
    """Of two sets from one distribution it is zero within its error, above and below; FID is not."""
    figures = [squared_mmd(_unit(40, i), _unit(40, 1000 + i)) for i in range(200)]
    mean, error = np.mean(figures), np.std(figures) / 200**0.5
    assert abs(mean) < 3 * error
    assert min(figures) < 0 < max(figures)


def _unit(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) + shift


def test_kid_is_the_mean_and_deviation_over_subsets_and_grows_with_the_shift() -> None:
    a = _unit(300, 0)
    near, far = kid(a, _unit(300, 1, 0.2), 20, 100), kid(a, _unit(300, 2, 0.5), 20, 100)
    assert (near.n_subsets, near.subset_size) == (20, 100)
    assert near.deviation > 0
    assert 0 < near.mean < far.mean
    whole = squared_mmd(a, _unit(300, 2, 0.5))
    assert far.mean == pytest.approx(whole, abs=4 * far.deviation / 20**0.5)


def test_kid_is_the_same_for_the_same_seed_and_only_then() -> None:
    a, b = _unit(50, 3), _unit(60, 4)
    assert kid(a, b, 10, seed=1) == kid(a, b, 10, seed=1)
    assert kid(a, b, 10, seed=1) != kid(a, b, 10, seed=2)
    assert kid(a, b, 10).subset_size == 25


def test_too_few_pictures_or_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="subsets of two"):
        kid(torch.randn(9, 2), torch.randn(9, 2), subset_size=1)
    with pytest.raises(ValueError, match="two pictures"):
        moments(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="four pictures"):
        kid(torch.zeros(3, 3), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="NaN"):
        squared_mmd(torch.full((5, 3), float("nan")), torch.zeros(5, 3))
