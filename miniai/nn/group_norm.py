"""Group normalisation whose backward pass is fast where PyTorch's is slow: bfloat16 in channels-last memory on a CPU.

1.8 to 3.3 times as fast as PyTorch's own (benchmarks/results/group_norm.md); elsewhere, and where the compiler writes
the backward pass, PyTorch's is used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GroupNorm(nn.GroupNorm):
    """Wu and He 2018, equations 1 to 6: each group of channels of each image to mean 0, deviation 1, then per-channel
    scale and shift.

    >>> x = GroupNorm(2, 8)(torch.randn(3, 8, 4, 4) * 5 + 2)
    >>> groups = x.unflatten(1, (2, 4))[1, 0]
    >>> bool(groups.mean().abs() < 1e-5), round(groups.std(unbiased=False).item(), 3)
    (True, 1.0)
    """

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.ndim == 4 and torch.is_grad_enabled()
        slow = slow and not torch.compiler.is_compiling()
        # By its strides: of a single picture that of the batch may be any, which the kernel below does not bear.
        if slow and x.stride() == (x[0].numel(), 1, x.shape[3] * x.shape[1], x.shape[1]):
            return _ChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _ChannelsLast(torch.autograd.Function):
    """PyTorch's forward pass; a backward pass of five passes over memory, the sums in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, c, height, width = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, height * width, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With y = w (x - mean) rstd + b and n numbers in a group, dx = w rstd dy + B x + C, where
        B = rstd³ (mean Σ w dy - Σ w dy x) / n and C = -B mean - rstd Σ w dy / n, the sums over the group."""
        x, weight, mean, rstd = ctx.saved_tensors
        n, c, height, width = x.shape
        groups = mean.shape[1]
        rows, grad_rows = (t.permute(0, 2, 3, 1).reshape(n, height * width, c) for t in (x, grad))
        mean, rstd, w = mean.float(), rstd.float(), weight.float()
        sum_grad = grad_rows.sum(1).float()  # (n, c)
        sum_grad_x = (rows * grad_rows).sum(1).float()

        group_grad = (sum_grad * w).view(n, groups, -1).sum(2)  # (n, groups)
        group_grad_x = (sum_grad_x * w).view(n, groups, -1).sum(2)
        n_in_group = height * width * (c // groups)
        slope = (group_grad * mean - group_grad_x) * rstd**3 / n_in_group
        offset = -slope * mean - group_grad * rstd / n_in_group

        def per_channel(values: Tensor) -> Tensor:
            return values.repeat_interleave(c // groups, dim=1)

        channel_rstd = per_channel(rstd)
        grad_weight = ((sum_grad_x - per_channel(mean) * sum_grad) * channel_rstd).sum(0)
        terms = (per_channel(offset), w * channel_rstd, per_channel(slope))
        c0, c1, c2 = (term.to(x.dtype)[:, None] for term in terms)
        grad_x = torch.addcmul(c0, c1, grad_rows).addcmul_(c2, rows)
        grad_x = grad_x.view(n, height, width, c).permute(0, 3, 1, 2)
        return grad_x, grad_weight.to(weight.dtype), sum_grad.sum(0).to(weight.dtype), None, None
