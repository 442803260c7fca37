"""Which device computes, and in which precision."""

import functools
import os
import platform
from pathlib import Path

import torch

from miniai.base.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1", "mps"), or with "auto" the best there is: cuda > mps > cpu.

    Of several processes that a launcher started, each gets the GPU of its own number (LOCAL_RANK), unless one is named.
    Raises UserError for a name that torch does not know or a device that this machine does not have.
    """
    own = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    if name == "cuda":
        name = own
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device(own)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}': choose auto, cpu, cuda, cuda:N or mps") from error
    n_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= n_devices:
        raise UserError(f"device '{name}' is not available on this machine: use auto or cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name` (float32, float16, bfloat16); "auto" is float16 on cuda and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}': choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def widest_float(device: torch.device) -> torch.dtype:
    """float64, but float32 where the device, as Apple's GPUs, has none.

    >>> widest_float(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


def training_dtype(device: torch.device) -> torch.dtype:
    """The precision in which matrix products run fastest on `device`: bfloat16 on accelerators, on CPUs with AMX and on
    AMD's with AVX-512's bfloat16; float32 on all other CPUs.

    Intel's CPUs with that part of AVX-512 but without AMX run it slower than float32, and CPUs with neither convert
    every operand; `python benchmarks/unet_step.py` measures which is the faster.
    """
    if device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    fast = torch.cpu._is_avx512_bf16_supported() and "AMD" in processor_name()
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def has_amx() -> bool:
    """Whether this CPU has units for products of matrices in bfloat16, as far as PyTorch can tell."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported())


@functools.cache
def has_avx512() -> bool:
    """Whether this CPU has vectors of 16 numbers in float32, as far as PyTorch can tell."""
    supported = getattr(torch.cpu, "_is_avx512_supported", None)
    return supported is not None and bool(supported())


def autocast(device: torch.device) -> torch.autocast:
    """A context in which products and convolutions run in `training_dtype`; it does nothing where that is float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training_dtype(device) == torch.bfloat16)


@functools.cache
def processor_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
