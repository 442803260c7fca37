"""MixUp: pictures and labels are mixed in the same shares, which follow from seed, epoch and item alone."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from miniai.base.seeds import make_generator
from miniai.train.augment import Augment, RandomFlip, item_generators
from miniai.train.callback import Callback
from miniai.train.data import Loader
from miniai.train.learner import Learner
from miniai.train.mixup import MixUp, beta, neighbours

PICTURES = torch.rand(12, 1, 4, 4, generator=make_generator(1))
LABELS = torch.arange(12) % 5
INDICES = torch.arange(12)
ONE_HOT = F.one_hot(LABELS, 5).float()


class Keep(Callback):
    """Keeps the batches that the objective sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, Any]] = []

    def after_loss(self, learner: Learner) -> None:
        self.seen.append((learner.training, learner.batch))


def run(
    mixup: MixUp,
    batch_size: int,
    n_epochs: int = 1,
    *,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    flip: float = 0.0,
) -> list[tuple[bool, Any]]:
    model, keep = nn.Linear(1, 1), Keep()
    data = (PICTURES, LABELS, INDICES)
    loader = Loader(data, batch_size, seed=5, drop_last=False)
    loader.shard = shard

    def objective(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        return model(batch[0].mean().reshape(1, 1)).sum()

    learner = Learner(
        model,
        loader,
        objective,
        torch.optim.SGD(model.parameters(), 0.0),
        valid=Loader(data, 12, seed=5, shuffle=False),
        callbacks=[mixup, Augment(RandomFlip(flip)), keep],
    )
    learner.epoch = start
    learner.fit(n_epochs)
    return keep.seen


def by_index(batches: list[Any]) -> tuple[Tensor, Tensor]:
    images, targets, indices = (torch.cat([batch[part] for batch in batches]) for part in range(3))
    return images[indices.argsort()], targets[indices.argsort()]


def training(seen: list[tuple[bool, Any]]) -> list[Any]:
    return [batch for is_training, batch in seen if is_training]


def test_a_picture_and_its_labels_are_mixed_with_its_neighbour_in_the_same_share() -> None:
    ((images, targets, indices),) = training(run(MixUp(0.7, 5), 12))
    shares = beta(0.7, item_generators(5, 0, indices.tolist(), 1000))
    assert 0.01 < shares.min() < shares.max() < 0.99
    for place, (index, share) in enumerate(zip(indices.tolist(), shares.tolist(), strict=True)):
        other = indices[place + 1 if place % 2 == 0 else place - 1]
        torch.testing.assert_close(images[place], share * PICTURES[index] + (1 - share) * PICTURES[other])
        torch.testing.assert_close(targets[place], share * ONE_HOT[index] + (1 - share) * ONE_HOT[other])
        logits = torch.linspace(-1, 2, 5)[None]
        losses = [F.cross_entropy(logits, LABELS[None, which]) for which in (index, other)]
        torch.testing.assert_close(
            F.cross_entropy(logits, targets[place, None]), share * losses[0] + (1 - share) * losses[1]
        )


@pytest.mark.parametrize("alpha", [0.2, 1, 3.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: int | float) -> None:
    drawn = beta(alpha, item_generators(0, 0, range(3000)))
    assert stats.kstest(drawn.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_the_same_at_a_resume_and_on_several_processes_and_another_each_epoch() -> None:
    mixup = MixUp(0.7, 5)
    second = by_index(training(run(mixup, 12, 2))[1:])
    assert all(map(torch.equal, by_index(training(run(mixup, 12, 2, start=1))), second))
    assert not torch.equal(by_index(training(run(mixup, 12)))[1], second[1])
    parts = [training(run(mixup, 12, 2, start=1, shard=(k, 2)))[0] for k in range(2)]
    assert [len(part[0]) for part in parts] == [6, 6]
    assert all(map(torch.equal, by_index(parts), second))


def test_the_last_of_an_odd_number_stays_as_it_is() -> None:
    batches = training(run(MixUp(0.7, 5), 7))
    assert [len(batch[0]) for batch in batches] == [7, 5]
    for images, targets, indices in batches:
        assert torch.equal(images[-1], PICTURES[indices[-1]])
        assert torch.equal(targets[-1], ONE_HOT[indices[-1]])
        assert not torch.equal(images[0], PICTURES[indices[0]])


def test_from_until_on_and_in_validation_pictures_are_left_as_they_are() -> None:
    seen = run(MixUp(0.7, 5, until=0.5), 3, 2)
    batches = training(seen)
    is_mixed = [not torch.equal(images, PICTURES[indices]) for images, _, indices in batches]
    assert is_mixed == [True] * 4 + [False] * 4
    for _, targets, indices in batches[4:]:
        assert torch.equal(targets, ONE_HOT[indices])
    for images, labels, _ in (batch for is_training, batch in seen if not is_training):
        assert torch.equal(images, PICTURES)
        assert torch.equal(labels, LABELS)


def test_each_picture_is_augmented_on_its_own_before() -> None:
    ((images, _, indices),) = training(run(MixUp(0.7, 5), 12, flip=0.5))
    flipped = RandomFlip(0.5)(PICTURES[indices], item_generators(5, 0, indices.tolist(), 0))
    assert not torch.equal(flipped, PICTURES[indices])
    assert not torch.equal(flipped, PICTURES[indices].flip(-1))
    shares = beta(0.7, item_generators(5, 0, indices.tolist(), 1000)).view(-1, 1, 1, 1)
    torch.testing.assert_close(images, shares * flipped + (1 - shares) * flipped[neighbours(12)])


@pytest.mark.parametrize("alpha", [0, -1.0, float("inf"), float("nan")])
def test_an_alpha_that_is_no_distribution_is_refused(alpha: int | float) -> None:
    with pytest.raises(ValueError, match="above zero, and finite"):
        MixUp(alpha, 5)


def test_a_named_batch_stays_one_and_pictures_keep_their_dtype() -> None:
    class Batch(NamedTuple):
        images: Tensor
        labels: Tensor

    learner = Learner.__new__(Learner)
    loader = Loader((PICTURES, LABELS), 12, seed=5)
    batch = Batch(PICTURES.bfloat16(), LABELS)
    vars(learner).update(
        training=True, epoch=0, batch_index=0, batch=batch, train=loader, n_epochs=None, callbacks=[], step=0
    )
    MixUp(0.7, 5).before_batch(learner)
    assert isinstance(learner.batch, Batch)
    assert (learner.batch.images.dtype, learner.batch.labels.dtype) == (torch.bfloat16, torch.float32)


def test_a_loader_that_is_changed_between_two_trainings_is_not_read_from_memory() -> None:
    loader = Loader((PICTURES, LABELS), 4, seed=5)
    for change in ({"batch_size": 6}, {"seed": 6}, {"shuffle": False}):
        loader.items_of(0, 0)
        vars(loader).update(change)
        assert loader.items_of(0, 1) == loader.indices(0)[1].tolist()
