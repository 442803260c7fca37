"""Muon: each kernel's momentum is made orthogonal before it is a step, so that all directions are learned alike."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.device import training_dtype

# Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", section on Newton-Schulz:
# s -> a s + b s^3 + c s^5, applied over and over, brings every singular value s of (0, 1] near 1, the small ones fast.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Float[Tensor, "m n"], n_iterations: int = 4) -> Float[Tensor, "m n"]:
    """About U V^T of the singular value decomposition U S V^T: singular values near 1 (0.7 to 1.2) in place of S.

    Singular values below a hundredth of the largest remain smaller. bfloat16 is precise enough, and taken where it is
    fast.

    >>> kernel = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, -0.5]])
    >>> orthogonalised(kernel).sign()
    tensor([[ 1.,  0.,  0.],
            [ 0.,  0., -1.]])
    """
    a, b, c = QUINTIC
    x = matrix.to(training_dtype(matrix.device))
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    if x.dtype == torch.float32 and x.shape[1] > 2 * x.shape[0]:
        x = _polynomial(x @ x.T, n_iterations) @ x
    else:
        for _ in range(n_iterations):
            square = x @ x.T
            x = a * x + (b * square + c * square @ square) @ x
    return (x.T if is_tall else x).to(matrix.dtype)


def _polynomial(square: Float[Tensor, "m m"], n_iterations: int) -> Float[Tensor, "m m"]:
    """What the iterations multiply X by, from X X^T alone: as all of it commutes, long rows enter only at both ends.

    That squares the singular values, which bfloat16 is too coarse for.
    """
    a, b, c = QUINTIC
    one = torch.eye(len(square), dtype=square.dtype, device=square.device)
    factor = one
    for _ in range(n_iterations):
        now = factor @ square @ factor
        factor = (a * one + b * now + c * now @ now) @ factor
    return factor


class Muon(torch.optim.Optimizer):
    """Kernels in groups with `orthogonal=True` by Muon, all other weights by AdamW (Loshchilov and Hutter 2019).

    - keep_size True: each kernel of (c_out, …) is meant to be followed by a norm, so that its size means nothing: it is
      kept at the size where each of its filters has norm 1 on average, and `lr` is the size of a step beside it.
    - keep_size False: any matrix; its step has 0.2 lr as the root of its mean square, about that of AdamW's steps, so
      that one `lr` serves both, and it decays by `weight_decay` as with AdamW: Liu et al. 2025, "Muon is scalable for
      LLM training", eq. 4; torch.optim.Muon calls it "match_rms_adamw".

    Momentum is Nesterov's.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4))
    >>> kernels, others = [model[0].weight], list(model[1].parameters())
    >>> optimizer = Muon([{"params": kernels, "orthogonal": True, "lr": 0.2}, {"params": others, "lr": 0.01}])
    >>> model(torch.randn(8, 1, 5, 5)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        defaults = {
            "lr": 0.1,
            "momentum": 0.6,
            "n_iterations": 4,
            "orthogonal": False,
            "keep_size": True,
            "betas": (0.9, 0.99),
            "weight_decay": 0.0,
        }
        super().__init__(groups, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a checkpoint; those from before `keep_size` kept it."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("keep_size", True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            advance = self._advance_kernel if group["orthogonal"] else self._advance_other
            for weight in group["params"]:
                if weight.grad is not None:
                    advance(weight, weight.grad, self.state[weight], group)

    @staticmethod
    def _advance_kernel(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"]
        momentum.mul_(group["momentum"]).add_(gradient)
        nesterov = gradient + group["momentum"] * momentum
        step = orthogonalised(nesterov.reshape(len(weight), -1), group["n_iterations"])
        if group["keep_size"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-12))
            size = group["lr"]
        else:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            size = group["lr"] * 0.2 * max(step.shape) ** 0.5
        weight.sub_(step.view(weight.shape), alpha=size)

    @staticmethod
    def _advance_other(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["n_steps"] = torch.zeros(())
        state["n_steps"] += 1
        n_steps, (beta1, beta2) = int(state["n_steps"]), group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient.square(), 1 - beta2)
        deviation = (state["square"] / (1 - beta2**n_steps)).sqrt_().add_(1e-8)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(state["mean"], deviation, value=-group["lr"] / (1 - beta1**n_steps))
