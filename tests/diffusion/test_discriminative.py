"""Direct discriminative optimization against PyTorch's cross-entropy of a critic, and on data of a known density."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.diffusion.continuous_objectives import EDMObjective
from miniai.diffusion.discriminative import DiscriminativeObjective
from miniai.diffusion.objectives import DiffusionObjective
from miniai.diffusion.schedule import NoiseSchedule, ScheduleConfig

SIGMA_DATA = 0.5
EDM = EDMObjective(SIGMA_DATA)
REAL = 0.5 * torch.randn(6, 3, 4, 4, generator=make_generator(1))
PAINTED = 0.7 * torch.randn(6, 3, 4, 4, generator=make_generator(2))


class Times:
    """A network of one number; it answers what it sees, times that number."""

    def __init__(self, factor: float) -> None:
        self.factor = torch.tensor(factor, requires_grad=True)
        self.seen: list[tuple[Tensor, Any]] = []

    def __call__(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        self.seen.append((time, condition))
        return self.factor * x


@pytest.mark.parametrize("objective", [EDM, DiffusionObjective(NoiseSchedule(ScheduleConfig()))], ids=["edm", "ddpm"])
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_the_loss_is_the_cross_entropy_of_a_critic_whose_logits_are_likelihoods(objective: Any, alpha: float) -> None:
    network, reference, beta = Times(0.3), Times(0.8), 0.2
    logits = [
        beta
        * sum(
            sign * objective.errors(of, (kind, None), make_generator(7)) * 48
            for of, sign in ((reference, 1), (network, -1))
        )
        for kind in (REAL, PAINTED)
    ]
    expected = F.binary_cross_entropy_with_logits(logits[0], torch.ones(6))
    expected = expected + alpha * F.binary_cross_entropy_with_logits(logits[1], torch.zeros(6))
    ours = DiscriminativeObjective(objective, reference, beta, alpha)
    loss = ours(network, ((REAL, None), (PAINTED, None)), make_generator(7))
    torch.testing.assert_close(loss, expected)
    assert loss.item() != pytest.approx((1 + alpha) * math.log(2), rel=1e-3)


def test_it_begins_by_drawing_real_pictures_near_and_pushing_painted_ones_away() -> None:
    network, reference, beta, alpha = Times(0.8), Times(0.8), 0.2, 0.6
    loss = DiscriminativeObjective(EDM, reference, beta, alpha)(
        network, ((REAL, None), (PAINTED, None)), make_generator(7)
    )
    assert loss.item() == pytest.approx((1 + alpha) * math.log(2), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    pulls = []
    for kind in (REAL, PAINTED):
        alone = Times(0.8)
        EDM(alone, (kind, None), make_generator(7)).backward()  # type: ignore[no-untyped-call]
        pulls.append(alone.factor.grad)
    assert network.factor.grad is not None
    torch.testing.assert_close(network.factor.grad, beta * 48 / 2 * (pulls[0] - alpha * pulls[1]))
    assert reference.factor.grad is None


def test_all_see_the_same_noise_and_each_its_own_condition() -> None:
    network, reference = Times(0.3), Times(0.8)
    objective = DiscriminativeObjective(EDM, reference)
    objective(network, ((REAL, "real"), (PAINTED, "painted")), make_generator(7))
    assert [condition for _, condition in network.seen] == ["real", "painted"]
    assert [condition for _, condition in reference.seen] == ["real", "painted"]
    assert all(torch.equal(time, network.seen[0][0]) for time, _ in network.seen + reference.seen)
    generator = make_generator(7)
    first = objective(network, ((REAL, None), (PAINTED, None)), generator)
    assert not torch.equal(objective(network, ((REAL, None), (PAINTED, None)), generator), first)


class Normal:
    """EDM's network behind the exact denoiser of numbers of mean 0 and a deviation that it learns."""

    def __init__(self, deviation: float) -> None:
        self.log_deviation = torch.tensor(math.log(deviation), requires_grad=True)

    def __call__(self, x: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        sigma = (4 * c_noise).exp()[:, None, None, None]
        variance, total = (2 * self.log_deviation).exp(), sigma**2 + SIGMA_DATA**2
        denoised = variance / (variance + sigma**2) * x * total.sqrt()
        c_skip, c_out = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt()
        return (denoised - c_skip * x * total.sqrt()) / c_out


@pytest.mark.parametrize(("painted", "moves"), [(0.8, -1), (0.3, 1), (0.5, 0)])
def test_a_painter_that_spreads_too_wide_learns_to_spread_less(painted: float, moves: int) -> None:
    """Its own pictures are all that a network that cannot be likelier on the whole has to learn from: real ones have a
    deviation of 0.5."""
    generator = make_generator(3)
    real, own = (scale * torch.randn(4096, 1, 2, 2, generator=generator) for scale in (0.5, painted))
    network, reference = Normal(painted), Normal(painted)
    objective = DiscriminativeObjective(EDM, reference, beta=0.5)
    optimizer = torch.optim.SGD([network.log_deviation], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        objective(network, ((real, None), (own, None)), generator).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    change = network.log_deviation.item() - math.log(painted)
    assert abs(change) < 0.02 if moves == 0 else 0.1 < moves * change < 1.5 * abs(math.log(0.5 / painted))
