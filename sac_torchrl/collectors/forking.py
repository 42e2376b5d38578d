"""Worker processes are forked from a server that has imported everything once, and end with the main process."""

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker, util
from typing import Any

from sac_torchrl.errors import ConfigError
from sac_torchrl.signals import STOPPING

# PyTorch and TorchRL take seconds to import, and forking the main process instead would copy its threads' locks in
# whatever state they are.
context = multiprocessing.get_context("forkserver")

FOLDER = "SAC_TORCHRL_SERVER_FOLDER"  # names the folder of the server's socket to the server


@contextmanager
def forking() -> Iterator[None]:
    """Start the server if need be, and block the signals that stop a run in what is forked within.

    A terminal or a scheduler sends them to the whole group, and the main process ends its workers itself. Raises
    ConfigError for a folder of temporary files with too long a path.
    """
    resource_tracker.ensure_running()  # starting it takes SIGINT and SIGTERM out of the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        # A mask is inherited, from here through the server to its children; so is the name of its folder.
        forkserver.set_forkserver_preload(["sac_torchrl.collectors.server"])
        os.environ[FOLDER] = util.get_temp_dir()
        try:
            forkserver.ensure_running()
        except OSError as error:
            if "AF_UNIX path too long" not in str(error):
                raise
            raise ConfigError(
                f"the folder of temporary files, {tempfile.gettempdir()}, has too long a path for the sockets of "
                "worker processes: set TMPDIR to a shorter one."
            ) from error
        del os.environ[FOLDER]
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent() -> None:
    """Have the system kill this process when its parent ends, also while it is stuck in a simulator.

    The parent is the server, which ends when no process holds the other end of a pipe; Python gives that end to every
    child as well.
    """
    server: Any = forkserver._forkserver  # it has no public name
    os.close(server._forkserver_alive_fd)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
