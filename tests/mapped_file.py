"""How much of a file that tensors are mapped from is in memory, as Linux tells it."""

from pathlib import Path

import torch


def resident(path: Path) -> int:
    """Bytes in memory of all mappings of the file, written to or not."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):  # a new mapping begins
            inside = line.endswith(f" {path.resolve()}")  # others of its name may be in memory, from other tests
        elif inside and first == "Rss:":
            total += 1024 * int(line.split()[1])
    return total


def read_all(path: Path, *tensors: torch.Tensor) -> None:
    """Touch every page of the tensors until they are in memory together: a system that moves pages to make room for
    large ones takes some of a file's away meanwhile."""
    n_bytes = sum(tensor.nbytes for tensor in tensors)
    for _ in range(1000):
        for tensor in tensors:
            tensor.detach().sum()
        if resident(path) > 0.95 * n_bytes:
            return
    raise AssertionError(f"{resident(path)} of {n_bytes} bytes of {path.name} are in memory after 1000 readings")
