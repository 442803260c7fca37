"""Our samplers beside k-diffusion's, over whole loops with the same noise: how far apart the results are.

    python benchmarks/k_diffusion.py k-diffusion/k_diffusion/sampling.py

The file is the one of https://github.com/crowsonkb/k-diffusion, which is read alone: the package as a whole needs
torchvision, which not every machine has a build of. What that file imports for other purposes is left empty.
"""

import argparse
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.diffusion.denoiser import NetworkDenoiser
from miniai.diffusion.sampling import find_sampler, schedule_config
from miniai.diffusion.schedule import NoiseSchedule
from miniai.recipes.model_card import machine

FUNCTIONS = {
    "euler": "sample_euler",
    "euler_a": "sample_euler_ancestral",
    "heun": "sample_heun",
    "lms": "sample_lms",
    "dpm2": "sample_dpm_2",
    "dpmpp_2m": "sample_dpmpp_2m",
    "dpmpp_2m_sde": "sample_dpmpp_2m_sde",
}
STOCHASTIC = ("euler_a", "dpmpp_2m_sde")
SHAPE, N_STEPS = (2, 4, 8, 8), 25
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="k_diffusion/sampling.py")
    theirs = load(parser.parse_args(arguments).source)
    print(f"{machine()}, float32, {N_STEPS} steps; the relative error, the larger of epsilon and v models\n")
    print("| sampler | plain | Karras | exponential |\n| --- | ---: | ---: | ---: |")
    for name, function in FUNCTIONS.items():
        errors = [
            max(difference(f"{name}{spacing}", kind, getattr(theirs, function)) for kind in ("epsilon", "v_prediction"))
            for spacing in ("", "_karras", "_exponential")
        ]
        print(f"| {name} | {' | '.join(f'{error:.1e}' for error in errors)} |", flush=True)


def load(source: Path) -> types.ModuleType:
    """k-diffusion's samplers, without the rest of that package."""

    def module(name: str, **content: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)

    module("k_diffusion", __path__=[str(source.parent)])
    module("k_diffusion.utils", append_dims=lambda x, n: x.reshape(*x.shape, *[1] * (n - x.ndim)))
    vars(sys.modules["k_diffusion"])["utils"] = sys.modules["k_diffusion.utils"]
    module("torchdiffeq", odeint=None)
    module("torchsde")
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", source)
    assert spec is not None
    assert spec.loader is not None
    samplers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(samplers)
    return samplers


def network(x: Tensor, timestep: Tensor, condition: None) -> Tensor:
    """Nonlinear, mixing channels and pixels, and quick to notice another timestep."""
    t = timestep.to(x.dtype).reshape(-1, 1, 1, 1)
    mixed = x + 0.3 * x.roll(1, dims=1) - 0.2 * x.roll(1, dims=3)
    return torch.tanh(mixed * (0.8 + 0.3 * torch.cos(t / 20))) + 0.1 * torch.sin(t / 7)


def difference(name: str, prediction_type: str, theirs: Callable[..., Tensor]) -> float:
    """Root mean square of ours minus theirs over that of theirs."""
    sampler = find_sampler(name)
    schedule = NoiseSchedule(schedule_config({**SCHEDULE, "prediction_type": prediction_type}, sampler, "SCHEDULE"))
    ladder = sampler.ladder(schedule, N_STEPS)
    denoiser = NetworkDenoiser(network, schedule, ladder)
    start = torch.randn(SHAPE, generator=make_generator(0)) * ladder.start_scale
    ours_draws, their_draws = make_generator(1), make_generator(1)
    noisy = {"noise_sampler": lambda *_: torch.randn(SHAPE, generator=their_draws)}
    options: dict[str, Any] = noisy if sampler.name in STOCHASTIC else {}
    expected = theirs(
        lambda x, sigma: denoiser(x, sigma), start.clone(), ladder.sigmas.float(), disable=True, **options
    )
    made = sampler.function(denoiser, start, ladder.sigmas, noise=lambda i: torch.randn(SHAPE, generator=ours_draws))
    return float((made - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
