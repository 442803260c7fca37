"""float16 with a scaled loss; averages over views and over dropout."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.base.seeds import make_generator
from miniai.train.callback import Callback, CancelBatchException
from miniai.train.callbacks import GradientClip
from miniai.train.checkpoint import Checkpoint, resume
from miniai.train.data import Loader
from miniai.train.guards import NaNGuard
from miniai.train.inference import TestTimeAugmentation, flipped, predict_with_dropout, predict_with_views
from miniai.train.learner import Learner
from miniai.train.loss_scaling import MixedPrecision
from miniai.train.metrics import Metrics
from miniai.train.train_learner import MomentumLearner, TrainLearner

X = torch.randn(32, 4, generator=make_generator(1))


def make_learner(*callbacks: Callback, factor: float = 1.0, valid: bool = False) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def objective(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return factor * model(batch).float().square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / factor)
    loader = Loader(X, 8, seed=0)
    return Learner(model, loader, objective, optimizer, valid=loader if valid else None, callbacks=callbacks)


class Watch(Callback):
    """The gradients that the step sees."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def after_backward(self, learner: Learner) -> None:
        self.seen.append(torch.cat([weight.grad.flatten() for weight in learner.model.parameters()]))


def test_small_gradients_live_in_float16_only_because_the_loss_is_scaled() -> None:
    factor = 1e-7
    exact, scaled, plain = Watch(), Watch(), Watch()
    make_learner(exact, factor=factor).fit(1)
    make_learner(MixedPrecision(2.0**20), scaled, factor=factor).fit(1)
    unscaled = MixedPrecision(1.0)
    make_learner(unscaled, plain, factor=factor).fit(1)
    assert len(scaled.seen) == 4
    largest = exact.seen[0].abs().max()
    torch.testing.assert_close(scaled.seen[0] / largest, exact.seen[0] / largest, rtol=0, atol=0.01)
    assert (plain.seen[0] == 0).sum() > (scaled.seen[0] == 0).sum()


def test_an_overflow_skips_the_batch_halves_the_scale_and_disturbs_neither_clipping_nor_the_guard() -> None:
    half = MixedPrecision(2.0**40)
    learner = make_learner(half, NaNGuard(every=1), GradientClip(1.0))
    start = learner.model[0].weight.detach().clone()
    learner.fit(1)
    assert (learner.step, half.n_skipped) == (0, 4)
    assert half.scale == 2.0**36
    assert torch.equal(learner.model[0].weight, start)
    learner.fit(8)
    assert learner.step > 8
    assert learner.step + half.n_skipped == 32
    assert all(torch.isfinite(weight).all() for weight in learner.model.parameters())


def test_the_scale_grows_again_and_survives_a_resume(tmp_path: Path) -> None:
    first = MixedPrecision(4.0, growth_interval=3)
    learner = make_learner(first, Checkpoint(tmp_path, every_minutes=None))
    learner.fit(1)
    assert first.scale == 8.0
    second = MixedPrecision(4.0, growth_interval=3)
    again = make_learner(second, Checkpoint(tmp_path, every_minutes=None))
    assert resume(again, tmp_path)
    learner.fit(3)
    again.fit(3)
    assert second.scale == first.scale == 64.0
    assert torch.equal(again.model[0].weight, learner.model[0].weight)


class Accumulate(Callback):
    """A step for every second batch, with the gradients of both."""

    def after_backward(self, learner: Learner) -> None:
        if learner.batch_index % 2 == 0:
            raise CancelBatchException


def test_accumulated_gradients_keep_their_size_under_a_scaled_loss() -> None:
    plain, scaled, half = Watch(), Watch(), MixedPrecision(2.0**12, growth_interval=1)
    make_learner(plain, Accumulate()).fit(2)
    learner = make_learner(half, scaled, Accumulate())
    learner.fit(2)
    assert (learner.step, half.n_skipped, half.scale) == (4, 0, 2.0**20)
    torch.testing.assert_close(scaled.seen, plain.seen, rtol=0.01, atol=0.002)


def test_fading_gradients_keep_their_size_under_a_scaled_loss() -> None:
    def momentum(*callbacks: Callback) -> Learner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        data = Loader((X, X.sum(1, keepdim=True)), 8, seed=0)
        return MomentumLearner(model, data, lambda a, b: F.mse_loss(a.float(), b), optimizer, callbacks=callbacks)

    plain, scaled = Watch(), Watch()
    momentum(plain).fit(1)
    momentum(MixedPrecision(2.0**12), scaled).fit(1)
    torch.testing.assert_close(scaled.seen, plain.seen, rtol=0.02, atol=0.02)


def test_float16_learns_what_float32_learns() -> None:
    seen: set[torch.dtype] = set()
    half, full = make_learner(MixedPrecision(1024)), make_learner()
    half.model[0].register_forward_hook(lambda module, inputs, out: seen.add(out.dtype))
    half.fit(5)
    full.fit(5)
    assert seen == {torch.float16}
    torch.testing.assert_close(half.model[0].weight, full.model[0].weight, rtol=0, atol=5e-3)
    assert not torch.equal(half.model[0].weight, full.model[0].weight)


PICTURES = torch.randn(6, 1, 4, 4, generator=make_generator(2))


def make_classifier(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.BatchNorm1d(40), nn.Dropout(dropout), nn.Linear(40, 3))


def test_the_prediction_over_views_is_the_mean_of_each_and_knows_no_left_and_right() -> None:
    model = make_classifier()
    found = predict_with_views(model, PICTURES, activation=lambda logits: logits.softmax(dim=1))
    assert model.training
    model.eval()
    expected = (model(PICTURES).softmax(1) + model(PICTURES.flip(-1)).softmax(1)) / 2
    assert torch.allclose(found, expected, atol=1e-6)
    turned = predict_with_views(model, flipped(PICTURES), activation=lambda logits: logits.softmax(dim=1))
    assert torch.allclose(found, turned, atol=1e-6)
    assert not torch.allclose(model(PICTURES), model(flipped(PICTURES)), atol=1e-2)


def test_metrics_see_the_augmented_prediction_and_the_loss_stays_the_plain_one() -> None:
    class Keep:
        def reset(self) -> None:
            self.parts: list[Tensor] = []

        def update(self, prediction: Tensor) -> None:
            self.parts.append(prediction)

        def compute(self) -> float:
            return float(len(self.parts))

    def validated(*callbacks: Callback) -> tuple[Keep, dict[str, float]]:
        model, keep = make_classifier(), Keep()
        data = Loader((PICTURES, torch.tensor([0, 1, 2, 0, 1, 2])), 6, seed=0, shuffle=False)
        metrics = Metrics({"n": keep}, lambda learner: (learner.outputs["prediction"],))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        learner = TrainLearner(model, data, F.cross_entropy, optimizer, valid=data, callbacks=[metrics, *callbacks])
        learner.validate()
        return keep, learner.valid_scalars

    with_views, scalars = validated(TestTimeAugmentation())
    plain, plain_scalars = validated()
    assert torch.allclose(with_views.parts[0], predict_with_views(make_classifier(), PICTURES))
    assert not torch.equal(with_views.parts[0], plain.parts[0])
    assert scalars == plain_scalars


def test_dropouts_uncertainty_is_that_of_its_closed_form() -> None:
    model = nn.Sequential(nn.Dropout(0.25), nn.Linear(4, 1, bias=False))
    x, weight = X[:5], model[1].weight.detach()[0]
    many = x.repeat(500, 1)  # each row has a dropout of its own
    found = predict_with_dropout(model, many, n_samples=20, seed=1)
    products = x * weight
    assert torch.allclose(found.mean.reshape(500, 5).mean(0), products.sum(1), atol=0.05)
    variance = products.square().sum(1) * 0.25 / 0.75  # of each kept unit, scaled up by 1 / 0.75
    torch.testing.assert_close(found.deviation.reshape(500, 5).square().mean(0), variance, rtol=0.06, atol=0)


def test_test_time_dropout_follows_its_seed_and_changes_neither_model_nor_generator() -> None:
    model = make_classifier(0.5)
    statistics = model[2].running_mean.clone()
    torch.manual_seed(9)
    first = predict_with_dropout(model, PICTURES, n_samples=5)
    drawn = torch.rand(1)
    torch.manual_seed(9)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first.samples, predict_with_dropout(model, PICTURES, n_samples=5).samples)
    assert not torch.equal(first.samples, predict_with_dropout(model, PICTURES, n_samples=5, seed=1).samples)
    assert torch.equal(model[2].running_mean, statistics)
    assert all(module.training for module in model.modules())
    with pytest.raises(ValueError, match="needs dropout layers"):
        predict_with_dropout(nn.Linear(2, 2), X)
