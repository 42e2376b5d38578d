"""Configuration shared by all tests."""

import faulthandler
import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

# One thread: the numbers that tests compare then do not depend on the machine, and small tensors are faster.
os.environ["OMP_NUM_THREADS"] = "1"

LIMIT = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of reliability says how long it may take."""
    silent = [
        item.nodeid for item in items if "reliability" in item.path.parts and not item.get_closest_marker("limit")
    ]
    if silent:
        raise pytest.UsageError(f"without a time limit: {', '.join(silent)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that is over its limit; what does not even notice that ends the whole session a minute later."""
    marker = item.get_closest_marker("limit")
    seconds = marker.args[0] if marker else LIMIT

    def over(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"took longer than its limit of {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(seconds + 60, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
