"""Which device computes, and in which precision."""

import os

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
