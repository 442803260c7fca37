"""Weights in the order that the CPU's kernels read them in, laid out once instead of at every call: for painting.

oneDNN, PyTorch's library of CPU kernels, works on blocks of channels. Given plain weights it makes the blocks anew at
each call, which for many channels on few pixels takes longer than the convolution itself. Its kernels also take what
follows a layer, a sum or an activation, into the same pass over memory; the result is then rounded once, not twice.

How a 1×1 convolution wants its blocks depends on the size of the picture, which is not known when weights are packed.
Packed as a convolution it may lay them out again at each call, and slowly: without AMX that made it up to 12 times as
slow as a plain one (benchmarks/results/packed_layers.md). So it is packed as the linear layer that it is.
"""

from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from miniai.nn.doubling import convolve_doubled, packed_for_doubling, pays, repeated
from miniai.nn.gated import GatedLinear

Module = TypeVar("Module", bound=nn.Module)

_DTYPES = (torch.float32, torch.bfloat16)


@lru_cache
def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this PyTorch has oneDNN's kernels for packed weights, and this CPU the instructions that they need:
    those for bfloat16 need AVX-512 or its like."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.ones(1, 1, dtype=dtype))
    except RuntimeError:
        return False
    return True


def keeps_size(layer: nn.Conv2d) -> bool:
    """Whether it is of 3×3, goes one pixel at a time, and pads with one zero at each edge."""
    same = (layer.kernel_size, layer.padding, layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    return same and layer.groups == 1 and layer.padding_mode == "zeros"


def pack_weights(model: Module) -> Module:
    """Pack the weights of every convolution and linear layer inside `model` that lies on the CPU, in place.

    The layers then compute what they did before, up to rounding; `state_dict`, `load_state_dict` and `to` work as
    before, in plain weights. Packed weights are buffers and do not learn, though gradients flow through to the inputs;
    `unpack_weights` undoes it. Where packing is not possible (another device, float16, bfloat16 on a CPU without
    AVX-512, padding by other than a given number of zeros, a PyTorch without oneDNN), a layer stays as it is. Each
    plain weight is let go of before the next is packed: twice the memory is never needed. The same forms are used on
    every CPU that can: whether it has AMX changes nothing but oneDNN's choice of instructions.

    >>> model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 8, 1)).eval()
    >>> x = torch.randn(1, 16, 8, 8)
    >>> with torch.no_grad():
    ...     plain = model(x)
    ...     torch.allclose(pack_weights(model)(x), plain, atol=1e-5)
    True
    >>> is_packed(unpack_weights(model)), type(model[0]).__name__
    (False, 'Conv2d')
    """
    layer: Any
    for layer in model.modules():
        form = _packed_form(layer)
        if form is not None and _packable(layer.weight):
            weight = layer.weight.detach()
            del layer.weight
            layer.__class__ = form
            layer.take(weight)
            del weight
    return model


def is_packed(model: nn.Module) -> bool:
    """Whether any layer inside `model` is packed."""
    return any(isinstance(layer, _Packed) for layer in model.modules())


def unpack_weights(model: Module) -> Module:
    """Undo `pack_weights`, in place: the weights are parameters again."""
    layer: Any
    for layer in model.modules():
        if isinstance(layer, _Packed):
            weight = layer.plain_weight()
            layer.forget()
            layer.__class__ = _PLAIN[type(layer)]
            layer.weight = nn.Parameter(weight)
    return model


def read_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer or a convolution, packed or not, in its plain form."""
    weight = layer.plain_weight() if isinstance(layer, _Packed) else layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def write_weight(layer: nn.Module, weight: Tensor) -> None:
    """Give a linear layer or a convolution, packed or not, another weight, in place."""
    if isinstance(layer, _Packed):
        layer.take(weight)
    else:
        read_weight(layer).copy_(weight)


def plus(layer: nn.Module, x: Tensor, addend: Tensor) -> Tensor:
    """layer(x) + addend, which has the shape of the result: in one pass over memory if `layer` is packed."""
    if isinstance(layer, _SUMMING) and layer.can_compute(x) and layer.can_compute(addend):
        return layer.plus(x, addend)
    return layer(x) + addend


def _packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _DTYPES and can_pack(weight.dtype)


class _Packed(nn.Module):
    """A layer whose weight is packed, and looks plain from outside."""

    weight: Tensor

    def packed(self, weight: Tensor) -> Tensor:
        """`weight` as `forward` wants it."""
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    def take(self, weight: Tensor) -> None:
        """Compute with `weight` from now on."""
        self.forget()
        self.register_buffer("weight", self.packed(weight) if _packable(weight) else weight)

    def forget(self) -> None:
        """Let go of the weight, and of all that was made of it."""
        for name in ("weight", *self._non_persistent_buffers_set):
            self._buffers.pop(name, None)

    def plain_weight(self) -> Tensor:
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def can_compute(self, x: Tensor) -> bool:
        """Packed kernels know no gradients, and no other dtype than their own."""
        same = self.weight.is_mkldnn and x.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        return same and not (torch.is_grad_enabled() and x.requires_grad)

    def _apply(self, fn: Any, recurse: bool = True) -> "_Packed":
        weight = fn(self.plain_weight())
        self.forget()  # the general way knows nothing of packed tensors
        super()._apply(fn, recurse)
        self.take(weight)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.plain_weight()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        weight = self.plain_weight().clone()
        self.forget()
        self.register_buffer("weight", weight)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.take(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        others = {name: buffer for name, buffer in self._buffers.items() if buffer is None or not buffer.is_mkldnn}
        return {**vars(self), "_buffers": {**others, "weight": self.plain_weight()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.take(self.weight)


class PackedConv2d(_Packed, nn.Conv2d):
    """`nn.Conv2d` for painting: made by `pack_weights`.

    Where the channels that come out are no multiple of 64, which blocks are best depends on the map's size too, and a
    kernel that is given others lays them out anew at each call, up to 70 times as slow
    (benchmarks/results/lora_step.md): such a weight is packed again when maps of another size come.
    """

    _side: tuple[int, ...] | None = None  # height and width of the maps that the weight is packed for
    _n_paintings: int = 0  # that are under way (`miniai.nn.painting`)

    def packed(self, weight: Tensor) -> Tensor:
        size = None if self._side is None else [1, weight.shape[1] * self.groups, *self._side]
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, self.stride, self.dilation, self.groups, size
        )

    def _fit(self, side: tuple[int, ...]) -> None:
        if self.out_channels % 64 and side != self._side:
            self._side = side
            self._buffers["weight"] = self.packed(self.plain_weight())  # at once: other threads may be computing

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_compute(x):
            return self._conv_forward(x, self.plain_weight(), self.bias)
        self._fit(tuple(x.shape[2:]))
        x = x.contiguous(memory_format=torch.channels_last)  # where packed kernels are fastest
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        self._fit(tuple(x.shape[2:]))
        x, addend = (map_.contiguous(memory_format=torch.channels_last) for map_ in (x, addend))
        shape = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, addend, self.weight, self.bias, *shape, "add", 1.0, None, [], None
        )

    def can_cut(self, x: Tensor) -> bool:
        return self.can_compute(x) and keeps_size(self)

    def of_strip(self, x: Tensor, side: tuple[int, int], addend: Tensor | None = None) -> Tensor:
        """`forward`, or `plus`, of some rows of a map of that height and width, which come with the row above and the
        row below them: for 3×3 kernels that keep the map's size."""
        self._fit(side)
        x, shape = x.contiguous(memory_format=torch.channels_last), ((0, 1), (1, 1), (1, 1), 1)
        if addend is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *shape, "none", [], "")
        addend = addend.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, addend, self.weight, self.bias, *shape, "add", 1.0, None, [], None
        )

    def of_doubled(self, x: Tensor) -> Tensor:
        """`forward` of the map with each pixel repeated twice both ways: for 3×3 kernels that keep the map's size."""
        if not (self.can_compute(x) and pays(x, self.out_channels)):
            return self(repeated(x))
        merged = self._buffers.get("merged")
        if merged is None:
            merged = packed_for_doubling(self.plain_weight())
            self._buffers["merged"] = merged
            self._non_persistent_buffers_set.add("merged")
        return convolve_doubled(x, merged, self.bias)

    def forget_merged(self) -> None:
        """Let go of the kernel for repeated maps, which takes more memory than the weight, and for 1,280 channels 0.05
        seconds to make."""
        self._buffers.pop("merged", None)
        self._non_persistent_buffers_set.discard("merged")


class PackedPointwiseConv2d(_Packed, nn.Conv2d):
    """A 1×1 `nn.Conv2d` for painting: made by `pack_weights`, and computed as a linear layer at each pixel."""

    def packed(self, weight: Tensor) -> Tensor:
        return super().packed(weight.flatten(1))

    def plain_weight(self) -> Tensor:
        return super().plain_weight()[..., None, None] if self.weight.is_mkldnn else self.weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_compute(x):
            return self._conv_forward(x, self.plain_weight(), self.bias)
        pixels = torch.ops.mkldnn._linear_pointwise(_pixels(x), self.weight, self.bias, "none", [], "")
        return pixels.permute(0, 3, 1, 2)

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        pixels = torch.ops.mkldnn._linear_pointwise.binary(_pixels(x), _pixels(addend), self.weight, self.bias, "add")
        return pixels.permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> Tensor:
    """(b, c, h, w) as (b, h, w, c), which in channels-last memory is the same memory."""
    return x.permute(0, 2, 3, 1).contiguous()


class PackedLinear(_Packed, nn.Linear):
    """`nn.Linear` for painting: made by `pack_weights`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_compute(x):
            return nn.functional.linear(x, self.plain_weight(), self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, addend.contiguous(), self.weight, self.bias, "add")


class PackedGatedLinear(_Packed, GatedLinear):
    """`GatedLinear` for painting: its two halves are packed apart, since activation and product are parts of their
    kernels. `weight` is the half that gives the values."""

    gate: Tensor

    def take(self, weight: Tensor) -> None:
        if _packable(weight):
            value, gate = weight.chunk(2)
            super().take(value)
            self.register_buffer("gate", self.packed(gate), persistent=False)
        else:
            super().take(weight)

    def plain_weight(self) -> Tensor:
        return torch.cat([self.weight.to_dense(), self.gate.to_dense()]) if self.weight.is_mkldnn else self.weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_compute(x):
            return self.gated(nn.functional.linear(x, self.plain_weight(), self.bias))
        value_bias, gate_bias = (None, None) if self.bias is None else self.bias.chunk(2)
        gate = torch.ops.mkldnn._linear_pointwise(x, self.gate, gate_bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(x, gate, self.weight, value_bias, "mul")


_SUMMING: Any = (PackedConv2d, PackedPointwiseConv2d, PackedLinear)
_PLAIN: dict[Any, Any] = {
    PackedConv2d: nn.Conv2d,
    PackedPointwiseConv2d: nn.Conv2d,
    PackedLinear: nn.Linear,
    PackedGatedLinear: GatedLinear,
}


def _packed_form(layer: nn.Module) -> Any:
    """The packed class for a plain layer, or None."""
    if type(layer) is nn.Conv2d:
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None
        pointwise = layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
        return PackedPointwiseConv2d if pointwise else PackedConv2d
    return {nn.Linear: PackedLinear, GatedLinear: PackedGatedLinear}.get(type(layer))
