"""How different do two pictures look? The distance of what a network sees in them (Zhang et al. 2018)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.modes import in_eval_mode
from miniai.train.hooks import Hook, Hooks

Pictures = Float[Tensor, "b c h w"]


def layer_outputs(network: nn.Module, images: Pictures, layers: Iterable[str]) -> dict[str, Tensor]:
    """What the named modules of `network` give out for `images`, with gradients if there are any.

    Names are those of `named_modules()`. Raises UserError, listing some, for a name that is not there.

    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    >>> {name: tuple(out.shape) for name, out in layer_outputs(network, torch.zeros(2, 1, 8, 8), ["1"]).items()}
    {'1': (2, 4, 6, 6)}
    """
    modules = dict(network.named_modules())
    wanted = list(layers)
    if missing := [name for name in wanted if name not in modules]:
        raise UserError(f"the network has no layer {missing[0]!r}; it has {', '.join(list(modules)[1:12])}, …")
    found: dict[str, Tensor] = {}
    in_place = any(getattr(module, "inplace", False) for module in modules.values())  # it may write over what it is fed

    def keep(hook: Hook, module: nn.Module, inputs: object, outputs: Tensor) -> None:
        found[hook.name] = outputs.clone() if in_place else outputs

    with Hooks([(name, modules[name]) for name in wanted], keep):
        network(images)
    return {name: found[name] for name in wanted}


def perceptual_distance(
    network: nn.Module,
    a: Pictures,
    b: Pictures,
    layers: Sequence[str],
    weights: Mapping[str, Float[Tensor, " channels"]] | None = None,
) -> Float[Tensor, " b"]:
    """For each pair: the squared distance of the unit feature vectors, mean over places, summed over layers.

    Zhang et al. 2018 (LPIPS), eq. 1. `weights` are their learned ones, one per channel of each layer; without them all
    are 1, and a layer's part lies within [0, 4]: 0 for equal pictures, 2 for features at right angles. The network runs
    in eval mode and is left in its own; differentiable, so that it can be a loss.

    >>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> a, b = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    >>> perceptual_distance(network, a, a, ["1", "2"]).tolist()
    [0.0, 0.0]
    >>> bool((perceptual_distance(network, a, b, ["1", "2"]) > 0).all())
    True
    """
    with in_eval_mode(network):
        both = layer_outputs(network, torch.cat([a, b]), layers)
    total = torch.zeros(len(a), device=a.device)
    for name, features in both.items():
        of_a, of_b = nn.functional.normalize(features.float(), dim=1, eps=1e-10).chunk(2)
        squares = (of_a - of_b).square()
        if weights is not None:
            squares = squares * weights[name].to(squares)[:, *[None] * (squares.ndim - 2)]
        total = total + squares.sum(dim=1).flatten(1).mean(dim=1)
    return total


@torch.no_grad()
def features_in_batches(
    network: nn.Module, images: Pictures, batch_size: int = 256, layer: str | None = None
) -> Float[Tensor, "n d"]:
    """One row of features for each picture, on the CPU: the network's output, or that of `layer`, in eval mode.

    A map of features (b, c, h, w) is averaged over its places. Batches are moved to the network's device.

    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))
    >>> features_in_batches(network, torch.rand(5, 1, 4, 4), batch_size=2, layer="1").shape
    torch.Size([5, 4])
    """
    device = next((weight.device for weight in network.parameters()), images.device)
    rows = []
    with in_eval_mode(network):
        for batch in images.split(batch_size):
            batch = batch.to(device)
            out = network(batch) if layer is None else layer_outputs(network, batch, [layer])[layer]
            rows.append(out.float().flatten(2).mean(dim=2).cpu() if out.ndim > 2 else out.float().cpu())
    return torch.cat(rows)
