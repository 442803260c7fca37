"""Callbacks: what acts on a training from outside its loop, and the exceptions by which it stops that in good order.

The loop that calls them is in learner.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from miniai.base.errors import UserError

if TYPE_CHECKING:
    from miniai.train.learner import Learner

T = TypeVar("T")


class CancelBatchException(Exception):  # noqa: N818 (the course's name: it is a signal, not an error)
    """Skip the rest of this batch. Gradients that were computed stay, so that a callback may accumulate them."""


class CancelEpochException(Exception):  # noqa: N818
    """Skip the rest of this epoch, validation included; the epoch counts as done."""


class CancelFitException(Exception):  # noqa: N818
    """Stop training in good order: `after_fit` still runs. Its text becomes `learner.stop_reason`."""


class CallbackError(RuntimeError):
    """A callback failed; the message names the callback and the event, and the cause is chained to it."""


class Callback:
    """One concern of training. Callbacks run by ascending `order`, and those of equal order as they were given.

    A fit is `before_fit`, epochs, `after_fit`; an epoch is `before_epoch`, batches, validation, `after_epoch`; a batch
    is `before_batch`, forward, `after_loss`, backward, `after_backward`, step, `after_step`, `after_batch`; validation
    is `before_validate`, batches without what follows `after_loss`, `after_validate`. A cancelled level's last event
    (`after_batch`, `after_epoch`, `after_fit`) still runs; after an error only `cleanup` does.

    | order | what | why there |
    | --- | --- | --- |
    | -200, -110 | TrainCB; Accelerate | any other may do TrainCB's parts; the model is wrapped before it is used |
    | -100 | Device | the rest sees tensors where they will be used |
    | -90 … -10 | Precision, NaNGuard | NaN must be named before clipping spreads it over all gradients |
    | 0 | GradientClip, Schedule, Metrics, your own | |
    | 50 … 70 | EMA, Recorder, Progress | they report what the ones above did |
    | 80, 90 | Checkpoint, Every | a checkpoint holds the finished step, and outlives a failing sample grid |
    | 100 | Budget, Interrupt | they stop the fit when everyone has seen the batch |

    A callback with `state_dict()` and `load_state_dict(state)` is part of every checkpoint.

    A callback may also do a part of the algorithm itself, by a method `objective(learner)` (it returns what an
    Objective does), `backward`, `optimizer_step`, `zero_grad` or `agree_to_stop` (returns the reason, or None): so do
    loss scaling, distribution and `TrainCB`. If several do, the last in order has its way.

    >>> from torch import nn
    >>> from miniai.train.data import Loader
    >>> from miniai.train.learner import Learner
    >>> class CountSteps(Callback):
    ...     def after_epoch(self, learner: Learner) -> None:
    ...         print(f"epoch {learner.epoch}: {learner.step} steps")
    >>> model = nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[CountSteps()]).fit(2)
    epoch 1: 4 steps
    epoch 2: 8 steps
    """

    order: int = 0
    main_process_only: bool = False  # of several that train together, only the first runs this callback's events

    def before_fit(self, learner: "Learner") -> None: ...
    def before_epoch(self, learner: "Learner") -> None: ...
    def before_batch(self, learner: "Learner") -> None: ...
    def after_loss(self, learner: "Learner") -> None: ...
    def after_backward(self, learner: "Learner") -> None: ...
    def after_step(self, learner: "Learner") -> None: ...
    def after_batch(self, learner: "Learner") -> None: ...
    def after_epoch(self, learner: "Learner") -> None: ...
    def after_fit(self, learner: "Learner") -> None: ...
    def before_validate(self, learner: "Learner") -> None: ...
    def after_validate(self, learner: "Learner") -> None: ...

    def before_save(self, learner: "Learner") -> None:
        """Just before a checkpoint is written; raising here keeps the previous one as the newest."""

    def cleanup(self, learner: "Learner") -> None:
        """Always called at the end of a fit, after an error too, even if `before_fit` never ran."""

    def around_forward(self, learner: "Learner") -> AbstractContextManager[Any]:
        """A context for the objective's call: autocast, a profiler, hooks."""
        return nullcontext()

    @property
    def name(self) -> str:
        return type(self).__name__


def attributed(callback: Callback, event: str, do: Callable[[], T]) -> T:
    """What `do` returns; if it fails, CallbackError says that it was this callback, in this event.

    Signals, errors that the user can mend, and errors that have a name already pass as they are.
    """
    try:
        return do()
    except (CancelBatchException, CancelEpochException, CancelFitException, UserError, CallbackError):
        raise
    except Exception as error:
        raise named(callback, event, error) from error


def named(callback: Callback, event: str, error: Exception) -> CallbackError:
    """The error, as that of this callback in this event."""
    found = CallbackError(f"callback {callback.name} failed in {event}: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found
