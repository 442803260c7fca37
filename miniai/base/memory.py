"""Memory that was let go of, given back to the system."""

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Ask the C library for the pages that it keeps of what was freed; one without that ability keeps them.

    glibc keeps hundreds of megabytes after many large tensors, which counts before the next ones are made.
    """
    with suppress(OSError, TypeError, AttributeError):  # Windows, macOS, musl
        ctypes.CDLL(None).malloc_trim(0)
