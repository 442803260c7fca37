"""Several processes train one model, by Hugging Face's Accelerate (extra `accelerate`): its DDP, its launchers.

`accelerate launch -m miniai train …`, or `torchrun`; nothing of the engine is written here. The loader's batch size
stays that of all processes together, so that a training is the same on one process or on eight, and resumes on either.
"""

import os
from typing import Any

import torch
from torch import Tensor

from miniai.base.errors import UserError
from miniai.train.callback import Callback, CancelFitException
from miniai.train.learner import Learner

PARTED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def n_launched() -> int:
    """How many processes a launcher started to train together; 1 without one.

    >>> n_launched()
    1
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first of several.

    >>> is_first()
    True
    """
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when every process has come here, so that all may read what the first has written before."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


class Accelerate(Callback):
    """Trains on all the processes that a launcher started, each with an equal part of every batch.

    - keywords: Accelerator's own, such as `cpu=True` or `mixed_precision="bf16"`.

    Takes the place of Device and Precision. Gradients are averaged over the processes, the loss and the other scalars
    too, before callbacks see them; rates and the wish to stop are the first process's and anyone's. Every process
    validates on all the data. Checkpoint, Recorder, Progress, Every and trackers work in the first process alone; the
    resume is done in all. With Precision beside it, that decides the precision. Raises UserError if Accelerate is
    missing, the batch cannot be parted evenly, or Accelerate is set to part the weights themselves (FSDP, DeepSpeed),
    since averages and checkpoints here are of whole weights.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 8, seed=0)
    >>> accelerate = Accelerate(cpu=True)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[accelerate]).fit(1)
    >>> accelerate.n_processes
    1
    """

    order = -110

    def __init__(self, **keywords: Any) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise UserError("Accelerate is not installed: pip install 'miniai[accelerate]'") from error
        self.accelerator = Accelerator(**keywords)
        self._optimizer: Any = None

    @property
    def n_processes(self) -> int:
        """How many train together."""
        return self.accelerator.num_processes

    def before_fit(self, learner: Learner) -> None:
        kind = str(self.accelerator.distributed_type).rpartition(".")[2]
        if kind in PARTED:
            raise UserError(
                f"Accelerate is set to {kind}, which parts the weights among the processes, and averages and "
                "checkpoints here need them whole: choose plain data parallelism (multi-GPU) in `accelerate config`"
            )
        if learner.train.batch_size % self.n_processes or (self.n_processes > 1 and not learner.train.drop_last):
            raise UserError(
                f"{self.n_processes} processes need whole batches that they can share evenly: choose a batch size that "
                f"they divide, not {learner.train.batch_size}, and drop the last batch of an epoch"
            )
        learner.process = self.accelerator.process_index
        learner.train.shard = (learner.process, self.n_processes)
        if learner.wrapped is None:
            learner.wrapped, self._optimizer = self.accelerator.prepare(learner.model, learner.optimizer)
        for weight, values in learner.optimizer.state.items():  # a resume may have put it on the CPU
            for name, value in values.items():
                if isinstance(value, Tensor) and value.ndim and value.device != weight.device:
                    values[name] = value.to(weight.device)

    def before_batch(self, learner: Learner) -> None:
        from accelerate.utils import send_to_device

        learner.batch = send_to_device(learner.batch, self.accelerator.device, non_blocking=True)

    def backward(self, learner: Learner) -> None:
        self.accelerator.backward(learner.loss)

    def after_backward(self, learner: Learner) -> None:
        self.accelerator.unscale_gradients(self._optimizer)  # does nothing but under float16
        if self.n_processes > 1:
            self._average(learner)

    def optimizer_step(self, learner: Learner) -> None:
        if self.n_processes > 1:  # schedules by the clock differ a little from one process to the next
            groups = learner.optimizer.param_groups
            rates = torch.tensor([float(group["lr"]) for group in groups], dtype=torch.float64)
            for group, rate in zip(groups, self._shared(rates, first_only=True).tolist(), strict=True):
                group["lr"] = rate
        self._optimizer.step()

    def zero_grad(self, learner: Learner) -> None:
        self._optimizer.zero_grad()

    def agree_to_stop(self, learner: Learner) -> CancelFitException | None:
        """All stop after the batch after which one does."""
        if self.n_processes == 1:
            return learner.wants_to_stop
        wishes = self._shared(torch.tensor([float(learner.wants_to_stop is not None)]))
        if not bool(wishes.any()):
            return None
        return learner.wants_to_stop or CancelFitException("another process stops")

    def cleanup(self, learner: Learner) -> None:
        learner.train.shard = (0, 1)  # what is asked of the loader outside a fit is the whole

    def _average(self, learner: Learner) -> None:
        names = list(learner.scalars)
        values = torch.stack([learner.loss.detach().float(), *(learner.scalars[name].float() for name in names)])
        means = self._shared(values) / self.n_processes
        learner.loss = means[0]
        learner.scalars = dict(zip(names, means[1:], strict=True))

    def _shared(self, values: Tensor, first_only: bool = False) -> Tensor:
        """The sum of the processes' values, or those of the first."""
        mine = values.to(self.accelerator.device)
        if first_only:
            mine = mine if self.accelerator.is_main_process else torch.zeros_like(mine)
        return self.accelerator.reduce(mine, reduction="sum")
