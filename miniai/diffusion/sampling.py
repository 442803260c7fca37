"""The table of samplers, by name; how a model's scheduler file sets one up; and one call that runs it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.configs import config_from_dict
from miniai.base.errors import UserError
from miniai.base.seeds import randn
from miniai.diffusion import multistep, samplers
from miniai.diffusion.denoiser import clipped
from miniai.diffusion.ladder import (
    Ladder,
    LadderRule,
    SigmaSpacing,
    StepList,
    ladder_at,
    ladder_through,
    make_ladder,
)
from miniai.diffusion.samplers import Callback, Denoiser, Noise, no_callback, no_noise
from miniai.diffusion.schedule import NoiseSchedule, PredictionType, ScheduleConfig

SamplerFunction = Callable[..., Float[Tensor, "b c h w"]]


@dataclass(frozen=True)
class Sampler:
    """One row of the table.

    - name, title: ours and A1111's.
    - function: `function(denoiser, x, sigmas, *, noise, callback)`.
    - diffusers_class: the scheduler that does the same.
    - rule: where its steps lie.
    - defaults: what `diffusers_class` assumes for keys that a scheduler file lacks, where ScheduleConfig's differ.
    - reads: which of the keys that only some Diffusers classes read, `diffusers_class` does.
    - takes: which of `clip`, `prediction_type` and `n_skipped` the function itself wants to know, see `sample`.
    - sigma_spacing: "karras" for names that end so.
    """

    name: str
    title: str
    function: SamplerFunction
    diffusers_class: str
    rule: LadderRule
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    sigma_spacing: SigmaSpacing = "timesteps"

    def ladder(
        self, schedule: NoiseSchedule, n_steps: int, timesteps: StepList | None = None, sigmas: StepList | None = None
    ) -> Ladder:
        """The sigmas and timesteps of `n_steps` steps, or of a list of either that is given in their place.

        Raises UserError when they do not fit the schedule, and for a list that the sampler cannot follow."""
        if timesteps is None and sigmas is None:
            return make_ladder(schedule, n_steps, self.rule, self.sigma_spacing)
        if timesteps is not None and sigmas is not None:
            raise UserError("give either timesteps or sigmas, not both")
        follows = self.sigma_spacing == "timesteps" or (self.name == "euler" and sigmas is not None)
        if self.name == "pndm" or not follows:
            reason = "takes steps of one size" if self.name == "pndm" else "places its steps itself"
            raise UserError(f"{self.title} {reason}: leave timesteps and sigmas out, or choose another sampler")
        if timesteps is not None:
            return ladder_at(schedule, timesteps, self.rule)
        assert sigmas is not None
        return ladder_through(schedule, sigmas, self.rule)


_BETWEEN = LadderRule()
_BETWEEN_ROUNDED = LadderRule(round_karras=True)
_WHOLE = LadderRule(whole_timesteps=True, unit_start=True)
_EXACT = replace(_WHOLE, exact_zero_snr=True)
_TO_FIRST = replace(_EXACT, ends_in_first_timestep=True)
_DPM = replace(_WHOLE, one_more=True)
_LINSPACE = {"timestep_spacing": "linspace"}
_LINSPACE_SD = {**_LINSPACE, "beta_start": 0.00085, "beta_end": 0.012}
_CLIPPED = {"clip_sample": True}
_LAST_ALPHA = {"set_alpha_to_one": False}
_CLIP = ("clip_sample", "clip_sample_range")
_FINAL = ("final_sigmas_type",)
_DPM_SOLVER: Any = ("DPMSolverMultistepScheduler", _DPM, _LINSPACE, _FINAL, ("n_skipped",))

SAMPLERS: dict[str, Sampler] = {
    row.name: row
    for row in (
        Sampler("euler", "Euler", samplers.euler, "EulerDiscreteScheduler", _BETWEEN, _LINSPACE, _FINAL),
        Sampler("euler_a", "Euler a", samplers.euler_a, "EulerAncestralDiscreteScheduler", _BETWEEN, _LINSPACE),
        Sampler("heun", "Heun", samplers.heun, "HeunDiscreteScheduler", _BETWEEN, _LINSPACE_SD, _CLIP),
        Sampler("lms", "LMS", multistep.lms, "LMSDiscreteScheduler", _BETWEEN, _LINSPACE),
        Sampler("dpm2", "DPM2", samplers.dpm2, "KDPM2DiscreteScheduler", _BETWEEN_ROUNDED, _LINSPACE_SD),
        Sampler("ddpm", "DDPM", samplers.ddpm, "DDPMScheduler", _EXACT, _CLIPPED, _CLIP, ("clip",)),
        Sampler("ddim", "DDIM", samplers.ddim, "DDIMScheduler", _TO_FIRST, _CLIPPED, _CLIP, ("clip",)),
        Sampler("pndm", "PLMS", multistep.pndm, "PNDMScheduler", _TO_FIRST, _LAST_ALPHA, (), ("prediction_type",)),
        Sampler("dpmpp_2m", "DPM++ 2M", multistep.dpmpp_2m, *_DPM_SOLVER),
        Sampler("dpmpp_2m_sde", "DPM++ 2M SDE", multistep.dpmpp_2m_sde, *_DPM_SOLVER),
    )
}


def find_sampler(name: str) -> Sampler:
    """The sampler of that name: ours ("euler_a"), A1111's ("Euler a") or Diffusers' class.

    "Karras" or "Exponential" at the end ("DPM++ 2M Karras", "dpmpp_2m_karras") sets the spacing of the sigmas.
    Raises UserError, listing the samplers there are, for any other name.
    """
    asked = _letters(name)
    for sampler in SAMPLERS.values():
        known = {_letters(word) for word in (sampler.name, sampler.title, sampler.diffusers_class)}
        for spacing in ("timesteps", "karras", "exponential"):
            suffix = "" if spacing == "timesteps" else spacing
            if asked in {word + suffix for word in known}:
                title = sampler.title + (f" {suffix.capitalize()}" if suffix else "")
                return replace(sampler, title=title, sigma_spacing=spacing)
    raise UserError(
        f"unknown sampler {name!r}: there are {', '.join(SAMPLERS)}, each also with _karras or _exponential"
    )


def n_calls(sampler: Sampler, n_steps: int) -> int:
    """How often `sampler` asks the denoiser in `n_steps` steps that end at sigma 0: what a picture costs.

    >>> n_calls(find_sampler("heun"), 20), n_calls(find_sampler("lms"), 20)
    (39, 20)
    """
    if sampler.name in ("heun", "dpm2"):
        return 2 * n_steps - 1
    return n_steps + 1 if sampler.name == "pndm" and n_steps > 1 else n_steps


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower().replace("++", "pp"))


# Options of scheduler files that are about samplers we do not have, or that change nothing here (the two of the last
# step do where that ends above 0: see `schedule_config`).
_IGNORED = {
    "skip_prk_steps",
    "variance_type",
    "solver_order",
    "algorithm_type",
    "solver_type",
    "lower_order_final",
    "euler_at_final",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "sample_max_value",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "time_shift_type",
    "predict_x0",
    "solver_p",
    "disable_corrector",
    "shift_terminal",
}
# Options that would change the picture: only these values are understood.
_ONLY: dict[str, Any] = {
    "thresholding": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "lambda_min_clipped": -float("inf"),
    "sigma_min": None,
    "sigma_max": None,
}
# Samplers whose Diffusers classes read `use_karras_sigmas`; others keep the key, which means nothing to them.
_SPACED = {"euler", "heun", "lms", "dpm2", "dpmpp_2m", "dpmpp_2m_sde"}
# Options that some Diffusers classes have and the others pass over in silence: `Sampler.reads` says which.
_READ_BY_SOME = {"clip_sample", "clip_sample_range", "final_sigmas_type"}


_SCHEDULE_KEYS = {field.name for field in fields(ScheduleConfig)}


def sampler_from_file(values: Mapping[str, Any], where: str) -> Sampler:
    """The sampler that a `scheduler_config.json` names: `_class_name`, and for DPM-Solver `algorithm_type`.

    PNDM is run without its Runge-Kutta steps (`skip_prk_steps`). Raises UserError, naming the
    file `where`, if there is no such sampler.
    """
    class_name = str(values.get("_class_name", "DDIMScheduler"))
    algorithm = values.get("algorithm_type", "dpmsolver++")
    order, form = values.get("solver_order", 2), values.get("solver_type", "midpoint")
    if class_name == "DPMSolverMultistepScheduler":
        names = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
        if algorithm not in names or order != 2 or form == "heun":
            raise UserError(f"{where}: {algorithm}, order {order}, {form}, is not there: choose a sampler by name")
        name = names[algorithm]
    else:
        name = class_name
    try:
        sampler = find_sampler(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if sampler.name in _SPACED:
        for spacing in ("karras", "exponential"):
            if values.get(f"use_{spacing}_sigmas"):
                return find_sampler(f"{sampler.name}_{spacing}")
    return sampler


def schedule_config(values: Mapping[str, Any], sampler: Sampler, where: str) -> ScheduleConfig:
    """The contents of a `scheduler_config.json` as `sampler` reads them.

    A key that the file lacks takes the default of the sampler's own Diffusers class, as `from_config` does there. Of a
    file for a class that is not in the table only the noise schedule is read.
    Raises UserError, naming the file `where`, for unknown keys and for options that would change the picture unseen.
    """
    for key, understood in _ONLY.items():
        if values.get(key, understood) not in (understood, None):
            raise UserError(f"{where}: {key} = {values[key]!r} is not supported: only {understood!r} is")
    ends_low = values.get("final_sigmas_type") == "sigma_min" and "final_sigmas_type" in sampler.reads
    for key, understood in (("euler_at_final", False), ("lower_order_final", True)):
        if ends_low and values.get(key, understood) not in (understood, None):
            raise UserError(f"{where}: {key} = {values[key]!r} is not supported where steps end above 0 (sigma_min)")
    if sampler.name == "ddpm" and values.get("variance_type") not in ("fixed_small", None):
        raise UserError(f"{where}: variance_type = {values['variance_type']!r} is not supported: only 'fixed_small' is")
    if values.get("_class_name", "") not in {"", *(row.diffusers_class for row in SAMPLERS.values())}:
        values = {key: value for key, value in values.items() if key in _SCHEDULE_KEYS}
    passed_over = _IGNORED | set(_ONLY) | (_READ_BY_SOME - set(sampler.reads))
    kept = {key: value for key, value in values.items() if key not in passed_over}
    return config_from_dict(ScheduleConfig, {**sampler.defaults, **kept}, where)


def fresh_noise(shape: Sequence[int], generators: Sequence[torch.Generator], like: Tensor | None = None) -> Noise:
    """The `noise` of a sampler: each call draws on from the generators, one per image; device and dtype as of `like`.

    Steps come in order, so the draw of step i follows from the seeds alone. The start noise is drawn before them, from
    the same generators.
    """

    def draw(i: int) -> Tensor:
        noise = randn(shape, generators)
        return noise if like is None else noise.to(like.device, like.dtype)

    return draw


class StopSampling(Exception):  # noqa: N818 - a callback's wish, not an error
    """Raised by a callback to end sampling after the step it was called for."""


def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    ladder: Ladder,
    start_noise: Float[Tensor, "b c h w"],
    *,
    x0: Float[Tensor, "b c h w"] | None = None,
    noise: Noise = no_noise,
    callback: Callback = no_callback,
    clip: float | None = None,
    prediction_type: PredictionType = "epsilon",
    **options: Any,
) -> Float[Tensor, "b c h w"]:
    """Run `sampler` down `ladder` from unit noise, and return clean latents.

    - x0: a picture to start from, at noise level ladder.sigmas[0] (see `Ladder.after`); without it, pure noise.
    - clip: bound for x0 at each step (`clip_sample_range` if `clip_sample`); None for latents.
    - prediction_type: the network's; it matters to PNDM alone.
    - callback: as samplers call it; it may raise StopSampling, and the estimate x0 of that step is returned.
    - options: the sampler's own keywords, such as eta or s_churn.
    """
    stopped: list[Tensor] = []

    def watch(i: int, x: Tensor, sigma: float, x0: Tensor) -> Tensor | None:
        try:
            return callback(i, x, sigma, x0)
        except StopSampling:
            stopped.append(x0)
            raise

    if clip is not None and "clip" not in sampler.takes:
        denoiser = clipped(denoiser, clip)
    known = {"clip": clip, "prediction_type": prediction_type, "n_skipped": ladder.n_skipped}
    options |= {name: value for name, value in known.items() if name in sampler.takes}
    x = start_noise * ladder.start_scale if x0 is None else x0 + start_noise * float(ladder.sigmas[0])
    try:
        x = sampler.function(denoiser, x, ladder.sigmas, noise=noise, callback=watch, **options)
    except StopSampling:
        return stopped[-1]
    return x * ladder.end_scale
