"""Configuration shared by all tests."""

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# One thread: the numbers that tests compare then do not depend on the machine, and small tensors are faster.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Require a timeout of every test of reliability."""
    silent = [
        item.nodeid for item in items if "reliability" in item.path.parts and not item.get_closest_marker("timeout")
    ]
    if silent:
        raise pytest.UsageError(f"without a timeout: {', '.join(silent)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """End the process a minute after a timeout that a call into C ignores."""
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(seconds + 60, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def global_generators() -> Iterator[None]:
    """Put torch's global generator back after every test, so that none depends on the tests before it."""
    import torch  # after OMP_NUM_THREADS is set

    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder; for tests with sockets of worker processes below it one with a short path."""
    if not {"reliability", "test_orphans.py"}.intersection(request.path.parts):
        yield tmp_path
        return
    with TemporaryDirectory(prefix="sac-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
