"""Processes for the tests that kill, interrupt or time a training."""

from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest
from forkserver import fork_server


@pytest.fixture(scope="session")
def processes() -> Iterator[ForkServerContext]:
    """Processes that start in milliseconds."""
    with fork_server() as context:
        yield context
