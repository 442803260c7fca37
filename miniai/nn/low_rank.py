"""Changes of a network's weights that are products of thin matrices (LoRA: Hu et al. 2021, arXiv 2106.09685)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from miniai.nn.gated import GatedLinear
from miniai.nn.packed import read_weight, write_weight


@dataclass(frozen=True)
class LowRank:
    """scale · up · down (Hu et al. 2021, section 4.1), for the weight of a linear layer or a convolution.

    - down: (r, in) or, of a convolution, (r, in, k, l).
    - up: (out, r) or (out, r, 1, 1).
    - mid: (r, r, k, l), a convolution between two of 1×1 (LyCORIS calls it Tucker decomposition), or None.
    - scale: what files give as alpha, over the rank r.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def fits_itself(self) -> bool:
        """Whether the parts can be multiplied."""
        if self.up.ndim < 2 or self.down.ndim < 2 or self.rank < 1 or (self.mid is not None and self.mid.ndim != 4):
            return False
        pointwise = self.up.shape[2:] in ((), (1, 1)) and (self.mid is None or self.down.shape[2:] in ((), (1, 1)))
        middle = (self.rank, self.rank) if self.mid is None else tuple(self.mid.shape[:2])
        return pointwise and middle == (self.up.shape[1], self.rank)

    @property
    def shape(self) -> torch.Size:
        """Of the change: (out, in), or (out, in, k, l)."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return torch.Size((len(self.up), self.down.shape[1], *kernel))

    def fits(self, weight: Tensor) -> bool:
        """Whether this changes a weight of that shape: a matrix is as good as a 1×1 convolution."""
        return self.fits_itself and _without_ones(self.shape) == _without_ones(weight.shape)

    def delta(self) -> Float[Tensor, "d_out d_in *kernel"]:
        """The change of the weight, in float32."""
        up, down = self.up.float().flatten(1), self.down.float()
        if self.mid is not None:
            return self.scale * torch.einsum("oq,qrkl,ri->oikl", up, self.mid.float(), down.flatten(1))
        return self.scale * torch.einsum("or,r...->o...", up, down)

    def to(self, device: torch.device) -> "LowRank":
        mid = None if self.mid is None else self.mid.to(device)
        return LowRank(self.down.to(device), self.up.to(device), self.scale, mid)


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if shape[2:] in ((), (1, 1)) else tuple(shape)


Change = Mapping[str, LowRank]  # layer of a network -> how its weight is changed


@dataclass
class Adapters:
    """The changes that one network has been given, by name, and how far each is in its weights.

    `apply` adds them to the weights themselves: painting then takes no longer than without. The weights as they were
    are kept beside, for as long as any change is in them, and come back bit for bit.
    """

    loaded: dict[str, Change] = field(default_factory=dict)
    strengths: dict[str, float] = field(default_factory=dict)  # of those that are active
    fused: dict[str, float] = field(default_factory=dict)  # of those that are to stay, whatever is active
    enabled: bool = True
    _applied: dict[str, float] = field(default_factory=dict)
    _originals: dict[str, Tensor] = field(default_factory=dict)

    def wanted(self, scale: float = 1.0) -> dict[str, float]:
        """How far each change is to be in the weights: the active ones `scale` times their strength."""
        active = {name: scale * strength for name, strength in self.strengths.items() if self.enabled}
        return {name: strength for name, strength in (active | self.fused).items() if strength != 0}

    @torch.no_grad()
    def apply(self, network: nn.Module, scale: float = 1.0) -> None:
        """Bring the weights of `network`, packed or plain, to what is wanted of them, in place."""
        wanted = self.wanted(scale)
        if wanted == self._applied:
            return
        layers = {name for change in (*wanted, *self._applied) for name in self.loaded[change]}
        # Should memory run out halfway, the next call finds that nothing is as it was, and does all of it again.
        self._applied = dict.fromkeys((*self._applied, *wanted), math.nan)
        for name in sorted(layers):
            layer = network.get_submodule(name)
            weight = read_weight(layer)
            if name not in self._originals:
                self._originals[name] = weight.clone()
            original = self._originals[name].to(weight)
            changes = [(by, self.loaded[one][name]) for one, by in wanted.items() if name in self.loaded[one]]
            if not changes:
                write_weight(layer, original)
                del self._originals[name]
                continue
            total = original.float()
            for by, change in changes:
                total = total + by * change.to(weight.device).delta().view(weight.shape)
            write_weight(layer, total.to(weight.dtype))
        self._applied = wanted

    @torch.no_grad()
    def remove(self, network: nn.Module, names: set[str]) -> None:
        """Forget changes; what is fused of them stays in the weights, for good. Where no other is active then, the
        first of the others is, as in Diffusers."""
        was_active = bool(names & set(self.strengths))
        self.strengths = {name: strength for name, strength in self.strengths.items() if name not in names}
        others = [name for name in self.loaded if name not in names]
        if was_active and not self.strengths and others:
            self.strengths = {others[0]: 1.0}
        self.apply(network)
        for name in [name for name in self.fused if name in names]:
            strength = self.fused.pop(name)
            if self._applied.pop(name, None) is None:
                continue  # fused with a strength of 0
            still = {layer for one in self._applied for layer in self.loaded[one]}
            for layer, change in self.loaded[name].items():
                original = self._originals.pop(layer)
                if layer in still:
                    delta = strength * change.to(original.device).delta().view(original.shape)
                    self._originals[layer] = (original.float() + delta).to(original.dtype)
        for name in names:
            self.loaded.pop(name, None)
        self.enabled = self.enabled or not self.loaded


def adapters_of(network: nn.Module) -> Adapters:
    """Those of a network, the same object each time: they belong to it, whichever pipelines share it."""
    return network.__dict__.setdefault("_adapters", Adapters())


class LowRankLayer(nn.Module):
    """A change that learns: what `layer`, a linear layer or a convolution, answers beside its own answer.

    `down` begins as a linear layer's weights do, `up` at zero: nothing is changed yet (Hu et al. 2021, section 4.1).
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: int | float) -> None:
        super().__init__()
        d_out, *shape = layer.weight.shape
        self.down = nn.Parameter(torch.empty(rank, *shape))
        self.up = nn.Parameter(torch.zeros(d_out, rank))
        self.scale = alpha / rank
        self.convolution = isinstance(layer, nn.Conv2d)
        self.stride: Any = getattr(layer, "stride", None)
        self.padding: Any = getattr(layer, "padding", None)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if not self.convolution:
            return self.scale * F.linear(F.linear(x, self.down), self.up)
        thin = F.conv2d(x, self.down, stride=self.stride, padding=self.padding)
        return self.scale * F.conv2d(thin, self.up[:, :, None, None])

    def change(self) -> LowRank:
        """As it stands now."""
        return LowRank(self.down.detach(), self.up.detach(), self.scale)


class LowRankLayers(nn.Module):
    """Changes that learn, of all layers of `network` whose names end in one of `endings`; the network's own weights
    stay as they are, and are no part of this module.

    >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> changes = LowRankLayers(network, ["0", "2"], rank=2)
    >>> sum(weight.numel() for weight in changes.parameters())
    36
    >>> with changes.attached(network):
    ...     network(torch.ones(3, 4)).sum().backward()
    >>> changes["2"].up.grad is not None, network[2].weight.grad is None
    (True, True)
    """

    def __init__(self, network: nn.Module, endings: Sequence[str], rank: int, alpha: int | float | None = None) -> None:
        super().__init__()
        network.requires_grad_(False)
        found = [
            (name, layer)
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and f".{name}".endswith(tuple(f".{one}" for one in endings))
        ]
        if not found:
            raise ValueError(f"no layer's name ends in {', '.join(endings)}")
        self.names = [name for name, _ in found]
        self.layers = nn.ModuleList(LowRankLayer(layer, rank, rank if alpha is None else alpha) for _, layer in found)

    def __getitem__(self, name: str) -> Any:
        return self.layers[self.names.index(name)]

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[nn.Module]:
        """`network` with the changes in its answers, inside the `with`; its layers must not be packed."""
        layers: list[Any] = [network.get_submodule(name) for name in self.names]
        try:
            for layer, change in zip(layers, self.layers, strict=True):
                layer.forward = partial(_with_change, layer, change)
            yield network
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)

    def changes(self) -> dict[str, LowRank]:
        """As they stand now, for `Adapters`, or for a file."""
        return {name: self[name].change() for name in self.names}


def _with_change(layer: Any, change: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, layer.weight, layer.bias) + change(x)
    both = F.linear(x, layer.weight, layer.bias) + change(x)
    return layer.gated(both) if isinstance(layer, GatedLinear) else both
