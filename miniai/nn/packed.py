"""Weights in the order that the CPU's kernels read them in, laid out once instead of at every call: for painting.

oneDNN, PyTorch's library of CPU kernels, works on blocks of channels. Given plain weights it makes the blocks anew at
each call, which for many channels on few pixels takes longer than the convolution itself.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

_DTYPES = (torch.float32, torch.bfloat16)


def can_pack() -> bool:
    """Whether this PyTorch has oneDNN's kernels for packed weights."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def pack_weights(model: Module) -> Module:
    """Pack the weights of every convolution and linear layer inside `model` that lies on the CPU, in place.

    The layers then compute what they did before, up to rounding; `state_dict`, `load_state_dict` and `to` work as
    before, in plain weights. Packed weights are buffers and do not learn, though gradients flow through to the inputs;
    `unpack_weights` undoes it. Where packing is not possible (another device, float16, a PyTorch without oneDNN), a
    layer stays as it is.
    """
    layer: Any
    for layer in model.modules() if can_pack() else ():
        if type(layer) in (nn.Conv2d, nn.Linear) and _packable(layer.weight):
            weight = layer.weight.detach()
            del layer.weight
            layer.__class__ = PackedConv2d if isinstance(layer, nn.Conv2d) else PackedLinear
            layer.register_buffer("weight", layer.packed(weight))
    return model


def unpack_weights(model: Module) -> Module:
    """Undo `pack_weights`, in place: the weights are parameters again."""
    layer: Any
    for layer in model.modules():
        if isinstance(layer, (PackedConv2d, PackedLinear)):
            weight = layer.plain_weight()
            del layer.weight
            plain: Any = nn.Conv2d if isinstance(layer, PackedConv2d) else nn.Linear
            layer.__class__ = plain
            layer.weight = nn.Parameter(weight)
    return model


def _packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _DTYPES


class _Packed(nn.Module):
    """A layer whose weight is packed, and looks plain from outside."""

    weight: Tensor

    def packed(self, weight: Tensor) -> Tensor:
        """`weight` as `forward` wants it."""
        return weight.to_mkldnn()

    def plain_weight(self) -> Tensor:
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def can_compute(self, x: Tensor) -> bool:
        """Packed kernels know no gradients, and no other dtype than their own."""
        same = self.weight.is_mkldnn and x.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        return same and not (torch.is_grad_enabled() and x.requires_grad)

    def _apply(self, fn: Any, recurse: bool = True) -> "_Packed":
        weight = fn(self.plain_weight())
        self.weight = torch.empty(0)  # the general way knows nothing of packed tensors
        super()._apply(fn, recurse)
        self.weight = self.packed(weight) if _packable(weight) else weight
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.plain_weight()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.weight = self.plain_weight().clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.weight = self.packed(self.weight) if _packable(self.weight) else self.weight

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_buffers": {**self._buffers, "weight": self.plain_weight()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight = self.packed(self.weight) if _packable(self.weight) else self.weight


class PackedConv2d(_Packed, nn.Conv2d):
    """`nn.Conv2d` for painting: made by `pack_weights`."""

    def packed(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, self.stride, self.dilation, self.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_compute(x):
            return self._conv_forward(x, self.plain_weight(), self.bias)
        x = x.contiguous(memory_format=torch.channels_last)  # where packed kernels are fastest
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )


class PackedLinear(_Packed, nn.Linear):
    """`nn.Linear` for painting: made by `pack_weights`."""

    def packed(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_compute(x):
            return nn.functional.linear(x, self.plain_weight(), self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
