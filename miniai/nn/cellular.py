"""Neural cellular automata: one small rule for every cell, which together grow a texture and heal it.

Mordvintsev et al. 2020 ("Growing neural cellular automata"); for textures, Niklasson et al. 2021 ("Self-organising
textures"): fixed filters, a wrapped-around world, and cells that act now and then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from miniai.base.configs import config_from_dict

# What a cell sees of its neighbours: Sobel's two slopes and a Laplacian, so scaled that a slope of 1 is seen as 1 and
# none makes small worlds explode; itself, it sees as it is.
_EIGHTHS = (
    ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    ((1, 2, 1), (2, -12, 2), (1, 2, 1)),
)
FILTERS = tuple(tuple(tuple(value / 8 for value in row) for row in rows) for rows in _EIGHTHS)


@dataclass(frozen=True)
class CellularConfig:
    """`channels` of a cell, of which the first `n_colours` are seen; `hidden` units of the rule; `share` of the cells
    that act in a step."""

    channels: int = 12
    hidden: int = 96
    n_colours: int = 3
    share: int | float = 0.5

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "CellularConfig":
        """Raises UserError, naming `where`, for an unknown field."""
        return config_from_dict(cls, dict(values), where)


class CellularAutomaton(nn.Module):
    """A world of cells (b, channels, h, w), of any size, whose edges meet; each step adds what the rule says.

    The rule's last layer begins at zero: an untrained world stays as it is.

    >>> automaton = CellularAutomaton(CellularConfig(channels=4, hidden=8))
    >>> world = automaton.empty(1, 8)
    >>> torch.equal(automaton(world, 3, torch.Generator()), world)
    True
    """

    def __init__(self, config: CellularConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("filters", torch.tensor(FILTERS)[:, None], persistent=False)
        self.hidden = nn.Conv2d(config.channels * (1 + len(FILTERS)), config.hidden, 1)
        self.out = nn.Conv2d(config.hidden, config.channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def empty(self, n: int, side: int) -> Float[Tensor, "n c side side"]:
        """Worlds in which nothing is."""
        return torch.zeros(n, self.config.channels, side, side, device=self.out.weight.device)

    def perceive(self, world: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c4 h w"]:
        """Each channel as it is and through each filter; beyond an edge lies the opposite one."""
        b, c, h, w = world.shape
        around = F.pad(world.reshape(b * c, 1, h, w), (1, 1, 1, 1), mode="circular")
        seen = F.conv2d(around, self.filters).reshape(b, -1, h, w)  # type: ignore[arg-type]
        return torch.cat([world, seen], dim=1)

    def step(self, world: Float[Tensor, "b c h w"], acts: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """The world after one step of the cells that act."""
        return world + self.out(F.relu(self.hidden(self.perceive(world)))) * acts

    def forward(
        self, world: Float[Tensor, "b c h w"], n_steps: int, generator: torch.Generator
    ) -> Float[Tensor, "b c h w"]:
        """The world after `n_steps`; who acts is drawn from `generator`, on the CPU."""
        b, _, h, w = world.shape
        for _ in range(n_steps):
            acts = torch.rand(b, 1, h, w, generator=generator) < self.config.share
            world = self.step(world, acts.to(world.device))
        return world

    def picture(self, world: Float[Tensor, "b c h w"]) -> Float[Tensor, "b colours h w"]:
        """What is seen of the world, about [-1, 1]."""
        return world[:, : self.config.n_colours]


def normalise_gradients(module: nn.Module, eps: float = 1e-8) -> None:
    """Each weight's gradient divided by its own norm (Mordvintsev et al. 2020): through many steps of an automaton
    gradients grow and shrink by powers, and only their direction tells.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.grad = torch.tensor([[3e6, 4e6]])
    >>> normalise_gradients(layer)
    >>> layer.weight.grad
    tensor([[0.6000, 0.8000]])
    """
    for weight in module.parameters():
        if weight.grad is not None:
            weight.grad = weight.grad / (weight.grad.norm() + eps)


def wounded(
    world: Float[Tensor, "b c h w"], generator: torch.Generator, share: int | float = 0.4
) -> Float[Tensor, "b c h w"]:
    """The worlds with a disc in each emptied, `share` of the shorter side across, anywhere, over the edges too."""
    b, _, h, w = world.shape
    centre = torch.rand(b, 2, 1, 1, generator=generator).to(world.device)
    rows = (torch.arange(h, device=world.device)[:, None] / h - centre[:, 0] + 0.5) % 1 - 0.5
    columns = (torch.arange(w, device=world.device) / w - centre[:, 1] + 0.5) % 1 - 0.5
    inside = (rows * h) ** 2 + (columns * w) ** 2 < (share * min(h, w) / 2) ** 2
    return torch.where(inside[:, None], torch.zeros_like(world), world)
