"""Devices and precisions by name."""

import pytest
import torch

from miniai.base.device import pick_device, pick_dtype
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
