"""26. Schedules: the learning rate as a function of the step, set before each one: `optimizer.lr = step_lr(i, …)`."""

import math

from miniai.scratch.ieee import Number


def step_lr(i: int, lr: Number, step_size: int, gamma: Number = 0.1) -> float:
    """Multiplied by `gamma` after every `step_size` steps."""
    if step_size < 1:
        raise ValueError(f"step_size must be at least 1, got {step_size}")
    return lr * gamma ** (i // step_size)


def exponential_lr(i: int, lr: Number, gamma: Number) -> float:
    """Multiplied by `gamma` after every step."""
    return lr * gamma**i


def cosine(start: Number, end: Number, share: Number) -> float:
    """From `start` at share 0 to `end` at 1, along half a cosine: slow at both ends."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def cosine_annealing_lr(i: int, lr: Number, n_steps: int, lr_min: Number = 0.0) -> float:
    """Along half a cosine from `lr` to `lr_min`, in `n_steps` (Loshchilov and Hutter 2017, equation 5)."""
    check_steps(i, n_steps)
    return cosine(lr, lr_min, i / n_steps)


def one_cycle_lr(
    i: int,
    max_lr: Number,
    n_steps: int,
    pct_start: Number = 0.3,
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
) -> float:
    """Up to `max_lr` in the first `pct_start` of the steps, then down to next to nothing (Smith and Topin 2018).

    It starts at max_lr / div_factor, and ends final_div_factor times lower.
    """
    check_steps(i, n_steps)
    start = max_lr / div_factor
    share, rising = cycle_share(i, n_steps, pct_start)
    return cosine(start, max_lr, share) if rising else cosine(max_lr, start / final_div_factor, share)


def one_cycle_momentum(i: int, n_steps: int, pct_start: Number = 0.3, low: Number = 0.85, high: Number = 0.95) -> float:
    """The mirror of the learning rate: least momentum where steps are longest."""
    check_steps(i, n_steps)
    share, rising = cycle_share(i, n_steps, pct_start)
    return cosine(high, low, share) if rising else cosine(low, high, share)


def cycle_share(i: int, n_steps: int, pct_start: Number) -> tuple[float, bool]:
    """How far step `i` is through its part of the cycle, and whether that is the rising one."""
    if not 0 < pct_start < 1:
        raise ValueError(f"pct_start must lie between 0 and 1, got {pct_start}")
    top = pct_start * n_steps - 1
    return (i / top, True) if 0 < top >= i else ((i - top) / (n_steps - 1 - top), False)


def check_steps(i: int, n_steps: int) -> None:
    if n_steps < 1:
        raise ValueError(f"a schedule needs at least 1 step, got {n_steps}")
    if not 0 <= i <= n_steps:
        raise ValueError(f"step {i} is outside a schedule of {n_steps} steps")
