"""43. From noise to latents: a denoiser made of the network, guidance made of a denoiser, and the sampler DPM++ 2M.

As in diffusion/denoiser.py and diffusion/multistep.py: x = x0 + sigma * eps, and a denoiser says which x0 is behind it.
"""

import math
from collections.abc import Callable
from itertools import pairwise

from miniai.scratch.ladder import Ladder
from miniai.scratch.tensor import Tensor

# network(x_t, timestep, contexts) -> its prediction for each context
Network = Callable[[Tensor, float, list[Tensor]], list[Tensor]]
Denoiser = Callable[[Tensor, float], Tensor]


def x0_coefficients(prediction_type: str, sigma: float) -> tuple[float, float]:
    """(c_skip, c_out) such that x0 = c_skip * x + c_out * prediction.

    "epsilon" is eps itself (Ho et al. 2020, equation 15); "v_prediction" is cos(angle) eps - sin(angle) x0 with
    angle = arctan(sigma) (Salimans and Ho 2022, appendix D); "sample" is x0.
    """
    cos = 1 / math.hypot(1, sigma)
    return {"epsilon": (1.0, -sigma), "v_prediction": (cos**2, -sigma * cos), "sample": (0.0, 1.0)}[prediction_type]


def guided(
    network: Network, ladder: Ladder, prediction_type: str, condition: Tensor, negative: Tensor, scale: float
) -> Denoiser:
    """Classifier-free guidance: x0 of the empty prompt, or whatever the picture should not be, and on from there
    through x0 of the prompt (Ho and Salimans 2022, equation 6, with 1 + w = `scale`).

    A scale of 1 asks for `condition` alone, and then only that is computed.
    """
    timestep = {sigma: float(t) for sigma, t in zip(ladder.sigmas, ladder.timesteps, strict=False)}
    contexts = [condition] if scale == 1 else [negative, condition]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        predictions = network(x * (1 / math.hypot(1, sigma)), timestep[sigma], contexts)
        c_skip, c_out = x0_coefficients(prediction_type, sigma)
        x0s = [x * c_skip + prediction * c_out for prediction in predictions]
        return x0s[0] if len(x0s) == 1 else x0s[0] + (x0s[1] - x0s[0]) * scale

    return denoise


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: list[float], callback: Callable[[int], None]) -> Tensor:
    """DPM-Solver++(2M), second order, one call per step: Lu et al. 2022 (DPM-Solver++), algorithm 2.

    `callback(i)` is called when step i is done.
    """
    x0_last: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoiser(x, sigma)
        aim = x0 if x0_last is None else extrapolate(x0, x0_last, sigmas, i)
        x = aim + (x - aim) * (sigma_next / sigma)
        x0_last = x0
        callback(i)
    return x


def extrapolate(x0: Tensor, x0_last: Tensor, sigmas: list[float], i: int) -> Tensor:
    """x0 carried half a step on along its change since the last step, in log(sigma): DPM-Solver++, algorithm 2, line 9.
    Plain x0 in the step to sigma 0, where no half step is left."""
    if sigmas[i + 1] == 0:
        return x0
    step, step_last = math.log(sigmas[i] / sigmas[i + 1]), math.log(sigmas[i - 1] / sigmas[i])
    return x0 + (x0 - x0_last) * (step / step_last / 2)
