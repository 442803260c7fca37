"""Training mode or eval mode, of every module of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever is done to them inside, each module of `model` is afterwards in the mode that it was in before.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with modes_kept(model):
    ...     training = model.eval().training
    >>> training, model[0].training, model[1].training
    (False, True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside, and each of its modules afterwards in its own.

    >>> model = nn.Sequential(nn.Dropout())
    >>> with in_eval_mode(model):
    ...     training = model[0].training
    >>> training, model[0].training
    (False, True)
    """
    with modes_kept(model):
        model.eval()
        yield
