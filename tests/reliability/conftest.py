"""Configuration of the tests of reliability."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short path: the sockets of worker processes lie below it, and theirs may have 107 characters."""
    with TemporaryDirectory(prefix="sac-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
