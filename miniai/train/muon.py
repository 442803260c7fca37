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


def orthogonalised(matrices: Float[Tensor, "*k m n"], n_iterations: int = 4) -> Float[Tensor, "*k m n"]:
    """About U V^T of the singular value decomposition U S V^T: singular values near 1 (0.7 to 1.2) in place of S.

    Of one matrix, or of each of a stack of them. Singular values below a hundredth of the largest remain smaller.
    bfloat16 is precise enough, and taken where it is fast.

    >>> kernel = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, -0.5]])
    >>> orthogonalised(kernel).sign()
    tensor([[ 1.,  0.,  0.],
            [ 0.,  0., -1.]])
    """
    a, b, c = QUINTIC
    x = matrices.to(training_dtype(matrices.device))
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.dtype == torch.float32 and x.shape[-1] > 2 * x.shape[-2]:
        x = _polynomial(x @ x.mT, n_iterations) @ x
    else:
        for _ in range(n_iterations):
            square = x @ x.mT
            x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def _polynomial(square: Float[Tensor, "*k m m"], n_iterations: int) -> Float[Tensor, "*k m m"]:
    """What the iterations multiply X by, from X X^T alone: as all of it commutes, long rows enter only at both ends.

    That squares the singular values, which bfloat16 is too coarse for.
    """
    a, b, c = QUINTIC
    one = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    factor = one.expand_as(square)
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
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            advance = self._advance_kernels if group["orthogonal"] else self._advance_others
            advance(weights, [weight.grad for weight in weights], [self.state[weight] for weight in weights], group)

    @staticmethod
    def _advance_kernels(
        weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state["momentum"] = torch.zeros_like(weight)
        momenta = [state["momentum"] for state in states]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        nesterov = torch._foreach_mul(momenta, group["momentum"])
        torch._foreach_add_(nesterov, gradients)
        if group["keep_size"]:
            for weight in weights:
                weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-12))
        else:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for alike in _stacks(weights):
            matrices = torch.stack([nesterov[i].reshape(len(weights[i]), -1) for i in alike])
            steps = orthogonalised(matrices, group["n_iterations"])
            size = group["lr"] if group["keep_size"] else group["lr"] * 0.2 * max(matrices.shape[1:]) ** 0.5
            these = [weights[i] for i in alike]
            shaped = [step.view(weight.shape) for step, weight in zip(steps, these, strict=True)]
            torch._foreach_add_(these, shaped, alpha=-size)

    @staticmethod
    def _advance_others(
        weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["n_steps"] = torch.zeros(())
            # On the CPU, also after a resume that put it elsewhere: reading it must not wait for a GPU.
            state["n_steps"] = state["n_steps"].cpu() + 1
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - beta2)
        n_steps = [int(state["n_steps"]) for state in states]
        deviations = torch._foreach_div(squares, [1 - beta2**n for n in n_steps])
        torch._foreach_sqrt_(deviations)
        torch._foreach_add_(deviations, 1e-8)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        sizes = [-group["lr"] / (1 - beta1**n) for n in n_steps]
        torch._foreach_addcdiv_(weights, means, deviations, sizes)


def _stacks(weights: list[Tensor]) -> list[list[int]]:
    """The numbers of the kernels that go through the iterations together: on a GPU, where the product of one small
    matrix takes as long as that of many, all of one shape; elsewhere each alone."""
    return [[i] for i in range(len(weights))] if weights[0].device.type == "cpu" else by_shape(weights)


def by_shape(weights: list[Tensor]) -> list[list[int]]:
    """The numbers of `weights`, those together that are of one shape as matrices."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, weight in enumerate(weights):
        found.setdefault((len(weight), weight[0].numel()), []).append(i)
    return list(found.values())
