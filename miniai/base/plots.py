"""Plots as PNG: in a file, and inline in a notebook."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from miniai.base.files import atomic_file

Line = tuple[Sequence[int | float], Sequence[int | float]]
N_COLOURS, _STYLES = 10, ("-", "--", ":")  # of matplotlib's lines, unless told otherwise
MANY_LINES = 6  # a legend of more stands beside the plot, where it hides none of them
FEW_TICKS = 12


@dataclass(frozen=True)
class Plot:
    """A finished plot: the bytes of its PNG. As the last value of a notebook's cell it shows itself."""

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png


def curves(
    path: str | os.PathLike[str] | None,
    lines: Mapping[str, Line],
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    log_x: bool = False,
) -> Plot:
    """Draw each named line `(xs, ys)` into one PNG at `path` (None: no file), with a legend if there are several."""
    figure = _figure(8, 4.5)
    axes = figure.add_subplot()
    _draw_lines(axes, lines, xlabel, ylabel)
    axes.set_yscale("log" if log_y else "linear")
    axes.set_xscale("log" if log_x else "linear")
    places = sorted({x for xs, _ in lines.values() for x in xs})
    if log_x and len(places) <= FEW_TICKS:  # the numbers that were chosen, not powers of ten
        axes.set_xticks(places, labels=[f"{x:g}" for x in places])
        axes.minorticks_off()
    return _finish(figure, path)


def curve_panels(
    path: str | os.PathLike[str] | None, panels: Mapping[str, Mapping[str, Line]], xlabel: str, n_columns: int = 2
) -> Plot:
    """Several `curves` side by side in one PNG, each under its title; the legend stands in the first."""
    figure, places = _panels(len(panels), n_columns)
    for index, (axes, (title, lines)) in enumerate(zip(places, panels.items(), strict=True)):
        _draw_lines(axes, lines, xlabel, title, legend=index == 0)
    return _finish(figure, path)


def heatmaps(
    path: str | os.PathLike[str] | None,
    pictures: Mapping[str, Float[Tensor, "rows columns"]],
    xlabel: str,
    ylabel: str,
    n_columns: int = 2,
    size: tuple[int | float, int | float] | None = None,
) -> Plot:
    """Draw each named table of numbers as colours, row 0 at the bottom, into one PNG at `path` (None: no file). Axes
    are numbered from 0 to `size`, (across, up); without it, by columns and rows."""
    figure, places = _panels(len(pictures), n_columns)
    for axes, (title, picture) in zip(places, pictures.items(), strict=True):
        numbers = picture.detach().float().cpu().numpy()
        extent = None if size is None else (0, size[0], 0, size[1])
        axes.imshow(numbers, origin="lower", aspect="auto", interpolation="nearest", extent=extent)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    return _finish(figure, path)


def _figure(width: int | float, height: int | float) -> Any:
    # Imported here: matplotlib takes half a second, and painting a prompt needs none of it. `Figure` on its own, unlike
    # pyplot, needs no display and keeps no global list of figures.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _panels(n: int, n_columns: int) -> tuple[Any, list[Any]]:
    if n < 1:
        raise ValueError("there is nothing to plot yet")
    n_columns = min(n, n_columns)
    n_rows = math.ceil(n / n_columns)
    figure = _figure(5 * n_columns, 3 * n_rows)
    return figure, [figure.add_subplot(n_rows, n_columns, index + 1) for index in range(n)]


def _draw_lines(axes: Any, lines: Mapping[str, Line], xlabel: str, ylabel: str, legend: bool = True) -> None:
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        marker = "o" if len(xs) == 1 else None  # a line of one point would not be seen
        style = _STYLES[i // N_COLOURS % len(_STYLES)]  # colours come again after as many lines
        axes.plot(list(xs), list(ys), style, label=name, linewidth=1.2, marker=marker)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if legend and len(lines) > MANY_LINES:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    elif legend and len(lines) > 1:
        axes.legend()


def _finish(figure: Any, path: str | os.PathLike[str] | None) -> Plot:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    if path is not None:
        with atomic_file(path) as file:
            file.write(buffer.getvalue())
    return Plot(buffer.getvalue())
