"""Memory that was let go of, given back to the system."""

import ctypes
import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

# What an entry of /proc/self/pagemap says of a page (Linux, Documentation/admin-guide/mm/pagemap.rst).
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


def give_back_memory() -> None:
    """Ask the C library for the pages that it keeps of what was freed; one without that ability keeps them.

    glibc keeps hundreds of megabytes after many large tensors, which counts before the next ones are made.
    """
    with suppress(OSError, TypeError, AttributeError):  # Windows, macOS, musl
        ctypes.CDLL(None).malloc_trim(0)


def give_back_unwritten(module: nn.Module) -> None:
    """Let go of the pages of weights that are as a mapped file has them; when next used they are read from it again.

    Of what was written to since it was mapped, and of what never came from a file, nothing is let go. Nobody else may
    write to the weights meanwhile. Only Linux tells which pages are which; elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError), open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        madvise, advice = ctypes.CDLL(None).madvise, mmap.MADV_DONTNEED
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for weight in module.parameters():
            if weight.device.type != "cpu" or not weight.is_contiguous():
                continue
            first, n_pages = _whole_pages(weight)
            pagemap.seek(first * 8)
            entries = np.frombuffer(pagemap.read(n_pages * 8), np.uint64)
            if 0 < n_pages == len(entries) and not _written(entries).any():
                madvise(first * mmap.PAGESIZE, n_pages * mmap.PAGESIZE, advice)


def _written(entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of these pages a file does not have as they are.

    A page that the system is moving to another place counts as swapped, but still as the file's.
    """
    return (entries & (_PRESENT | _SWAPPED) != 0) & (entries & _OF_FILE == 0)


def _whole_pages(tensor: Tensor) -> tuple[int, int]:
    """The number of the first page that belongs to the tensor alone, and how many such pages there are."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE)
    return first, max(0, (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE - first)
