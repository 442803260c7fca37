"""`miniai evaluate samplers`: every sampler's error over its steps on data whose exact answer is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniai.base.errors import UserError
from miniai.diffusion.gaussian import (
    GaussianData,
    errors_by_steps,
    measured_order,
    plot_orders,
    variance_errors_by_steps,
)
from miniai.diffusion.sampling import SAMPLERS

NOISY = ("euler_a", "ddpm", "dpmpp_2m_sde")  # each run paints others: what nears the data's is their variance
LINES: dict[str, tuple[str, dict[str, Any]]] = {
    **{row.title: (name, {}) for name, row in SAMPLERS.items() if name not in ("ddim", *NOISY)},
    "Heun, variance with churn": ("heun", {"s_churn": 10.0}),
    **{f"{SAMPLERS[name].title}, variance": (name, {}) for name in NOISY},
}  # without DDIM, which is Euler here


def sampler_orders(out: Path, step_counts: Sequence[int] = (20, 40, 80, 160)) -> str:
    """Draw the errors into the PNG `out`, and return them as a table with the order of each.

    Raises UserError for fewer than two step counts, or ones below 2.
    """
    counts = sorted(set(step_counts))
    if len(counts) < 2 or counts[0] < 2:
        raise UserError("--steps needs at least two numbers of steps, each at least 2: an order is how the error falls")
    data = GaussianData.draw((2, 2, 2), seed=1)
    found = {
        label: variance_errors_by_steps(SAMPLERS[name].function, counts, **options)
        if "variance" in label
        else errors_by_steps(SAMPLERS[name].function, data, counts, **options)
        for label, (name, options) in LINES.items()
    }
    plot_orders(out, counts, found)
    head = "| sampler | " + " | ".join(f"{n} steps" for n in counts) + " | order |\n"
    rule = "| --- |" + " ---: |" * (len(counts) + 1) + "\n"
    rows = [
        f"| {label} | " + " | ".join(f"{error:.1e}" for error in errors) + f" | {measured_order(counts, errors):.1f} |"
        for label, errors in found.items()
    ]
    return head + rule + "\n".join(rows) + "\n"
