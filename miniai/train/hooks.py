"""Hooks: look at what modules compute while they compute it, and be sure that one stops looking."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import nn

from miniai.train.callback import Callback, attributed
from miniai.train.learner import Learner

HookFunction = Callable[["Hook", nn.Module, Any, Any], Any]
Chooser = Callable[[nn.Module], bool]


class Hook(AbstractContextManager["Hook"]):
    """Calls `function(hook, module, inputs, outputs)` at each forward pass of `module` (backward: with gradients).

    The hook is the function's notebook: it may set any attribute on it. What the function returns, unless None, takes
    the place of the outputs. `remove()`, the end of a `with`, or the hook's own end takes it off.

    >>> import torch
    >>> layer = nn.Linear(3, 2)
    >>> def remember(hook, module, inputs, outputs):
    ...     hook.shape = tuple(outputs.shape)
    >>> with Hook(layer, remember) as hook:
    ...     y = layer(torch.zeros(5, 3))
    >>> hook.shape, len(layer._forward_hooks)
    ((5, 2), 0)
    """

    def __init__(self, module: nn.Module, function: HookFunction, *, backward: bool = False, name: str = "") -> None:
        self.module, self.name = module, name or type(module).__name__

        def call(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            return function(self, module, inputs, outputs)

        self._handle = module.register_full_backward_hook(call) if backward else module.register_forward_hook(call)

    def remove(self) -> None:
        """Take it off; twice does no harm."""
        self._handle.remove()

    def __exit__(self, *error: object) -> None:
        self.remove()


class Hooks(Sequence[Hook], AbstractContextManager["Hooks"]):
    """One Hook for each of several modules, in their order; taken off all together.

    `modules` may be pairs (name, module), as `named_modules()` gives them.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> def remember(hook, module, inputs, outputs):
    ...     hook.mean = outputs.mean().item()
    >>> with Hooks(model, remember) as hooks:
    ...     y = model(torch.zeros(5, 2))
    >>> len(hooks), hooks[1].name, hooks[1].mean >= 0
    (3, 'ReLU', True)
    """

    def __init__(
        self,
        modules: Iterable[nn.Module] | Iterable[tuple[str, nn.Module]],
        function: HookFunction,
        *,
        backward: bool = False,
    ) -> None:
        self._hooks: list[Hook] = []
        for one in modules:
            name, module = one if isinstance(one, tuple) else ("", one)
            self._hooks.append(Hook(module, function, backward=backward, name=name))

    def __getitem__(self, index: Any) -> Any:
        return self._hooks[index]

    def __len__(self) -> int:
        return len(self._hooks)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks)

    def remove(self) -> None:
        """Take all of them off."""
        for hook in self._hooks:
            hook.remove()

    def __exit__(self, *error: object) -> None:
        self.remove()


def innermost(module: nn.Module) -> bool:
    """Whether the module has no modules within it."""
    return not any(module.children())


class HooksCallback(Callback):
    """Hooks on the modules that `choose` picks, for the length of each fit; they are taken off after an error too.

    The function is called in training, every `every` steps, and in validation with `in_validation`. Subclasses
    override `observe` instead of giving a function. `hooks` stays readable after the fit.

    >>> import torch
    >>> from miniai.train.data import Loader
    >>> def count(hook, module, inputs, outputs):
    ...     hook.n_calls = getattr(hook, "n_calls", 0) + 1
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> look = HooksCallback(count, choose=lambda module: isinstance(module, nn.Linear))
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 4, seed=0)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[look]).fit(1)
    >>> [(hook.name, hook.n_calls) for hook in look.hooks]
    [('0', 8), ('2', 8)]
    """

    def __init__(
        self,
        function: HookFunction | None = None,
        choose: Chooser = innermost,
        *,
        every: int = 1,
        in_validation: bool = False,
        backward: bool = False,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.function, self.choose, self.every = function, choose, every
        self.in_validation, self._backward = in_validation, backward
        self.hooks: Sequence[Hook] = ()
        self._stack = ExitStack()
        self._looking = False

    def observe(self, hook: Hook, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        """What is done at each call that counts; by default the function."""
        return None if self.function is None else self.function(hook, module, inputs, outputs)

    def before_fit(self, learner: Learner) -> None:
        modules = [(name, module) for name, module in learner.model.named_modules() if self.choose(module)]
        hooks = Hooks(modules, self._observe_if_due, backward=self._backward)
        for hook, earlier in zip(hooks, self.hooks, strict=False):  # a second fit goes on with the first one's notes
            vars(hook).update({k: v for k, v in vars(earlier).items() if k not in vars(hook)})
        self.hooks = self._stack.enter_context(hooks)

    def before_batch(self, learner: Learner) -> None:
        self._looking = learner.step % self.every == 0 if learner.training else self.in_validation

    def after_batch(self, learner: Learner) -> None:
        self._looking = False

    def cleanup(self, learner: Learner) -> None:
        self._stack.close()

    def _observe_if_due(self, hook: Hook, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        if not self._looking:
            return None
        return attributed(self, "observe", lambda: self.observe(hook, module, inputs, outputs))
