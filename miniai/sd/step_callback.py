"""What the caller's `callback_on_step_end` sees of each step, and what it may do."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.diffusion.ladder import Ladder
from miniai.diffusion.samplers import Callback, no_callback
from miniai.diffusion.sampling import Sampler
from miniai.sd.guidance import Guidance
from miniai.sd.request_checks import guidance_strength

# callback(pipeline, step, timestep, {"latents": ..., "denoised": ...}) -> a dict with others in their place, or None
StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
SHOWN = ("latents", "denoised")  # at each step; what follows where it is asked for
ON_REQUEST = ("prompt_embeds", "negative_prompt_embeds")


OldCallback = Callable[[int, Tensor, Tensor], Any]  # callback(step, timestep, latents), as Diffusers had it before


class Interrupted(Exception):  # noqa: N818 - a callback's wish, not an error
    """Ends a run with `latents` as they are, for a callback that set `_interrupt`, as Diffusers' callbacks do."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


def check_tensor_names(names: Sequence[str]) -> None:
    """Diffusers' callbacks list the tensors they want."""
    if not set(names) <= {*SHOWN, *ON_REQUEST}:
        raise UserError(f"a callback may see {', '.join((*SHOWN, *ON_REQUEST))}, not {', '.join(names)}")


def with_old_callback(callback: StepCallback | None, old: OldCallback | None, every: int) -> StepCallback | None:
    """`callback`, and after it, at each `every`-th step from the first, `old`, which changes nothing but in place.

    Raises UserError for an interval that there is not.
    """
    if old is None:
        return callback
    if isinstance(every, bool) or every < 1:
        raise UserError(f"callback_steps {every} is not possible: give 1, for each step, or more")

    def both(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        answer = {} if callback is None else callback(pipeline, step, timestep, tensors) or {}
        if step % every == 0:
            old(step, timestep, answer.get("latents", tensors["latents"]))
        return answer

    return both


def after_each_step(
    pipeline: Any,
    callback: StepCallback | None,
    names: Sequence[str],
    sampler: Sampler,
    ladder: Ladder,
    guidance: Guidance,
) -> Callback:
    """`callback` as samplers call theirs, with the tensors of SHOWN and those in `names`.

    It sees latents in the coordinates that Diffusers shows for this sampler: x0 + sigma * eps for Euler and its
    relatives, that divided by sqrt(1 + sigma^2) for the others. What it changes in place counts as what it returns;
    other `prompt_embeds`, or a number set as `pipeline._guidance_scale`, guide the steps to come. It is called once a
    step, where Diffusers calls it once a call of the network (for Heun, DPM2 and PNDM that is more often).

    Raises Interrupted if `pipeline._interrupt` is true after it, UserError for latents of another shape.
    """
    pipeline._guidance_scale, pipeline._num_timesteps = guidance.scale, ladder.n_steps
    if callback is None:
        return no_callback
    timesteps = ladder.timesteps.round().long() if sampler.rule.whole_timesteps else ladder.timesteps.float()

    def after_step(i: int, x: Tensor, sigma: float, x0: Tensor) -> Tensor | None:
        scale = 1 / math.hypot(1, sigma) if sampler.rule.unit_start else 1.0
        seen = {"latents": x * scale, "denoised": x0}
        seen |= {name: getattr(guidance, name) for name in ON_REQUEST if name in names}
        version = seen["latents"]._version
        answer = callback(pipeline, i, timesteps[i], dict(seen)) or {}
        texts = answer.get("prompt_embeds", guidance.prompt_embeds)
        strength = guidance_strength(pipeline._guidance_scale)
        changes = texts is not guidance.prompt_embeds or strength != guidance.scale
        if changes and i < ladder.n_steps - 1:
            guidance.follow(texts, strength)
        changed = _checked(answer.get("latents", seen["latents"]), x)
        if pipeline._interrupt:
            raise Interrupted(changed)
        is_same = changed is seen["latents"] and changed._version == version
        return None if is_same else changed.to(x) / scale

    return after_step


def _checked(latents: Any, x: Float[Tensor, "b c h w"]) -> Tensor:
    if not isinstance(latents, torch.Tensor) or latents.shape != x.shape:
        found = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise UserError(f"a callback returned latents {found}, and not {tuple(x.shape)}")
    return latents
