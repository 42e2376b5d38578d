"""Worker processes are forked from a server that has imported everything once, and end with the main process."""

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, process, resource_tracker, util
from typing import Any

from sac_torchrl.errors import ConfigError
from sac_torchrl.orphans import temporary_folder
from sac_torchrl.signals import STOPPING

# PyTorch and TorchRL take seconds to import, and forking the main process instead would copy its threads' locks in
# whatever state they are.
context = multiprocessing.get_context("forkserver")


@contextmanager
def forking() -> Iterator[None]:
    """Start the server if need be, and block the signals that stop a run in what is forked within.

    A terminal or a scheduler sends them to the whole group, and the main process ends its workers itself. Raises
    ConfigError for a folder of temporary files with too long a path.
    """
    _own_folder()
    resource_tracker.ensure_running()  # starting it takes SIGINT and SIGTERM out of the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        # A mask is inherited, from here through the server to its children.
        forkserver.set_forkserver_preload(["sac_torchrl.collectors.server"])
        try:
            forkserver.ensure_running()
        except OSError as error:
            if "AF_UNIX path too long" not in str(error):
                raise
            raise ConfigError(
                f"the folder of temporary files, {tempfile.gettempdir()}, has too long a path for the sockets of "
                "worker processes: set TMPDIR to a shorter one."
            ) from error
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _own_folder() -> None:
    """Have multiprocessing keep its sockets in a folder that is removed even if this process is killed."""
    config: Any = process.current_process()._config  # type: ignore[attr-defined]  # it has no public name
    if config.get("tempdir") is None:
        config["tempdir"] = folder = temporary_folder("pymp-")
        util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)  # as for its own folder


def die_with_parent() -> None:
    """Have the system kill this process when its parent ends, also while it is stuck in a simulator.

    The parent is the server, which ends when no process holds the other end of a pipe; Python gives that end to every
    child as well.
    """
    server: Any = forkserver._forkserver  # it has no public name
    os.close(server._forkserver_alive_fd)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
