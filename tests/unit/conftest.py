"""What each unit test leaves as it found it."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """`run_serve` sets the process's logs up, and this process runs other tests too."""
    root, named = logging.getLogger(), ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing")
    handlers, level, kept = root.handlers[:], root.level, {name: getattr(logging, name) for name in named}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, value in kept.items():
        setattr(logging, name, value)
