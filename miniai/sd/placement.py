"""Where a pipeline's networks lie, in which dtype, and in which order of memory its device reads them fastest."""

from typing import Any, TypeVar

import torch
from torch import nn

from miniai.base.errors import UserError
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPTextModel
from miniai.nn.packed import pack_weights, unpack_weights
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.safety import SafetyFlags

Pipeline = TypeVar("Pipeline", bound="Placement")


def check_place(device: str | torch.device, dtype: object) -> None:
    """Raise UserError for a device that this machine or this PyTorch lacks, and for a dtype that networks lack."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"torch_dtype {dtype!r} is not possible: give torch.float32, torch.bfloat16 or torch.float16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error


def is_already(module: nn.Module, target: str | torch.device | torch.dtype) -> bool:
    """Whether `module.to(target)` would change nothing."""
    tensors = (*module.parameters(), *module.buffers())
    if isinstance(target, torch.dtype):
        return all(tensor.dtype == target for tensor in tensors if tensor.is_floating_point())
    place = torch.empty(0, device=target).device  # with its number: "cuda" is "cuda:0", or the current one
    return all(tensor.device == place for tensor in tensors)


class Placement:
    """What is the same for every pipeline of these networks."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    safety_flags: SafetyFlags | None

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def to(
        self: Pipeline,
        *device_or_dtype: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Pipeline:
        """Move the networks to a device, or convert them to a dtype, in place; `packed` for where they are then. What
        is there already stays as it is."""
        checker = [] if self.safety_flags is None else [self.safety_flags.checker]
        targets = [target for target in (*device_or_dtype, device, dtype) if target is not None]
        for module in (self.text_encoder, self.unet, self.vae, *checker):
            if not all(is_already(module, target) for target in targets):
                unpack_weights(module)
                for target in targets:
                    module.to(target)
        return self.packed()

    def packed(self: Pipeline) -> Pipeline:
        """Lay out weights in half precision as the device's kernels read them, in place: on a GPU the U-Net's channels
        last (the decoder is slower so); on the CPU, in bfloat16, U-Net and decoder packed, until `unpack_weights`."""
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            for module in (self.unet, self.vae.decoder):
                if module._compiled_call_impl is None:  # the compiler packs its own
                    pack_weights(module)
        elif self.device.type == "cuda" and self.dtype != torch.float32:
            self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def compiled(self: Pipeline) -> Pipeline:
        """Have torch.compile write the U-Net's kernels at its first call for each size (minutes; on a CPU with a C++
        compiler), in place; on a GPU as CUDA graphs. Packed weights are unpacked: the compiler packs its own."""
        unpack_weights(self.unet)
        on_gpu = self.device.type == "cuda"
        options: dict[str, Any] = {"mode": "reduce-overhead"} if on_gpu else {"options": {"freezing": True}}
        self.unet.compile(**options)
        return self
