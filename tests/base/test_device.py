"""Devices and precisions by name."""

import pytest
import torch

from miniai.base import device as devices
from miniai.base.device import autocast, pick_device, pick_dtype, processor_name, training_dtype
from miniai.base.errors import UserError


def test_auto_picks_the_accelerator_if_there_is_one() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto").type == best


def test_a_named_device_is_that_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:3", "meta", ""])
def test_a_device_that_is_not_there_is_a_user_error(name: str) -> None:
    with pytest.raises(UserError, match="device") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_auto_precision_is_half_on_cuda_only() -> None:
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    assert pick_dtype("auto", torch.device("cuda")) is torch.float16
    assert pick_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_an_unknown_precision_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="float32, float16, bfloat16"):
        pick_dtype("fp8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("amx", "avx512", "name", "expected"),
    [
        (True, True, "Intel(R) Xeon(R) Processor", torch.bfloat16),
        (False, True, "AMD EPYC 9B14", torch.bfloat16),
        (False, True, "Intel(R) Xeon(R) Processor", torch.float32),  # there it runs at half of float32's rate
        (False, False, "AMD EPYC 7B13", torch.float32),
        (False, False, "Apple M3", torch.float32),
    ],
)
def test_training_is_in_bfloat16_where_its_products_are_fast(
    amx: bool, avx512: bool, name: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(devices, "processor_name", lambda: name)
    assert training_dtype(torch.device("cpu")) is expected
    with autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is expected
    assert training_dtype(torch.device("cuda")) is torch.bfloat16


def test_the_processor_has_a_name() -> None:
    assert processor_name().strip()
