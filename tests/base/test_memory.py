"""Memory that was let go of."""

import mmap
from pathlib import Path

import pytest
import torch

from miniai.base.memory import give_back_memory


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
