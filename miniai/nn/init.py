"""First weights, such that signals keep their size through a deep network: Glorot, Kaiming, LSUV; and the measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from miniai.base.device import widest_float
from miniai.base.errors import UserError
from miniai.base.modes import in_eval_mode
from miniai.nn.general_relu import GeneralReLU

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Distribution = Literal["normal", "uniform"]


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a linear layer's or convolution's weight (out, in / groups, *kernel)."""
    if weight.ndim < 2:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no fans: it needs two dimensions")
    area = weight[0, 0].numel()
    return weight.shape[1] * area, weight.shape[0] * area


def glorot_deviation(weight: Tensor, gain: int | float = 1.0) -> float:
    """gain * sqrt(2 / (fan_in + fan_out)): Glorot & Bengio 2010, equation 12."""
    return gain * math.sqrt(2 / sum(fans(weight)))


def kaiming_deviation(weight: Tensor, relu: GeneralReLU | None = None, fan: Literal["in", "out"] = "in") -> float:
    """gain / sqrt(fan), where `relu` comes before the layer (None: nothing does); He et al. 2015, equations 10 and 15.

    fan "in" keeps the size of what goes forward, "out" that of gradients on their way back.
    """
    gain = 1.0 if relu is None else relu_gain(relu)
    return gain / math.sqrt(fans(weight)[0 if fan == "in" else 1])


def relu_gain(relu: GeneralReLU) -> float:
    """1 / sqrt(E[relu(z)^2]) for unit normal z: sqrt(2) for ReLU, sqrt(2 / (1 + leak^2)) for leaky ReLU.

    The next layer's outputs have variance fan_in * Var(w) * E[relu(z)^2], as its weights have mean 0; that is 1 if
    Var(w) is gain^2 / fan_in, also where the rectifier's mean is not 0. Exact, by moments of the cut normal.

    >>> round(relu_gain(GeneralReLU()) ** 2, 9), round(relu_gain(GeneralReLU(leak=1.0)), 9)
    (2.0, 1.0)
    """
    shift, top = relu.subtract, math.inf if relu.cap is None else relu.cap + relu.subtract
    below = _square_between(-math.inf, 0.0, relu.leak, shift)
    above = _square_between(0.0, top, 1.0, shift)
    capped = 0.0 if relu.cap is None else relu.cap**2 * (1 - _cdf(top))
    return 1 / math.sqrt(below + above + capped)


def _square_between(low: float, high: float, slope: float, shift: float) -> float:
    """The integral of (slope z - shift)^2 times the normal density from low to high."""
    mass = _cdf(high) - _cdf(low)
    first = _density(low) - _density(high)
    second = mass + _times_density(low) - _times_density(high)
    return slope**2 * second - 2 * slope * shift * first + shift**2 * mass


def _cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _times_density(z: float) -> float:
    return 0.0 if math.isinf(z) else z * _density(z)


@torch.no_grad()
def fill(weight: Tensor, deviation: float, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Draw `weight` anew, in place, with mean 0 and that deviation; drawn on the generator's device in float32."""
    if distribution == "normal":
        values = torch.randn(weight.shape, generator=generator, device=generator.device) * deviation
    else:
        bound = math.sqrt(3) * deviation
        values = torch.rand(weight.shape, generator=generator, device=generator.device) * 2 * bound - bound
    return weight.copy_(values)


def init_glorot(
    model: nn.Module, generator: torch.Generator, *, gain: int | float = 1.0, distribution: Distribution = "uniform"
) -> nn.Module:
    """Give every linear layer and convolution of `model` Glorot's weights, and biases of 0.

    >>> model = nn.Sequential(nn.Linear(100, 200), nn.Tanh(), nn.Linear(200, 10))
    >>> model = init_glorot(model, torch.Generator().manual_seed(0))
    >>> promised = glorot_deviation(model[0].weight)
    >>> bool(abs(model[0].weight.std() / promised - 1) < 0.02), model[0].bias.abs().max().item()
    (True, 0.0)
    """
    return _init(model, lambda weight: glorot_deviation(weight, gain), distribution, generator)


def init_kaiming(
    model: nn.Module,
    generator: torch.Generator,
    *,
    relu: GeneralReLU | None = None,
    fan: Literal["in", "out"] = "in",
    distribution: Distribution = "normal",
) -> nn.Module:
    """Give every linear layer and convolution of `model` Kaiming's weights for `relu` (None: ReLU), and biases of 0.

    Every layer is taken as one that follows `relu`; unit inputs to the first may be followed by another size.

    >>> relu = GeneralReLU(leak=0.1, subtract=0.4)
    >>> model = nn.Sequential(*[part for _ in range(5) for part in (nn.Linear(256, 256), relu)])
    >>> model = init_kaiming(model, torch.Generator().manual_seed(0), relu=relu)
    >>> last = measure(model, torch.randn(64, 256), choose=lambda module: isinstance(module, nn.Linear))[-1]
    >>> 0.5 < last.deviation < 2
    True
    """
    relu = GeneralReLU() if relu is None else relu
    return _init(model, lambda weight: kaiming_deviation(weight, relu, fan), distribution, generator)


def _init(
    model: nn.Module, deviation: Callable[[Tensor], float], distribution: Distribution, generator: torch.Generator
) -> nn.Module:
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            fill(module.weight, deviation(module.weight), distribution, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


@dataclass(frozen=True)
class Measured:
    """Mean and deviation of all the numbers that module `name` gave out for one batch."""

    name: str
    mean: float
    deviation: float


def measure(
    model: nn.Module, *inputs: Any, choose: Callable[[nn.Module], bool] = lambda module: not any(module.children())
) -> list[Measured]:
    """What the modules that `choose` picks give out when `model(*inputs)` is called, in the order of the calls; those
    that give out something else than a tensor (LSTM) are left out.

    The model runs in eval mode, without gradients, and is afterwards as it was.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    >>> [one.name for one in measure(model, torch.randn(16, 8))]
    ['0', '1']
    """
    found: list[Measured] = []

    def note(module: nn.Module, given: Any, out: Any, name: str) -> None:
        if isinstance(out, Tensor):
            values = out.to(widest_float(out.device))
            found.append(Measured(name, values.mean().item(), values.std().item()))

    chosen = [(name, module) for name, module in model.named_modules() if choose(module)]
    handles = [module.register_forward_hook(partial(note, name=name)) for name, module in chosen]
    try:
        with in_eval_mode(model), torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def lsuv(
    model: nn.Module,
    *inputs: Any,
    pairs: Sequence[tuple[nn.Module, nn.Module]] | None = None,
    tolerance: float = 1e-3,
    max_rounds: int = 50,
) -> list[Measured]:
    """Layer-sequential unit variance: Mishkin & Matas 2016, algorithm 1, with the means brought to 0 as well.

    One layer after another has its weight divided by the measured deviation and its bias moved by
    the measured mean, until they are within `tolerance` of 1 and 0 for the batch `inputs`.

    - pairs: (layer to change, module to measure): the module is often the rectifier behind the layer, and then one
      that can give out a mean of 0; in the order in which the model calls them. None: every linear layer and
      convolution that `model(*inputs)` calls, measured itself.

    A layer without bias has its deviation brought to 1 only; of one that is called several times, the first call
    counts. Returns what was reached. Raises UserError if a layer does not settle, or not for good, and ValueError if
    its output does not vary at all.

    >>> model = nn.Sequential(nn.Linear(8, 32), GeneralReLU(0.1, 0.4), nn.Linear(32, 4))
    >>> reached = lsuv(model, torch.randn(64, 8), pairs=[(model[0], model[1]), (model[2], model[2])])
    >>> all(abs(one.mean) < 1e-3 and abs(one.deviation - 1) < 1e-3 for one in reached)
    True
    """
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    if pairs is None:
        called = measure(model, *inputs, choose=lambda module: isinstance(module, WEIGHTED))
        pairs = [(layer, layer) for layer in dict.fromkeys(modules[one.name] for one in called)]
    for layer, watched in pairs:
        if not isinstance(layer, WEIGHTED) or watched not in names:
            raise ValueError(f"LSUV changes linear layers and convolutions of the model, not {type(layer).__name__}")
        _settle(model, inputs, layer, watched, names[watched], tolerance, max_rounds)
    wanted = [watched for _, watched in pairs]
    reached = measure(model, *inputs, choose=lambda module: any(module is one for one in wanted))
    first = {one.name: one for one in reversed(reached)}
    for layer, watched in pairs:
        one = first[names[watched]]
        if (layer.bias is not None and abs(one.mean) > tolerance) or abs(one.deviation - 1) > tolerance:
            raise UserError(f"LSUV: a later pair changes {one.name}: give pairs in the order of the model's calls")
    return reached


@torch.no_grad()
def _settle(
    model: nn.Module,
    inputs: tuple[Any, ...],
    layer: Any,
    watched: nn.Module,
    name: str,
    tolerance: float,
    max_rounds: int,
) -> None:
    # Half the tolerance: the next measure may round otherwise.
    close = tolerance / 2
    for _ in range(max_rounds):
        found = measure(model, *inputs, choose=lambda module: module is watched)
        if not found or not found[0].deviation > 1e-12:
            raise ValueError(f"the output of {name} does not vary over the batch, or was never asked for")
        mean, deviation = found[0].mean, found[0].deviation
        mean_is_right = layer.bias is None or abs(mean) < close
        if mean_is_right and abs(deviation - 1) < close:
            return
        layer.weight.div_(deviation)
        if layer.bias is not None:
            layer.bias.sub_(mean).div_(deviation)
    raise UserError(
        f"LSUV: the output of {name} stays at mean {mean:.3g}, deviation {deviation:.3g} after {max_rounds} rounds: "
        "measure a module that can reach 0 and 1, such as a GeneralReLU with subtract, or the layer itself"
    )
