"""Mean shift on tensors: the floor of the standard library alone is the oracle, one point after another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.nn import mean_shift as above
from miniai.scratch import meanshift as below
from miniai.scratch.tensor import Tensor

KERNELS = {"gaussian": below.gaussian, "triangular": below.triangular, "flat": below.flat}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 7), d=st.integers(1, 3), batch_size=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_points_come_to_rest_where_plain_python_leads_them(
    device: str, kernel: str, n: int, d: int, batch_size: int, seed: int
) -> None:
    x = draw(n, d, seed)
    wanted = below.mean_shift(Tensor(x.tolist(), "float64"), 0.8, KERNELS[kernel], max_steps=5, tolerance=0.0)
    found = above.mean_shift(
        x.to(device), 0.8, getattr(above, kernel), batch_size=batch_size, max_steps=5, tolerance=0.0
    )
    assert found.device.type == device
    torch.testing.assert_close(found.cpu(), torch.tensor(wanted.tolist(), dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_clusters_are_found_without_being_told_how_many(device: str, kernel: str) -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (centres.repeat(100, 1) + 0.5 * draw(300, 2).float()).to(device)
    rest = above.mean_shift(x, 2.5, getattr(above, kernel), batch_size=64, tolerance=1e-4)
    labels, peaks = above.clusters(rest, 1.0)
    assert labels.tolist() == [0, 1, 2] * 100
    assert (peaks.cpu() - centres).abs().max() < 0.3


def test_labels_are_those_of_plain_python() -> None:
    x = torch.tensor([[0.0], [5.0], [0.4], [0.8], [5.4], [9.0]], dtype=torch.float64)
    labels, peaks = above.clusters(x, 0.5)
    wanted_labels, wanted_peaks = below.clusters(Tensor(x.tolist()), 0.5)
    assert labels.tolist() == wanted_labels
    assert peaks.tolist() == wanted_peaks.tolist()


def test_points_that_have_met_far_from_the_origin_stay_together() -> None:
    x = 1000 + 1e-3 * draw(40, 2)
    assert above.mean_shift(x, 1.0).std(0).max() < 1e-6


def test_no_points_and_no_bandwidth_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        above.mean_shift(torch.zeros(0, 2), 1)
    with pytest.raises(ValueError, match="must be above 0, got 0, 1024 and 100"):
        above.mean_shift(torch.zeros(2, 2), 0)
