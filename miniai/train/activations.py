"""What happens inside a network while it learns: means, deviations, histograms and dead units, layer by layer."""

import os
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.plots import Plot, curve_panels, curves, heatmaps
from miniai.train.hooks import Chooser, Hook, HooksCallback, innermost


class ActivationStats(HooksCallback):
    """Mean, deviation and histogram of the outputs of the modules that `choose` picks, every `every` training steps.

    - bins, limit: the histogram is of the outputs' magnitudes, `bins` equal ones from 0 to `limit`; what lies above
      counts into the last. An output of magnitude below `limit / bins` is dead.

    Numbers stay on the model's device until they are asked for, so that a GPU need not wait. They are read by module,
    in the order of the model: `means()`, `deviations()`, `histograms()`, `dead_shares()`; `names` says which.

    >>> from miniai.train.data import Loader
    >>> from miniai.train.learner import Learner
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> stats = ActivationStats(lambda module: isinstance(module, nn.ReLU), every=2)
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader(torch.randn(32, 2), 4, seed=0)
    >>> Learner(model, data, lambda m, x, g: m(x).square().mean(), optimizer, callbacks=[stats]).fit(1)
    >>> stats.names, stats.means().shape, stats.histograms().shape
    (['1'], torch.Size([1, 4]), torch.Size([1, 4, 40]))
    >>> picture = stats.plot_stats("stats.png"), stats.plot_histograms("histograms.png"), stats.plot_dead("dead.png")
    """

    def __init__(self, choose: Chooser = innermost, *, every: int = 1, bins: int = 40, limit: int | float = 10) -> None:
        super().__init__(None, choose, every=every)
        if bins < 1 or not limit > 0:
            raise ValueError(f"a histogram needs at least 1 bin and a limit above 0, not {bins} and {limit}")
        self.bins, self.limit = bins, limit

    @torch.no_grad()
    def observe(self, hook: Hook, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return
        values = outputs.detach().float()
        magnitudes = values.abs().clamp(max=self.limit)
        row = torch.cat([torch.stack([values.mean(), values.std()]), magnitudes.histc(self.bins, 0, self.limit)])
        vars(hook).setdefault("rows", []).append(row)

    @property
    def names(self) -> list[str]:
        """The modules that were seen."""
        return [hook.name for hook in self._seen()]

    def means(self) -> Float[Tensor, "modules steps"]:
        return self._rows()[..., 0]

    def deviations(self) -> Float[Tensor, "modules steps"]:
        return self._rows()[..., 1]

    def histograms(self) -> Float[Tensor, "modules steps bins"]:
        """How many outputs fell into each bin."""
        return self._rows()[..., 2:]

    def dead_shares(self) -> Float[Tensor, "modules steps"]:
        """The share of outputs in the lowest bin, 0 to 1."""
        histograms = self.histograms()
        return histograms[..., 0] / histograms.sum(dim=-1).clamp(min=1)

    def plot_stats(self, path: str | os.PathLike[str] | None = None) -> Plot:
        """Means and deviations over time, a line for each module."""
        panels = {"mean": self._lines(self.means()), "deviation": self._lines(self.deviations())}
        return curve_panels(path, panels, xlabel="step")

    def plot_histograms(self, path: str | os.PathLike[str] | None = None) -> Plot:
        """The "colourful dimension": time to the right, magnitude upward, log(1 + count) as the colour."""
        pictures = {name: one.T.log1p() for name, one in zip(self.names, self.histograms(), strict=True)}
        size = (self.every * self.means().shape[1], self.limit)
        return heatmaps(path, pictures, xlabel="step", ylabel="magnitude", size=size)

    def plot_dead(self, path: str | os.PathLike[str] | None = None) -> Plot:
        """The share of dead outputs over time, a line for each module."""
        return curves(path, self._lines(self.dead_shares()), xlabel="step", ylabel="dead share")

    def _seen(self) -> list[Hook]:
        return [hook for hook in self.hooks if "rows" in vars(hook)]

    def _rows(self) -> Float[Tensor, "modules steps values"]:
        seen = self._seen()
        if not seen:
            raise ValueError("no activations were seen yet: fit first, and choose modules that there are")
        rows = [vars(hook)["rows"] for hook in seen]
        n_steps = min(map(len, rows))
        return torch.stack([torch.stack(one[:n_steps]) for one in rows]).cpu()

    def _lines(self, values: Float[Tensor, "modules steps"]) -> dict[str, tuple[list[int], list[float]]]:
        steps = [index * self.every for index in range(values.shape[1])]
        return {name: (steps, line.tolist()) for name, line in zip(self.names, values, strict=True)}
