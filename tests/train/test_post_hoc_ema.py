"""Averages whose length is chosen afterwards: against quadrature, explicit sums, and the averages themselves."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.weights import write_weights
from miniai.train.callback import Callback, CallbackError, CancelFitException
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.post_hoc_ema import WIDEST, AverageSnapshots, PowerEMA, mixture, power_of, reconstruct, snapshots


def density(x: float, end: float, power: float) -> float:
    return (power + 1) * x**power / end ** (power + 1) if 0 <= x <= end else 0.0


class Watch(Callback):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def after_step(self, learner: Learner) -> None:
        self.seen.append(learner.model.weight.detach().double().clone())


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_batch(self, learner: Learner) -> None:
        if learner.step == self.step:
            raise CancelFitException("enough")


def make_learner(*callbacks: Callback, n_steps: int = 400) -> Learner:
    """A training that drifts for all of its time, with noise: weights that never settle tell averages apart."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    x = torch.randn(n_steps, 8, generator=torch.Generator().manual_seed(1))

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return (model(batch) + torch.randn(len(batch), 4, generator=generator)).mean()

    return Learner(model, Loader(x, 1, seed=0), objective, optimizer, callbacks=list(callbacks), seed=3)


@settings(deadline=None)
@given(st.floats(0.005, WIDEST))
def test_the_power_of_a_width_has_that_width(width: float) -> None:
    power = power_of(width)
    mean = (power + 1) / (power + 2)
    points = [max(0.0, mean - 5 * width), mean]
    second = quad(lambda x: (x - mean) ** 2 * density(x, 1, power), 0, 1, points=points, limit=400)[0]
    assert second**0.5 == pytest.approx(width, rel=1e-6)


def test_powers_of_the_widths_that_the_paper_names() -> None:
    """Section 3.2: gamma is 16.97 and 6.94 for 0.05 and 0.10."""
    assert power_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert power_of(WIDEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, float("nan")])
def test_widths_that_no_average_has_are_refused(width: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 0\.2887"):
        power_of(width)


@pytest.mark.parametrize(("width", "every"), [(0.05, 1), (0.2, 1), (0.1, 3)])
def test_an_average_is_the_sum_by_a_power_of_time(width: float, every: int) -> None:
    average, weights = PowerEMA(width, every=every), Watch()
    make_learner(average, weights, n_steps=60).fit(1)
    seen = torch.stack(weights.seen[every - 1 :: every])
    edges = (torch.arange(len(seen) + 1, dtype=torch.float64) / len(seen)) ** (power_of(width) + 1)
    expected = (edges.diff()[:, None, None] * seen).sum(0)
    assert average.n_updates == 60 // every
    assert torch.allclose(average.shadow["weight"].double(), expected, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(5, 100), st.floats(0, 20)), min_size=1, max_size=3), st.floats(0.5, 20))
@example(profiles=[(6.0, 0.0), (6.0, 2.0**-14)], power=1.0)
def test_the_error_of_a_mixture_is_that_of_its_density(profiles: list[tuple[float, float]], power: float) -> None:
    parts, error = mixture(profiles, (100.0, power))
    x = 100 * np.linspace(0, 1, 200_001) ** 3  # near 0 powers that are nearly alike part most
    mixed = sum(
        part * np.where(x <= end, (g + 1) / end * (x / end) ** g, 0)
        for part, (end, g) in zip(parts.tolist(), profiles, strict=True)
    )
    wanted = (power + 1) / 100 * (x / 100) ** power
    numeric = (np.trapezoid((mixed - wanted) ** 2, x) / np.trapezoid(wanted**2, x)) ** 0.5
    assert float(parts.sum()) == pytest.approx(1, abs=1e-8)
    assert error == pytest.approx(numeric, rel=0.01, abs=2e-3)


def test_no_other_parts_are_nearer() -> None:
    profiles = [(end, power) for end in (25.0, 50.0, 75.0, 100.0) for power in (16.97, 6.94)]
    best, error = mixture(profiles, (100.0, 3.0))
    x = np.linspace(0, 100, 20_001)
    densities = np.stack([np.where(x <= end, (g + 1) / end * (x / end) ** g, 0) for end, g in profiles])
    wanted = 4 / 100 * (x / 100) ** 3
    generator = np.random.default_rng(0)
    for _ in range(50):
        step = generator.normal(size=len(best)) * 0.02
        other = best.numpy() + step - step.mean()
        away = np.trapezoid((other @ densities - wanted) ** 2, x) / np.trapezoid(wanted**2, x)
        assert away**0.5 > error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [0.03, 0.07, 0.13, 0.2, 0.25])
def test_what_is_reconstructed_is_the_average_that_went_along(width: float, dtype: torch.dtype, tmp_path: Path) -> None:
    kept, along = [PowerEMA(0.05), PowerEMA(0.10)], PowerEMA(width)
    make_learner(*kept, along, AverageSnapshots(tmp_path, kept, every_steps=10, dtype=dtype)).fit(1)
    truth = along.shadow["weight"]
    found = reconstruct(tmp_path, width)["weight"]
    nearest_kept = min(float((average.shadow["weight"] - truth).norm()) for average in kept)
    assert found.dtype == torch.float32
    assert float((found - truth).norm()) < 0.02 * nearest_kept + 2e-3 * float(truth.norm()) * (dtype == torch.float16)


def test_the_average_of_an_earlier_moment(tmp_path: Path) -> None:
    kept, along = [PowerEMA(0.05), PowerEMA(0.10)], PowerEMA(0.15)
    make_learner(*kept, along, StopAt(200)).fit(1)
    truth = along.shadow["weight"].clone()
    again = [PowerEMA(0.05), PowerEMA(0.10)]
    make_learner(*again, AverageSnapshots(tmp_path, again, every_steps=10, dtype=torch.float32)).fit(1)
    assert torch.allclose(reconstruct(tmp_path, 0.15, n_updates=200)["weight"], truth, atol=1e-4)
    assert torch.allclose(reconstruct(tmp_path, 0.05, 200)["weight"], kept[0].shadow["weight"], atol=1e-5)


def test_a_width_that_was_kept_is_given_back(tmp_path: Path) -> None:
    kept = [PowerEMA(0.05), PowerEMA(0.10)]
    make_learner(*kept, AverageSnapshots(tmp_path, kept, every_steps=25)).fit(1)
    assert [one.n_updates for one in snapshots(tmp_path)] == [n for n in range(25, 401, 25) for _ in range(2)]
    for average in kept:
        assert torch.allclose(reconstruct(tmp_path, average.width)["weight"], average.shadow["weight"], atol=2e-3)


def test_the_end_of_a_training_is_kept_whatever_its_length(tmp_path: Path) -> None:
    kept = [PowerEMA(0.05)]
    make_learner(*kept, AverageSnapshots(tmp_path, kept, every_steps=20), n_steps=45).fit(1)
    assert [one.n_updates for one in snapshots(tmp_path)] == [20, 40, 45]


def test_too_few_snapshots_for_a_narrow_average_are_warned_of(tmp_path: Path) -> None:
    kept = [PowerEMA(0.05), PowerEMA(0.10)]
    make_learner(*kept, AverageSnapshots(tmp_path, kept, every_steps=200)).fit(1)
    wrong = r"width 0.01 differs from what 4 snapshots can make up by \d\d%, and their rounding by 0\.0%"
    with pytest.warns(UserWarning, match=wrong):
        reconstruct(tmp_path, 0.01)


def test_a_training_that_is_resumed_keeps_the_same_snapshots(tmp_path: Path) -> None:
    """The one that stopped had written snapshots of steps that it does again."""

    def parts(name: str) -> list[Callback]:
        averages = [PowerEMA(0.05), PowerEMA(0.10)]
        checkpoint = Checkpoint(tmp_path / f"{name}-checkpoints", every_steps=50)
        return [*averages, checkpoint, AverageSnapshots(tmp_path / name, averages, every_steps=20)]

    class Fail(Callback):
        def after_step(self, learner: Learner) -> None:
            if learner.step == 95:
                raise RuntimeError("the power went out")

    make_learner(*parts("whole"), n_steps=160).fit(1)
    with pytest.raises(RuntimeError, match="power went out"):
        make_learner(*parts("cut"), Fail(), n_steps=160).fit(1)
    assert snapshots(tmp_path / "cut")[-1].n_updates == 80
    write_weights(tmp_path / "cut" / "average-0000099-0.safetensors", {"weight": torch.zeros(1)})  # of another life
    again = make_learner(*parts("cut"), n_steps=160)
    resume(again, tmp_path / "cut-checkpoints")
    assert again.step == 50
    again.fit(1)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert len(names) == 16
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_folders_that_hold_no_snapshots_or_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no snapshots of averages"):
        reconstruct(tmp_path / "nowhere", 0.1)
    kept = [PowerEMA(0.05), PowerEMA(0.10)]
    make_learner(*kept, AverageSnapshots(tmp_path, kept, every_steps=20), n_steps=40).fit(1)
    for moment in (0, 10, 41):
        with pytest.raises(UserError, match=f"no snapshots of the first {moment} updates: they end at 40"):
            reconstruct(tmp_path, 0.1, n_updates=moment)
    other = tmp_path / "average-0000030-0.safetensors"
    write_weights(other, {"weight": torch.zeros(4, 8)})
    with pytest.raises(UserError, match=r"average-0000030-0\.safetensors is not a snapshot"):
        reconstruct(tmp_path, 0.1)
    for told in ({"width": "0.9", "n_updates": "30"}, {"width": "0.05", "n_updates": "0"}):
        write_weights(other, {"weight": torch.zeros(4, 8)}, told)
        with pytest.raises(UserError, match=r"average-0000030-0\.safetensors is not a snapshot"):
            reconstruct(tmp_path, 0.1)
    write_weights(other, {"weight": torch.zeros(3, 8)}, {"width": "0.05", "n_updates": "30"})
    with pytest.raises(UserError, match="of another model"):
        reconstruct(tmp_path, 0.1)


def test_narrow_averages_of_snapshots_in_half_precision_are_warned_of(tmp_path: Path) -> None:
    """The error that rounding makes is what the warning says; the same snapshots in float32 have none."""
    found, warned = {}, {}
    for dtype in (torch.float32, torch.float16):
        kept = [PowerEMA(0.05), PowerEMA(0.10)]
        make_learner(*kept, AverageSnapshots(tmp_path / str(dtype), kept, every_steps=10, dtype=dtype)).fit(1)
        with warnings.catch_warnings(record=True) as warned[dtype]:
            warnings.simplefilter("always")
            found[dtype] = reconstruct(tmp_path / str(dtype), 0.018)["weight"]
    assert warned[torch.float32] == []
    said = float(re.search(r"width 0.018 .* rounding by (.*?)%", str(warned[torch.float16][0].message))[1]) / 100
    lost = float((found[torch.float16] - found[torch.float32]).norm() / found[torch.float32].norm())
    assert lost == pytest.approx(said, rel=0.3)


def test_an_interrupted_training_ends_with_the_snapshots_of_one_that_was_not(tmp_path: Path) -> None:
    def parts(name: str, *others: Callback) -> list[Callback]:
        averages = [PowerEMA(0.05)]
        checkpoint = Checkpoint(tmp_path / f"{name}-checkpoints")
        return [*averages, checkpoint, AverageSnapshots(tmp_path / name, averages, every_steps=20), *others]

    make_learner(*parts("whole"), n_steps=80).fit(1)
    make_learner(*parts("cut", StopAt(33)), n_steps=80).fit(1)
    assert [one.n_updates for one in snapshots(tmp_path / "cut")] == [20, 33]
    again = make_learner(*parts("cut"), n_steps=80)
    resume(again, tmp_path / "cut-checkpoints")
    again.fit(1)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    assert len(list((tmp_path / "cut").iterdir())) == 4


def test_a_training_is_not_resumed_with_another_width(tmp_path: Path) -> None:
    make_learner(PowerEMA(0.05), Checkpoint(tmp_path), n_steps=10).fit(1)
    with pytest.raises(
        UserError, match=r"an average of width 0\.05, every 1 steps, where this training has 0\.1 and 1"
    ):
        resume(make_learner(PowerEMA(0.1), n_steps=10), tmp_path)


def test_nothing_is_kept_before_the_first_update(tmp_path: Path) -> None:
    kept = [PowerEMA(0.05, every=4)]
    make_learner(*kept, AverageSnapshots(tmp_path, kept, every_steps=2), n_steps=3).fit(1)
    assert list(tmp_path.iterdir()) == []


def test_averages_that_do_not_go_along_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CallbackError, match="must be callbacks of the Learner too"):
        make_learner(AverageSnapshots(tmp_path, [PowerEMA(0.05)], every_steps=2), n_steps=3).fit(1)


@pytest.mark.parametrize(
    ("averages", "every"), [([], 10), ([PowerEMA(0.1)], 0), ([PowerEMA(0.1), PowerEMA(0.05, every=2)], 10)]
)
def test_snapshots_of_nothing_or_never_or_by_two_clocks_are_refused(
    averages: list[PowerEMA], every: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="snapshots need averages"):
        AverageSnapshots(tmp_path, averages, every)
