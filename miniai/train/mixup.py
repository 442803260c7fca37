"""MixUp: a picture and another of its batch, one over the other, and their labels in the same shares."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from miniai.train.augment import Generators, item_generators
from miniai.train.callback import Callback
from miniai.train.learner import Learner
from miniai.train.schedule import fraction_done

_STREAM = 1000  # of the generators of an item: far from those of the augmentations, which count from 0


class MixUp(Callback):
    """Lays each picture of a training batch over its neighbour's, and gives it both labels: `share` of its own picture
    and label, the rest of the other's, share from Beta(alpha, alpha) (Zhang et al. 2018, arXiv 1710.09412, section 2).

    The batch is (pictures (b, c, h, w), labels (b), ...), and becomes (pictures, shares (b, n_classes), ...), which
    `F.cross_entropy` takes in the same way. Neighbours are 0 and 1, 2 and 3 and so on, of a batch in the epoch's own
    order; the last of an odd number stays as it is (of several processes, those whose part of a batch is even mix as
    one does). From the share `until` of the training on, pictures are left as
    they are: the end is then on pictures such as those that count (He et al. 2019, arXiv 1909.09148). A share follows
    from (seed of the data, epoch, index), as all augmentation does.

    >>> from torch import nn
    >>> from miniai.train.data import Loader, TensorDataset
    >>> data = Loader(TensorDataset((torch.rand(8, 1, 4, 4), torch.arange(8) % 3)), 4, seed=0)
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> def objective(model, batch, generator):
    ...     return F.cross_entropy(model(batch[0]), batch[1])
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> learner = Learner(model, data, objective, optimizer, callbacks=[MixUp(0.4, n_classes=3)])
    >>> learner.fit(1)
    >>> learner.batch[1].shape, learner.batch[1].sum(1)
    (torch.Size([4, 3]), tensor([1., 1., 1., 1.]))
    """

    order = -70  # after Augment: each picture is changed on its own before it is mixed

    def __init__(self, alpha: int | float, n_classes: int, until: int | float = 1.0) -> None:
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha of Beta(alpha, alpha) must be above zero, and finite, not {alpha}")
        self.alpha, self.n_classes, self.until = alpha, n_classes, until

    def before_batch(self, learner: Learner) -> None:
        if not learner.training:
            return
        images, labels, *others = learner.batch
        targets = F.one_hot(labels, self.n_classes).float()
        if fraction_done(learner) < self.until:
            indices = learner.train.items_of(learner.epoch, learner.batch_index)
            generators = item_generators(learner.train.seed, learner.epoch, indices, _STREAM)
            shares = beta(self.alpha, generators).to(images.device)
            partners = neighbours(len(images)).to(images.device)
            images, targets = (mixed(values, values[partners], shares) for values in (images, targets))
        whole = (images, targets, *others)
        learner.batch = type(learner.batch)(*whole) if hasattr(learner.batch, "_fields") else whole


def beta(alpha: int | float, generators: Generators) -> Float[Tensor, " b"]:
    """A number from Beta(alpha, alpha) for each generator."""
    drawn = [np.random.default_rng(one.initial_seed()).beta(alpha, alpha) for one in generators]
    return torch.tensor(drawn, dtype=torch.float32)


def neighbours(n: int) -> Int64[Tensor, " n"]:
    """Who is mixed with whom.

    >>> neighbours(5)
    tensor([1, 0, 3, 2, 4])
    """
    return (torch.arange(n) ^ 1).where(torch.arange(n) ^ 1 < n, torch.arange(n))


def mixed(
    own: Float[Tensor, "b *shape"], other: Float[Tensor, "b *shape"], shares: Float[Tensor, " b"]
) -> Float[Tensor, "b *shape"]:
    """`shares` of `own`, the rest of `other`."""
    return torch.lerp(other, own, shares.to(own.dtype).view(-1, *[1] * (own.ndim - 1)))
