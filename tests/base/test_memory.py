"""Memory that was let go of."""

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mapped_file import read_all, resident
from torch import nn

from miniai.base.memory import _written, give_back_memory, give_back_unwritten
from miniai.base.weights import give_weights, read_weights, without_memory, write_weights

SIDE = 2000  # a weight of 16 MB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is taken")
def test_what_was_freed_under_something_that_stays_goes_back_to_the_system() -> None:
    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    small = [torch.ones(25_000) for _ in range(400)]  # 40 MB, each too small for a mapping of its own
    small = small[-1:]
    before = taken()
    give_back_memory()
    give_back_memory()  # and once more does no harm
    assert taken() < before - 20e6
    assert float(small[0].sum()) == 25_000


def mapped_layer(path: Path) -> nn.Linear:
    """A layer whose weight counts 0, 1, 2, … and lies in a file."""
    write_weights(path, {"weight": torch.arange(SIDE * SIDE, dtype=torch.float32).view(SIDE, SIDE)})
    with without_memory():
        layer = nn.Linear(SIDE, SIDE, bias=False)
    give_weights(layer, read_weights(path), str(path), torch.float32, torch.device("cpu"))
    return layer


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="only Linux tells which pages are which")
def test_weights_as_their_file_has_them_are_let_go_of_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    layer = mapped_layer(path)
    expected = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
    for _ in range(3):
        read_all(path, layer.weight)
        assert torch.equal(layer.weight, expected)
        give_back_unwritten(layer)
        assert resident(path) < 1e6
    assert torch.equal(layer.weight, expected)


def test_a_page_that_is_being_moved_is_still_its_files() -> None:
    present, swapped, of_file, other = (1 << bit for bit in (63, 62, 61, 56))
    lies = {  # what /proc/self/pagemap says of a page, and whether the file does not have it as it is
        0: False,
        present | of_file: False,
        present | of_file | other: False,
        swapped | of_file: False,  # seen while Linux compacts memory
        present: True,
        present | other: True,
        swapped: True,
        swapped | 12345: True,
    }
    assert _written(np.array(list(lies), np.uint64)).tolist() == list(lies.values())


def add_in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight[5, 7] += 1


def add_behind_autograd(weight: torch.Tensor) -> None:
    weight.data.view(-1)[-1] = -1.0


def add_from_numpy(weight: torch.Tensor) -> None:
    weight.detach().numpy()[SIDE // 2] = 3.0


@pytest.mark.parametrize("change", [add_in_place, add_behind_autograd, add_from_numpy])
def test_weights_that_were_changed_stay_changed(tmp_path: Path, change: Callable[[torch.Tensor], None]) -> None:
    layer = mapped_layer(tmp_path / "a.safetensors")
    change(layer.weight)
    expected = layer.weight.detach().clone()
    give_back_unwritten(layer)
    assert torch.equal(layer.weight, expected)


def test_weights_that_come_from_no_file_stay() -> None:
    model = nn.ModuleList([nn.Linear(SIDE, SIDE), nn.Linear(3, 3), nn.ParameterList([torch.empty(0)])])
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    give_back_unwritten(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
