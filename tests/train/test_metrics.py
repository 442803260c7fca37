"""Metrics of three makers: our own, torchmetrics' and torcheval's, all by the same three methods."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torcheval.metrics
import torchmetrics
from torch import nn

from miniai.base.seeds import make_generator
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.metrics import Mean, Metrics
from miniai.train.predictions import capture_predictions
from miniai.train.train_learner import TrainLearner

X = torch.randn(23, 4, generator=make_generator(1))
CLASSES = torch.randint(3, (23,), generator=make_generator(2))


def make_learner(metrics: dict[str, Any]) -> Learner:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    valid = Loader((X, CLASSES), 5, seed=0, shuffle=False, drop_last=False)
    callback = Metrics(metrics, lambda learner: (learner.outputs["prediction"], learner.batch[1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = Loader((X, CLASSES), 8, seed=0)
    return TrainLearner(model, data, F.cross_entropy, optimizer, valid=valid, callbacks=[callback])


@pytest.mark.parametrize(
    "metric",
    [
        torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro"),
        torcheval.metrics.MulticlassAccuracy(),
    ],
    ids=["torchmetrics", "torcheval"],
)
def test_the_accuracy_of_either_library_is_the_share_of_right_answers_in_each_epoch_anew(metric: Any) -> None:
    learner = make_learner({"accuracy": metric})
    for n_epochs in (1, 3):
        learner.fit(n_epochs)
        predictions, targets = capture_predictions(learner)
        expected = (predictions.argmax(dim=1) == targets).float().mean().item()
        assert learner.valid_scalars["accuracy"] == pytest.approx(expected, rel=1e-6)
        assert set(learner.valid_scalars) == {"loss", "accuracy"}


def test_metrics_of_many_numbers_have_a_name_for_each() -> None:
    learner = make_learner(
        {
            "recall": torchmetrics.classification.MulticlassRecall(num_classes=3, average=None),
            "both": torchmetrics.MetricCollection([torchmetrics.classification.MulticlassAccuracy(num_classes=3)]),
        }
    )
    learner.fit(1)
    predictions, targets = capture_predictions(learner)
    for index in range(3):
        right = (predictions.argmax(dim=1) == index)[targets == index].float().mean().item()
        assert learner.valid_scalars[f"recall_{index}"] == pytest.approx(right)
    assert learner.valid_scalars["both_MulticlassAccuracy"] > 0


def test_something_without_the_three_methods_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="metric accuracy has no update, compute and reset: it is a function"):
        Metrics({"accuracy": F.cross_entropy}, lambda learner: ())


def test_the_mean_is_by_number_and_not_by_batch() -> None:
    mean = Mean()
    assert mean.compute() != mean.compute()  # NaN
    for part in X.flatten().split(7):
        mean.update(part)
    assert mean.compute() == pytest.approx(X.double().mean().item(), rel=1e-12)
