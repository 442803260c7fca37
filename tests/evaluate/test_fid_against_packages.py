"""FID and KID against torchmetrics, and against torch-fidelity's formulas written out, on the same features.

torch-fidelity itself cannot be installed without torchvision. Its definitions, in NumPy on float32 features: the trace
of the root is the sum of the roots of the eigenvalues of C1 C2 (version 0.4; SciPy's `sqrtm` before), the covariance
that of `np.cov`; KID is the mean and the deviation, over subsets drawn without replacement, of the unbiased squared MMD
with the kernel (x.y / d + 1)^3.
"""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from miniai.base.seeds import make_generator
from miniai.evaluate.fid import fid, kid, squared_mmd

WITHIN = 1e-4


def pool_features(n: int, seed: int, shift: float = 0.0, d: int = 96) -> Tensor:
    """Like a network's last pooling: never negative, correlated, some of them nearly always zero."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(0)) / d**0.5
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ mix
    return (rows + torch.linspace(-2, 1, d) + shift).relu()


REAL, FAKE = pool_features(2500, 1), pool_features(2100, 2, 0.1)


class FromFeatures(nn.Module):
    """For metrics that want a network: its pictures are the features already."""

    num_features = REAL.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        return features


def covariances() -> tuple[np.ndarray, np.ndarray]:
    return np.cov(REAL.numpy(), rowvar=False), np.cov(FAKE.numpy(), rowvar=False)


def distance_with(trace_of_root: float) -> float:
    shift = REAL.numpy().mean(axis=0) - FAKE.numpy().mean(axis=0)
    return float(shift @ shift + sum(np.trace(one) for one in covariances()) - 2 * trace_of_root)


def test_fid_is_torch_fidelitys_formula_on_the_same_features() -> None:
    c1, c2 = covariances()
    of_eigenvalues = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    of_sqrtm = np.trace(scipy.linalg.sqrtm(c1 @ c2).real)
    found = fid(REAL, FAKE)
    assert found > 0.1
    assert found == pytest.approx(distance_with(of_eigenvalues), abs=WITHIN)
    assert found == pytest.approx(distance_with(of_sqrtm), abs=WITHIN)


def test_fid_is_that_of_torchmetrics_on_the_same_features() -> None:
    metric = FrechetInceptionDistance(feature=FromFeatures()).set_dtype(torch.float64)
    metric.update(REAL.double(), real=True)
    metric.update(FAKE.double(), real=False)
    assert fid(REAL, FAKE) == pytest.approx(float(metric.compute()), abs=WITHIN)


def mmd_of_torch_fidelity(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate for two sets of one size m."""
    m, d = x.shape
    k_xx, k_yy, k_xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    off_diagonal = (k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(off_diagonal - 2 * k_xy.sum() / m**2)


def test_kid_is_torch_fidelitys_formula_and_torchmetrics_on_the_same_subsets() -> None:
    n_subsets, size, seed = 8, 300, 5
    found = kid(REAL, FAKE, n_subsets, size, seed)
    by_formula, by_torchmetrics = [], []
    for i in range(n_subsets):
        generator = make_generator(seed, i)
        x, y = (rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in (REAL, FAKE))
        by_formula.append(mmd_of_torch_fidelity(x.numpy(), y.numpy()))
        by_torchmetrics.append(float(poly_mmd(x.double(), y.double())))
    for figures in (by_formula, by_torchmetrics):
        assert found.mean == pytest.approx(np.mean(figures), abs=WITHIN)
        assert found.deviation == pytest.approx(np.std(figures), abs=WITHIN)
    assert found.mean > 10 * WITHIN
    assert found.deviation > WITHIN


def test_the_mmd_of_whole_sets_is_that_of_torchmetrics_whose_one_subset_is_the_set() -> None:
    x, y = REAL[:400], FAKE[:400]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = KernelInceptionDistance(feature=FromFeatures(), subsets=1, subset_size=400)
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    mean, _ = metric.compute()
    assert squared_mmd(x, y) == pytest.approx(float(mean), abs=1e-9)
