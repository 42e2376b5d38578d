"""A worker process under watch: every wait has a deadline, and the worker ends with the process that started it."""

import errno
import math
import os
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from sac_torchrl.collectors.forking import context, die_with_parent, forking
from sac_torchrl.collectors.slices import EnvironmentFailed, describe
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.errors import WorkerDied

START_SECONDS = 120.0  # bounds the imports and the opening of a worker's environments, on a busy machine
_DYING_SECONDS = 5.0
_LONGEST_SECONDS = 2e6  # that `poll` takes; a longer wait begins again

_LIMITS = {  # what a system may run out of, and what gives it more
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close files in other processes",
    errno.EAGAIN: "allow more processes (ulimit -u)",
    errno.ENOMEM: "free some memory",
    errno.ENOSPC: "make room in /dev/shm, or in the folder of temporary files",
}


@dataclass(frozen=True)
class _Failure:
    text: str
    traceback: str


class Worker:
    """A process that runs `serve(connection, environments, busy, *arguments)` for a slice of the environments.

    `timeout` is the longest wait, in seconds, for anything that it is asked.
    """

    def __init__(
        self, serve: Callable[..., None], environments: range, *arguments: Any, env: EnvConfig, timeout: float
    ) -> None:
        self.environments = environments
        self._env = env
        self._timeout = timeout
        self.heard = False  # whether there is something to receive
        with starting(environments), forking():
            self._busy = context.RawValue("i", environments.start)
            self.connection, theirs = context.Pipe()
            _limit_waits(self.connection, timeout)
            self._process = context.Process(
                target=_main, args=(theirs, serve, environments, self._busy, arguments), daemon=True
            )
            self._process.start()
        theirs.close()
        # At exit multiprocessing would wait for a worker that does not answer.
        self._last_resort = util.Finalize(self, _kill, (self._process,), exitpriority=10)
        self.pid = self._process.pid
        self.expect(max(START_SECONDS, timeout))
        self._starting = True

    def expect(self, seconds: float) -> None:
        """Wait for its next answer no longer than this from now."""
        self._patience = seconds
        self.deadline = time.monotonic() + seconds

    def send(self, message: Any) -> None:
        """Ask for something; its answer is due within the timeout. Raises WorkerDied."""
        self.expect(self._timeout)
        try:
            self.connection.send(message)
        except BlockingIOError as error:
            raise self._hung() from error
        except OSError as error:
            raise self._gone() from error

    def receive(self) -> Any:
        """Take the answer of a worker that `listen` returned; raises WorkerDied."""
        try:
            if not self.heard:
                raise self._hung()
            self.heard = False
            answer = self.connection.recv()
            self._starting = False
        except BlockingIOError as error:
            raise self._hung() from error
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if isinstance(answer, _Failure):
            raise self._died(f"raised {answer.text}", answer.traceback)
        return answer

    def stop(self) -> None:
        """Ask the process to close its environments and end."""
        if not self.connection.closed:
            with suppress(OSError):  # It is dead already.
                self.connection.send(None)

    def kill(self, *, after: float = 0.0) -> None:
        """Kill the process if it does not end by itself in `after` seconds; a second call does nothing."""
        if self._last_resort.still_active():
            self._process.join(after)
            self._last_resort()
            self.connection.close()

    def _hung(self) -> WorkerDied:
        died = self._died(f"did not answer for {self._patience:g} s (collector.timeout={self._timeout:g})")
        self.kill()  # It would not answer a request to end either.
        return died

    def _gone(self) -> WorkerDied:
        self._process.join(_DYING_SECONDS)
        code = self._process.exitcode
        how = "vanished" if code is None else f"exited with code {code}"
        if code == 1 and self._starting:
            how += ', while it started: a script that starts workers needs its calls below `if __name__ == "__main__":`'
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", perhaps by the system for want of memory: free some, or give fewer collector.workers"
        return self._died(how)

    def _died(self, how: str, remote_traceback: str = "") -> WorkerDied:
        number = int(self._busy.value)
        return WorkerDied(
            f"environment {number} of {self._env.id} failed: its worker (process {self.pid}, environments "
            f"{self.environments.start} to {self.environments.stop - 1}) {how}.",
            environment=number,
            remote_traceback=remote_traceback,
        )


W = TypeVar("W", bound=Worker)


@contextmanager
def starting(environments: range) -> Iterator[None]:
    """Name the limit of the system that prevents the start of the worker of these environments. Raises WorkerDied."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # PyTorch reports failed system calls as text
        met = [limit for limit in _LIMITS if error.args[:1] == (limit,) or os.strerror(limit) in str(error)]
        if not met:
            raise
        raise WorkerDied(
            f"the worker of environments {environments.start} to {environments.stop - 1} cannot be started: "
            f"{os.strerror(met[0])}. Give fewer collector.workers, or {_LIMITS[met[0]]}.",
            environment=environments.start,
        ) from error


def listen(workers: Sequence[W], *, patience: float = math.inf) -> list[W]:
    """Wait, `patience` seconds at most, until any worker has answered, died or exceeded its deadline; return those."""
    # It takes less than half the time of multiprocessing's `wait`.
    poll = select.poll()
    for worker in workers:
        poll.register(worker.connection, select.POLLIN)
    until = min(worker.deadline for worker in workers)
    seconds = min(patience, max(0.0, until - time.monotonic()), _LONGEST_SECONDS)
    heard = {file for file, _ in poll.poll(seconds * 1000)}
    now = time.monotonic()
    for worker in workers:
        worker.heard = worker.connection.fileno() in heard
    return [worker for worker in workers if worker.heard or worker.deadline <= now]


def close(workers: Sequence[Worker]) -> None:
    """End all workers; those that still answer close their environments first."""
    for worker in workers:
        worker.stop()
    until = time.monotonic() + _DYING_SECONDS
    for worker in workers:
        worker.kill(after=max(0.0, until - time.monotonic()))


def _main(connection: Connection, serve: Callable[..., None], environments: range, busy: Any, arguments: Any) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        serve(connection, environments, busy, *arguments)
    except EnvironmentFailed as failed:
        connection.send(_failure(failed.__cause__ or failed))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # The main process has ended, or has given this one up.
    except Exception as error:  # noqa: BLE001 - whatever it is, the main process raises it
        connection.send(_failure(error))


def _failure(error: BaseException) -> _Failure:
    return _Failure(describe(error), "".join(traceback.format_exception(error)))


def _limit_waits(connection: Connection, seconds: float) -> None:
    """Set a time limit for writes that the other side does not read, and for reads that it does not finish."""
    seconds = min(seconds, _LONGEST_SECONDS)
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as side:
        side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _kill(process: Any) -> None:
    process.kill()
    process.join(_DYING_SECONDS)
    if process.exitcode is not None:
        process.close()
