"""An average of the weights whose length is chosen after the training (Karras et al. 2024, arXiv 2312.02696, sec. 3).

Two averages of different length go along and are kept from time to time; a weighted sum of these snapshots is nearly
what an average of any other length would have been, at any moment of the training.
"""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.base.weights import read_metadata, read_weights, write_weights
from miniai.train.callback import Callback
from miniai.train.ema import EMA
from miniai.train.learner import Learner

WIDEST = 12**-0.5  # of the even mean of all weights since the start
_NAME = re.compile(r"average-(\d{7,})-\d+\.safetensors")


def power_of(width: float) -> float:
    """The power gamma of an average of relative width sigma: sigma² = (gamma + 1) / ((gamma + 2)² (gamma + 3)), the
    paper's eq. 123. Raises ValueError unless 0 < `width` <= 12^-0.5, where gamma is 0."""
    if not 0 < width <= WIDEST + 1e-12:
        raise ValueError(f"the width of an average is above 0 and at most {WIDEST:.4f}, not {width}")
    low, high = 0.0, width**-2  # the width falls as gamma grows, and is less than gamma to the power -0.5
    while (middle := (low + high) / 2) not in (low, high):
        too_wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if too_wide else (low, middle)
    return low


class PowerEMA(EMA):
    """An average of the weights that grows with the training: after n updates those of update m count by
    (m/n)^(gamma+1) - ((m-1)/n)^(gamma+1), which is nearly proportional to m^gamma: the paper's eq. 1, by the steps of
    its eq. 2.

    `width` is the deviation of these places in time, as a share of the training so far: 0.1, say. Hence, unlike a
    decay, it means the same in a short training and a long one, and the random start is forgotten without a warm-up.

    >>> average = PowerEMA(0.1)
    >>> average.n_updates = 100
    >>> f"power {average.power:.2f}, decay now {average.decay_now():.3f}"
    'power 6.94, decay now 0.923'
    """

    def __init__(self, width: float = 0.1, every: int = 1) -> None:
        super().__init__(every=every)
        self.width, self.power = width, power_of(width)

    def decay_now(self) -> float:
        return (1 - 1 / self.n_updates) ** (self.power + 1)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"width": self.width, "every": self.every}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = (self.width, self.every)
        if (state["width"], state["every"]) != own:
            raise UserError(
                f"the checkpoint has an average of width {state['width']}, every {state['every']} steps, where this "
                f"training has {own[0]} and {own[1]}: resume with the same"
            )
        super().load_state_dict(state)


class AverageSnapshots(Callback):
    """Writes what each of `averages` holds to `folder`, after every `every_steps` steps and at the end of a fit.

    The averages are callbacks of the Learner themselves. Some 20 to 40 snapshots serve `reconstruct` well for widths
    from 0.03 up. `dtype`: half precision takes half the space and is enough for these (the paper's appendix C.5);
    narrower averages are made of large parts of both signs, and need float32. A training that starts anew in the folder
    replaces what is there; one that is resumed replaces what it does again.

    >>> from miniai.train.data import Loader
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 1, seed=0)
    >>> averages = [PowerEMA(0.05), PowerEMA(0.1)]
    >>> keep = AverageSnapshots("averages", averages, every_steps=8)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[*averages, keep]).fit(2)
    >>> weights = reconstruct("averages", width=0.08)
    >>> sorted(weights), [snapshot.n_updates for snapshot in snapshots("averages")][-2:]
    (['bias', 'weight'], [64, 64])
    """

    order = 85  # after Checkpoint, which may refuse to begin
    main_process_only = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        averages: Sequence[PowerEMA],
        every_steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if every_steps < 1 or not averages or len({average.every for average in averages}) > 1:
            raise ValueError(f"snapshots need averages of the same `every`, and a step or more between: {every_steps}")
        self.folder, self.averages, self.every_steps, self.dtype = Path(folder), averages, every_steps, dtype
        self._last = 0

    def before_fit(self, learner: Learner) -> None:
        if any(average not in learner.callbacks for average in self.averages):
            raise ValueError("the averages of AverageSnapshots must be callbacks of the Learner too")
        make_folder(self.folder)
        for step, path in _files(self.folder):
            if step > learner.step or step % self.every_steps:  # the latter where a training was interrupted
                path.unlink()

    def after_step(self, learner: Learner) -> None:
        if learner.step % self.every_steps == 0:
            self._save(learner.step)

    def after_fit(self, learner: Learner) -> None:
        if self._last != learner.step:
            self._save(learner.step)

    def _save(self, step: int) -> None:
        if self.averages[0].n_updates == 0:
            return
        for i, average in enumerate(self.averages):
            told = {"width": repr(average.width), "n_updates": str(average.n_updates)}
            tensors = {name: shadow.to(self.dtype) for name, shadow in average.shadow.items()}
            write_weights(self.folder / f"average-{step:07d}-{i}.safetensors", tensors, told)
        self._last = step


@dataclass(frozen=True)
class Snapshot:
    """An average as it stood after `n_updates`, in the file `path`."""

    path: Path
    n_updates: int
    width: float


def snapshots(folder: str | os.PathLike[str]) -> list[Snapshot]:
    """Those in `folder`, the earliest first. Raises UserError if there is none, or one that does not say what it is."""
    found = []
    for _, path in _files(folder):
        told = read_metadata(path)
        try:
            found.append(Snapshot(path, int(told["n_updates"]), float(told["width"])))
            if found[-1].n_updates < 1:
                raise ValueError("no updates")
            power_of(found[-1].width)
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is not a snapshot of an average: move it out of the folder") from error
    if not found:
        raise UserError(f"{folder} holds no snapshots of averages: train with AverageSnapshots first")
    return found


def reconstruct(folder: str | os.PathLike[str], width: float, n_updates: int | None = None) -> dict[str, Tensor]:
    """Nearly the average of relative width `width` as it stood after `n_updates`, by default at the last snapshot: the
    float32 weights by their names, made of all snapshots in `folder` up to there.

    Warns if their sum weighs the steps of the training otherwise than the average would by more than 5 %, or if what
    the snapshots lost by rounding makes up more than 0.3 % of the weights: there are too few of them, they are in half
    precision, or the width is too far from theirs. Raises ValueError as `power_of` does, UserError if there are no
    snapshots up to that moment, none after it, or they are of different models.
    """
    found = snapshots(folder)
    last = max(snapshot.n_updates for snapshot in found)
    end = last if n_updates is None else n_updates
    found = [snapshot for snapshot in found if snapshot.n_updates <= end]
    if not found or end > last:
        raise UserError(f"{folder} holds no snapshots of the first {end} updates: they end at {last}")
    profiles = [(float(snapshot.n_updates), power_of(snapshot.width)) for snapshot in found]
    parts, error = mixture(profiles, (float(end), power_of(width)))
    first = next(iter(read_weights(found[0].path).values()))
    rounding = float(parts.norm()) * 0.21 * torch.finfo(first.dtype).eps  # 0.21: root mean square of the last digit's
    if error > 0.05 or rounding > 0.003:
        warnings.warn(
            f"an average of width {width} differs from what {len(found)} snapshots can make up by {error:.0%}, and "
            f"their rounding by {rounding:.1%}: keep more, in float32, or ask for a width nearer to theirs",
            stacklevel=2,
        )
    total: dict[str, Tensor] = {}
    for part, snapshot in zip(parts.tolist(), found, strict=True):
        weights = read_weights(snapshot.path)
        if total and {n: w.shape for n, w in total.items()} != {n: w.shape for n, w in weights.items()}:
            raise UserError(f"{snapshot.path} is of another model than the snapshots before it: move it away")
        for name, weight in weights.items():
            total[name] = total[name].add_(weight, alpha=part) if name in total else part * weight.float()
    return total


def mixture(profiles: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> tuple[Float[Tensor, " n"], float]:
    """What to multiply averages by so that their sum is nearly the `wanted` one, and how near: the L2 norm of the
    difference of the profiles over the wanted one's.

    An average is its end t and its power gamma: a density (gamma + 1) x^gamma / t^(gamma + 1) of times x in [0, t].
    The least squares of the paper's eqs. 134 and 141; the parts here sum to 1, so that weights that do not change are
    given back.
    """
    gram = torch.tensor([[_overlap(a, b) for b in profiles] for a in profiles], dtype=torch.float64)
    target = torch.tensor([_overlap(a, wanted) for a in profiles], dtype=torch.float64)
    ones = torch.ones(len(profiles), dtype=torch.float64)
    # Lagrange's conditions. Neighbouring snapshots are nearly alike: of all solutions the one of least norm.
    scale = gram.diagonal().mean()
    left = torch.cat([torch.cat([gram / scale, ones[:, None]], 1), torch.cat([ones, ones.new_zeros(1)])[None]])
    right = torch.cat([target / scale, ones.new_ones(1)])
    parts = torch.linalg.lstsq(left, right, rcond=1e-12, driver="gelsd").solution[:-1]
    norm = _overlap(wanted, wanted)
    squared = parts @ gram @ parts - 2 * parts @ target + norm
    return parts, float(squared.clamp(min=0) / norm) ** 0.5


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two profiles, each an end and a power: the paper's eq. 151."""
    (t_a, g_a), (t_b, g_b) = a, b
    common = min(t_a, t_b)
    within = (common / t_a) ** g_a * (common / t_b) ** g_b
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * within * common / (t_a * t_b)


def _files(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    if not os.path.isdir(folder):
        return []
    return sorted((int(match[1]), path) for path in Path(folder).iterdir() if (match := _NAME.fullmatch(path.name)))
