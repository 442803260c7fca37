"""Direct discriminative optimization: a trained network learns from how its own pictures differ from real ones.

Zheng et al. 2025, "Direct Discriminative Optimization: Your Likelihood-Based Visual Generative Model is Secretly a GAN
Discriminator" (arXiv 2503.01103). Whoever tells real pictures from those that a frozen copy of the network painted, the
reference, does it best by the log of p_data / p_reference (Goodfellow et al. 2014). So let the network itself be that
critic, by how much likelier a picture is to it than to the reference, log p_network - log p_reference: when it tells
them apart as well as can be, it is p_data. No other network is needed, none plays against another, and painting takes
as long as before.

A diffusion network's log p is, but for a constant and the weights of noise levels, minus its squared error summed over
a picture's numbers (Kingma et al. 2021); both networks are asked at the same level, under the same noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Network = Callable[..., Tensor]
Batch = tuple[Float[Tensor, "b c h w"], Any]


@runtime_checkable
class PictureErrors(Protocol):
    """What `DiffusionObjective`, `EDMObjective` and their like have: each picture's mean squared error, weighted."""

    def errors(self, network: Network, batch: Batch, generator: torch.Generator) -> Float[Tensor, " b"]: ...


@dataclass(frozen=True)
class DiscriminativeObjective:
    """`objective(network, (real, painted), generator) -> loss`; each of the two is (pictures, condition), as long.

    - objective: what the network was trained by; its draws of noise level and noise are the same for real and painted
      pictures, and for both networks, so that nothing but what differs between them is left.
    - reference: the network that painted them, frozen; the one that learns begins as a copy of it.
    - beta: how much a unit of log likelihood counts. The smaller, the longer both kinds of pictures go on pulling as
      much as they did at first; larger, what is told apart already pulls less.
    - alpha: what painted pictures count beside real ones, which count 1. Below 1 more of the objective's own loss is
      left in it.

    The loss is -log s(r(real)) - alpha log s(-r(painted)), with s the logistic function and r beta times the log of the
    likelihoods' quotient, in the mean of the batch: (1 + alpha) ln 2 to begin with.

    >>> from miniai.diffusion.continuous_objectives import EDMObjective
    >>> zero = lambda x, c_noise, condition: 0 * x
    >>> pictures = (torch.ones(4, 1, 2, 2), None)
    >>> objective = DiscriminativeObjective(EDMObjective(), zero)
    >>> round(objective(zero, (pictures, pictures), torch.Generator()).item(), 4)
    1.3863
    """

    objective: PictureErrors
    reference: Network
    beta: int | float = 0.05
    alpha: int | float = 1.0

    def __call__(self, network: Network, batch: tuple[Batch, Batch], generator: torch.Generator) -> Float[Tensor, ""]:
        state = generator.get_state()
        real, painted = (self._log_quotient(network, kind, generator, state) for kind in batch)
        return -(F.logsigmoid(real) + self.alpha * F.logsigmoid(-painted)).mean()

    def _log_quotient(
        self, network: Network, batch: Batch, generator: torch.Generator, state: Tensor
    ) -> Float[Tensor, " b"]:
        """beta (log p_network - log p_reference) of each picture, from the noise that `state` gives."""
        with torch.no_grad():
            to_reference = self.objective.errors(self.reference, batch, generator.set_state(state))
        to_network = self.objective.errors(network, batch, generator.set_state(state))
        return self.beta * batch[0][0].numel() * (to_reference - to_network)
