"""Gradual unfreezing: what came trained learns later than what is new (Howard and Ruder 2018, section 3.3)."""

from collections.abc import Iterable, Sequence

from torch import nn

from miniai.train.callback import Callback
from miniai.train.learner import Learner
from miniai.train.schedule import fraction_done


class GradualUnfreeze(Callback):
    """Group k of `groups` begins to learn when the share `at[k]` of the training is done; until then it stays as it is.

    Batch norms of a frozen group keep their statistics, too. What is in no group learns from the start. Gradients of a
    frozen group are taken away before the step, so the optimizer may hold all weights from the start, and a resume goes
    on as it should.

    >>> from miniai.train.data import Loader
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> start = model[0].weight.detach().clone()
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> unfreeze = GradualUnfreeze([[model[0]]], at=[0.5])
    >>> seen = []
    >>> class Watch(Callback):
    ...     def after_step(self, learner):
    ...         seen.append(torch.equal(model[0].weight, start))
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[unfreeze, Watch()]).fit(2)
    >>> seen
    [True, True, True, True, False, False, False, False]
    """

    order = -40  # before clipping, which would count gradients that are not used

    def __init__(self, groups: Sequence[Iterable[nn.Module]], at: Sequence[int | float]) -> None:
        self.groups, self.at = [list(group) for group in groups], list(at)
        if len(self.groups) != len(self.at) or not all(0 <= share <= 1 for share in self.at):
            raise ValueError(f"each of {len(self.groups)} groups needs a share from 0 to 1, and there are {self.at}")
        self._still: list[nn.Module] = []

    def frozen(self, learner: Learner) -> list[nn.Module]:
        """The modules that do not learn now."""
        done = fraction_done(learner)
        return [module for group, share in zip(self.groups, self.at, strict=True) if done < share for module in group]

    def before_batch(self, learner: Learner) -> None:
        if learner.training:
            self._still = self.frozen(learner)
            for module in self._still:
                module.eval()

    def after_backward(self, learner: Learner) -> None:
        for module in self._still:
            for weight in module.parameters():
                weight.grad = None

    def after_batch(self, learner: Learner) -> None:
        if learner.training:
            for module in self._still:
                module.train()
