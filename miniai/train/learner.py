"""The training loop, written as the algorithm; everything that varies is a callback with an order.

`Learner(model, train, objective, optimizer, callbacks=[Progress(), EMA(0.999)]).fit(n_epochs=10)` is a whole training.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from miniai.base.device import widest_float
from miniai.base.modes import in_eval_mode
from miniai.base.seeds import make_generator
from miniai.train.callback import (
    Callback,
    CallbackError,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    attributed,
    named,
)
from miniai.train.data import Loader, batch_size_of

Objective = Callable[[nn.Module, Any, torch.Generator], Tensor | dict[str, Tensor]]

# Seeds are tuples, and tuples of different lengths are different streams: the objective draws from (seed, step), the
# loader from (seed, epoch, …), validation and dropout from the two below.
_VALIDATION = (0, 0)
_DROPOUT = (0, 1)
_PROCESS = (0, 2, 0)


class Learner:
    """Trains `model` on `train` by `optimizer`, down the gradient of `objective`.

    `objective(model, batch, generator)` returns the loss (a scalar tensor), or a dict with "loss" and whatever else is
    worth keeping: scalars are logged, other tensors stay in `outputs` for metrics. The generator is a fresh one for
    each step, from (seed, step), and torch's global generator is set from the same pair for the length of a batch (and
    put back), so dropout too is the same after a resume.

    State, all of it counting what is done: `step` (optimizer steps), `epoch`, `batch_index` (batches of this epoch;
    while a batch is under way that is its own index). Of the batch: `batch`, `loss`, `outputs`, `scalars` (detached,
    still on the device), `training`. Of the last validation: `valid_scalars` (means over the items of the batches that
    have them). `stop_reason` is the text of the CancelFitException that ended the last fit, or None. `wrapped` is what
    the objective calls in place of `model`, where a callback has put something around it (DDP); None as a rule.
    `objective` may be None where a callback does its part. `process` is the number of this process among those that
    train together, 0 for the first; each has its own noise, (seed, step) in the first alone. The objective's generator
    is on `noise_device`: the CPU, or the CUDA device that `Device` puts batches on, where noise from elsewhere would
    keep the GPU waiting; so draw with `device=generator.device`.

    >>> model = nn.Linear(2, 1)
    >>> def objective(model, batch, generator):
    ...     return {"loss": (model(batch) - 3).square().mean()}
    >>> data = Loader(torch.zeros(32, 2), 8, seed=0)
    >>> learner = Learner(model, data, objective, torch.optim.SGD(model.parameters(), 0.2), valid=data)
    >>> learner.fit(5)
    >>> learner.step, round(model.bias.item(), 2), learner.valid_scalars["loss"] < 1e-3
    (20, 3.0, True)
    """

    def __init__(
        self,
        model: nn.Module,
        train: Loader,
        objective: Objective | None,
        optimizer: torch.optim.Optimizer,
        *,
        valid: Loader | None = None,
        callbacks: Iterable[Callback] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.train, self.valid = model, train, valid
        self.objective, self.optimizer = objective, optimizer
        self.callbacks: list[Callback] = sorted(callbacks, key=lambda callback: callback.order)
        self.seed = seed
        self.step = self.epoch = self.batch_index = 0
        self.n_epochs: int | None = None
        self.training = True
        self.batch: Any = None
        self.loss = torch.tensor(float("nan"))
        self.outputs: dict[str, Tensor] = {}
        self.scalars: dict[str, Tensor] = {}
        self.valid_scalars: dict[str, float] = {}
        self.stop_reason: str | None = None
        self.wrapped: nn.Module | None = None
        self.process = 0
        self.noise_device = torch.device("cpu")
        self.wants_to_stop: CancelFitException | None = None
        self._valid_index = 0

    def fit(self, n_epochs: int | None = None) -> None:
        """Train until `n_epochs` epochs are done in all, those before a resume included (None: until a callback stops).

        Raises UserError for a mistake the user can mend, CallbackError for a callback that fails.
        """
        self.n_epochs, self.stop_reason = n_epochs, None
        self.callbacks.sort(key=lambda callback: callback.order)
        with self._cleaning_up():
            try:
                self.event("before_fit")
                while n_epochs is None or self.epoch < n_epochs:
                    self.one_epoch()
            except CancelFitException as reason:
                self.stop_reason = str(reason)
            self.event("after_fit")

    def one_epoch(self) -> None:
        try:
            self.event("before_epoch")
            self.train_epoch()
            if self.valid is not None:
                self.validate()
        except CancelEpochException:
            pass
        self.epoch, self.batch_index = self.epoch + 1, 0
        self.event("after_epoch")

    def train_epoch(self) -> None:
        """The batches of this epoch that are still to do."""
        self.training = True
        self.model.train()
        for batch in self.train.batches(self.epoch, start=self.batch_index):
            self.batch = batch
            self.one_batch()

    def one_batch(self) -> None:
        if self.training:  # in validation, the stop may be wished for by the batch that it comes after
            self.wants_to_stop = None
        with self._randomness():
            try:
                self.event("before_batch")
                self.forward()
                self.event("after_loss")
                if self.training:
                    self.backward()
                    self.event_before_step("after_backward")
                    self.optimizer_step()
                    try:
                        self.event_of_done("after_step")
                    finally:
                        self.zero_grad()
            except CancelBatchException:
                pass
        if not self.training:
            self.event("after_batch")
            return
        self.batch_index += 1
        self.event_of_done("after_batch")
        if (reason := self.perform("agree_to_stop", lambda: self.wants_to_stop)) is not None:
            raise reason

    def forward(self) -> None:
        """The objective, which runs the model; sets `loss`, `outputs` and `scalars`."""
        with ExitStack() as contexts:
            for callback in self.callbacks:
                self._enter(contexts, callback)
            found = self.perform("objective", self._own_objective)
        self.outputs = dict(found) if isinstance(found, Mapping) else {"loss": found}
        self.loss = self.outputs["loss"]
        numbers = {name: value for name, value in self.outputs.items() if name == "loss" or value.ndim == 0}
        self.scalars = {name: value.detach() for name, value in numbers.items()}

    def backward(self) -> None:
        self.perform("backward", self.loss.backward)
        self.loss = self.loss.detach()  # lets go of the graph

    def optimizer_step(self) -> None:
        self.perform("optimizer_step", self.optimizer.step)
        self.step += 1

    def zero_grad(self) -> None:
        self.perform("zero_grad", self.optimizer.zero_grad)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """One pass over `valid` with the model in eval mode and, each time, the same noise; sets `valid_scalars`.

        Part of each epoch, and good alone: `with ema.swap(model): learner.validate()`.
        """
        if self.valid is None:
            raise ValueError("this Learner was given no validation data")
        sums: dict[str, Tensor] = {}
        n_items: dict[str, int] = {}
        self.training = False
        try:
            with in_eval_mode(self.model):
                self.event("before_validate")
                for index, batch in enumerate(self.valid.batches(0)):
                    self._valid_index, self.batch, self.scalars = index, batch, {}
                    self.one_batch()
                    for name, value in self.scalars.items():
                        n, wide = batch_size_of(self.batch), value.to(widest_float(value.device))
                        n_items[name], sums[name] = n_items.get(name, 0) + n, sums.get(name, 0.0) + wide * n
                self.valid_scalars = {name: (value / n_items[name]).item() for name, value in sums.items()}
                self.event("after_validate")
        finally:
            self.training = True
        return self.valid_scalars

    def generator(self) -> torch.Generator:
        """The objective's own source of noise, on `noise_device`: of this step, or, in validation, of this batch."""
        if self.training:
            source = make_generator(self.seed, self.step, *self._process())
        else:
            source = make_generator(self.seed, self._valid_index, *_VALIDATION)
        if self.noise_device.type == "cpu":
            return source
        return torch.Generator(self.noise_device).manual_seed(source.initial_seed())

    def _process(self) -> tuple[int, ...]:
        return (self.process, *_PROCESS) if self.process else ()

    def event(self, name: str) -> None:
        """Call method `name` of every callback, in order."""
        for callback in self.callbacks:
            self._call(callback, name)

    def event_before_step(self, name: str) -> None:
        """The same; if the epoch or the fit stops there, the gradients go, so that no later step adds to them."""
        try:
            self.event(name)
        except (CancelEpochException, CancelFitException):
            self.optimizer.zero_grad()
            raise

    def event_of_done(self, name: str) -> None:
        """The same, of a step that is done: all see it, also where one stops the fit, which ends with the batch."""
        for callback in self.callbacks:
            try:
                self._call(callback, name)
            except CancelFitException as wish:
                self.wants_to_stop = self.wants_to_stop or wish

    def perform(self, action: str, own: Callable[[], Any]) -> Any:
        """Let the last callback that has a method `action` do it, or else call `own`; returns what that returned."""
        for callback in reversed(self.callbacks):
            if callable(getattr(callback, action, None)):
                return self._call(callback, action)
        return own()

    def _call(self, callback: Callback, name: str) -> Any:
        if self.process and callback.main_process_only:
            return None
        return attributed(callback, name, lambda: getattr(callback, name)(self))

    def _enter(self, contexts: ExitStack, callback: Callback) -> None:
        """What the callback puts around the objective; its own errors are named, before and after."""
        name = "around_forward"
        if (context := self._call(callback, name)) is not None:
            attributed(callback, name, context.__enter__)
            contexts.push(lambda *error: attributed(callback, name, lambda: context.__exit__(*error)))

    @property
    def network(self) -> nn.Module:
        """The model as the objective calls it: inside `wrapped`, if a callback has set that."""
        return self.model if self.wrapped is None else self.wrapped

    def _own_objective(self) -> Any:
        if self.objective is None:
            raise ValueError("this Learner has no objective: give it one, or a TrainCB")
        return self.objective(self.network, self.batch, self.generator())

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Make what draws from torch's global generators (dropout) follow from (seed, step), and leave no trace."""
        source = (self.seed, self.step if self.training else self._valid_index, *_DROPOUT, *self._process())
        seed = make_generator(*source).initial_seed()
        # torch.manual_seed would, before CUDA is first used, format a stack trace each time: 1 ms.
        generators = [torch.default_generator]
        if torch.cuda.is_initialized():
            generators += torch.cuda.default_generators
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    @contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        """Run every callback's cleanup, whatever happens; failures in it never hide the error that came first."""
        first: BaseException | None = None
        try:
            yield
        except BaseException as error:
            first = error
            raise
        finally:
            failures = []
            for callback in self.callbacks:
                try:
                    self._call(callback, "cleanup")
                except Exception as error:
                    failures.append(error if isinstance(error, CallbackError) else named(callback, "cleanup", error))
            if first is not None:
                for failure in failures:
                    first.add_note(str(failure))
            elif failures:
                raise failures[0]
