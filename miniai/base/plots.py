"""Curves as PNG files."""

import os
from collections.abc import Mapping, Sequence

from miniai.base.files import atomic_file


def curves(
    path: str | os.PathLike[str],
    lines: Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]],
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
) -> None:
    """Draw each named line `(xs, ys)` into one PNG at `path`, with a legend if there are several."""
    # Imported here: matplotlib takes half a second, and painting a prompt needs none of it. `Figure` on its own, unlike
    # pyplot, needs no display and keeps no global list of figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (xs, ys) in lines.items():
        axes.plot(list(xs), list(ys), label=name, linewidth=1.2)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    with atomic_file(path) as file:
        canvas.print_png(file)
