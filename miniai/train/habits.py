"""Two small tools of Python itself: keywords handed on and still shown; a debugger that opens where it is needed."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from miniai.train.callback import Callback
from miniai.train.learner import Learner

Function = TypeVar("Function", bound=Callable[..., Any])


def delegates(to: Callable[..., Any]) -> Callable[[Function], Function]:
    """For a function that hands its `**keywords` on to `to`: its signature shows them, with their defaults.

    Editors, `help` and `inspect.signature` then know what may be given; what the function does stays the same. Raises
    ValueError if it takes no `**keywords`.

    >>> def draw(x, *, colour="red", width=1): ...
    >>> @delegates(draw)
    ... def plot(data, width=2, **keywords):
    ...     return draw(data, width=width, **keywords)
    >>> print(inspect.signature(plot))
    (data, width=2, *, colour='red')
    """

    def decorate(function: Function) -> Function:
        own = dict(inspect.signature(function).parameters)
        rest = next((name for name, one in own.items() if one.kind is inspect.Parameter.VAR_KEYWORD), None)
        if rest is None:
            raise ValueError(f"{function.__qualname__} takes no **keywords to hand on")
        del own[rest]
        for name, one in inspect.signature(to).parameters.items():
            given_by_name = one.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            if given_by_name and one.default is not inspect.Parameter.empty and name not in own:
                own[name] = one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        signature = inspect.signature(function).replace(parameters=list(own.values()))
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


class Debug(Callback):
    """Opens the debugger in `event`, the first time that `when(learner)` holds; the learner is there as `learner`.

    It is Python's own `breakpoint()`: pdb, or what PYTHONBREAKPOINT names; `PYTHONBREAKPOINT=0` switches it off.

    >>> import os, torch
    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> look = Debug("after_loss", when=lambda learner: learner.step == 2)
    >>> os.environ["PYTHONBREAKPOINT"] = "0"  # only so that this example runs to its end
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[look]).fit(1)
    >>> look.opened_at, os.environ.pop("PYTHONBREAKPOINT")
    (2, '0')
    """

    order = 95

    def __init__(self, event: str = "after_loss", when: Callable[[Learner], bool] = lambda learner: True) -> None:
        if event not in EVENTS:
            raise ValueError(f"there is no event {event!r}, only {', '.join(EVENTS)}")
        self.when = when
        self.opened_at: int | None = None
        setattr(self, event, self._look)

    def _look(self, learner: Learner) -> None:
        if self.opened_at is None and self.when(learner):
            self.opened_at = learner.step
            breakpoint()  # noqa: T100 (it is what this callback is for)


EVENTS = tuple(name for name in vars(Callback) if name.startswith(("before_", "after_")))
