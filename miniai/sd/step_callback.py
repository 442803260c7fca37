"""What the caller's `callback_on_step_end` sees of each step, and what it may do."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from miniai.diffusion.ladder import Ladder
from miniai.diffusion.samplers import Callback, no_callback
from miniai.diffusion.sampling import Sampler

# callback(pipeline, step, timestep, {"latents": ..., "denoised": ...}) -> a dict with other "latents", or None
StepCallback = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]


class Interrupted(Exception):  # noqa: N818 - a callback's wish, not an error
    """Ends a run with `latents` as they are, for a callback that set `_interrupt`, as Diffusers' callbacks do."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


def after_each_step(pipeline: Any, callback: StepCallback | None, sampler: Sampler, ladder: Ladder) -> Callback:
    """`callback` as samplers call theirs. It sees latents in the coordinates that Diffusers shows for this sampler:
    x0 + sigma * eps for Euler and its relatives, that divided by sqrt(1 + sigma^2) for the others. What it changes in
    place counts as what it returns. It is called once a step, where Diffusers calls it once a call of the network (for
    Heun, DPM2 and PNDM that is more often).

    Raises Interrupted if `pipeline._interrupt` is true after it.
    """
    if callback is None:
        return no_callback

    def after_step(i: int, x: Tensor, sigma: float, x0: Tensor) -> Tensor | None:
        scale = 1 / math.hypot(1, sigma) if sampler.rule.unit_start else 1.0
        seen = {"latents": x * scale, "denoised": x0}
        version = seen["latents"]._version
        answer = callback(pipeline, i, float(ladder.timesteps[i]), dict(seen)) or {}
        changed = answer.get("latents", seen["latents"])
        if pipeline._interrupt:
            raise Interrupted(changed)
        is_same = changed is seen["latents"] and changed._version == version
        return None if is_same else changed.to(x) / scale

    return after_step
