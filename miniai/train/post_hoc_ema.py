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
    paper's eq. 3. Raises ValueError unless 0 < `width` <= 12^-0.5, where gamma is 0."""
    if not 0 < width <= WIDEST + 1e-12:
        raise ValueError(f"the width of an average is above 0 and at most {WIDEST:.4f}, not {width}")
    low, high = 0.0, width**-2  # the width falls as gamma grows, and is less than gamma to the power -0.5
    while (middle := (low + high) / 2) not in (low, high):
        too_wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if too_wide else (low, middle)
    return low


class PowerEMA(EMA):
    """An average of the weights that grows with the training: after n updates those of update m count by
    (m/n)^(gamma+1) - ((m-1)/n)^(gamma+1), that is, by m^gamma: the paper's eq. 2.

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


class AverageSnapshots(Callback):
    """Writes what each of `averages` holds to `folder`, after every `every_steps` steps and at the end of a fit.

    In `dtype`: half precision takes half the place, and does (the paper's section 3.2). Some 20 to 40 snapshots serve
    `reconstruct` well. Those of steps that a resumed training does again are deleted when it starts. The averages are
    callbacks of the Learner themselves.

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
        dtype: torch.dtype = torch.float16,
    ) -> None:
        if every_steps < 1 or not averages:
            raise ValueError(f"snapshots need an average, and 1 step or more between them, not {every_steps}")
        self.folder, self.averages, self.every_steps, self.dtype = Path(folder), averages, every_steps, dtype
        self._last = 0

    def before_fit(self, learner: Learner) -> None:
        make_folder(self.folder)
        for step, path in _files(self.folder):
            if step > learner.step:
                path.unlink()

    def after_step(self, learner: Learner) -> None:
        if learner.step % self.every_steps == 0:
            self._save(learner.step)

    def after_fit(self, learner: Learner) -> None:
        if self._last != learner.step:
            self._save(learner.step)

    def _save(self, step: int) -> None:
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
    """Those in `folder`, the earliest first. Raises UserError if there is none, or one that says not what it is."""
    found = []
    for _, path in _files(folder):
        told = read_metadata(path)
        try:
            found.append(Snapshot(path, int(told["n_updates"]), float(told["width"])))
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is not a snapshot of an average: move it out of the folder") from error
    if not found:
        raise UserError(f"{folder} holds no snapshots of averages: train with AverageSnapshots first")
    return found


def reconstruct(folder: str | os.PathLike[str], width: float, n_updates: int | None = None) -> dict[str, Tensor]:
    """Nearly the average of relative width `width` as it stood after `n_updates`, by default at the last snapshot: the
    float32 weights by their names, made of all snapshots in `folder` up to there.

    Warns if their sum weighs the steps of the training otherwise than the average would by more than 5 %: the
    snapshots are too few, or the width too far from theirs. Raises ValueError as `power_of` does, UserError if there
    are no snapshots up to that moment or they are of different models.
    """
    found = snapshots(folder)
    end = n_updates or max(snapshot.n_updates for snapshot in found)
    found = [snapshot for snapshot in found if snapshot.n_updates <= end]
    if not found:
        raise UserError(f"{folder} holds no snapshot of the first {end} updates: ask for a later moment")
    parts, error = mixture(
        [(float(one.n_updates), power_of(one.width)) for one in found], (float(end), power_of(width))
    )
    if error > 0.05:
        warnings.warn(
            f"an average of width {width} differs from what {len(found)} snapshots can make up by {error:.0%}",
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
    The least squares of the paper's section 3.2 and appendix C; the parts here sum to 1, so that weights that do not
    change are given back.
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
    """The integral of the product of two profiles, each an end and a power."""
    (t_a, g_a), (t_b, g_b) = a, b
    common = min(t_a, t_b)
    within = (common / t_a) ** g_a * (common / t_b) ** g_b
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * within * common / (t_a * t_b)


def _files(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    if not os.path.isdir(folder):
        return []
    return sorted((int(match[1]), path) for path in Path(folder).iterdir() if (match := _NAME.fullmatch(path.name)))
