"""Worker processes that are watched: every wait has a deadline, and no process outlives the one that started it."""

import ctypes
import errno
import logging
import math
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from sac_torchrl.collectors.experience import Job
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.handed import refuse_unpicklable
from sac_torchrl.envs.vector import SequentialVectorEnv, seeds
from sac_torchrl.errors import ConfigError, EnvironmentFault, WorkerDied, short
from sac_torchrl.signals import STOPPING

log = logging.getLogger(__name__)

# Workers are forked from a process that has imported everything once: PyTorch and TorchRL take seconds to import, and
# forking this one instead would copy its threads' locks in whatever state they are.
_context = multiprocessing.get_context("forkserver")

FOLDER = "SAC_TORCHRL_SERVER_FOLDER"  # names the folder of the server's socket to the server

START_SECONDS = 120.0  # bounds the imports and the opening of a worker's environments, on a busy machine
_DYING_SECONDS = 5.0

_LIMITS = {  # what a system may run out of, and what gives it more
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "have less open elsewhere",
    errno.EAGAIN: "allow more processes (ulimit -u)",
    errno.ENOMEM: "free some memory",
    errno.ENOSPC: "make room in /dev/shm, or in the folder of temporary files",
}


class EnvironmentFailed(Exception):
    """The environment `number` raised; the cause says what, and `said` in short."""

    def __init__(self, number: int, said: str) -> None:
        super().__init__(number, said)
        self.number = number
        self.said = said

    def __str__(self) -> str:
        return self.said


class Numbered(gym.Wrapper[Any, Any, Any, Any]):
    """Says in `busy`, which the main process reads, that the environment `number` is running."""

    def __init__(self, env: gym.Env[Any, Any], number: int, busy: Any) -> None:
        super().__init__(env)
        self._number = number
        self._busy = busy

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; whatever it raises becomes EnvironmentFailed."""
        self._busy.value = self._number
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise EnvironmentFailed(self._number, _said(error)) from error

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes an action; whatever it raises becomes EnvironmentFailed."""
        self._busy.value = self._number
        try:
            return self.env.step(action)
        except Exception as error:
            raise EnvironmentFailed(self._number, _said(error)) from error


def _open_numbered(env: EnvConfig, number: int, busy: Any) -> gym.Env[Any, Any]:
    """Open one environment of a worker."""
    busy.value = number
    try:
        return Numbered(env.open(tolerate_faults=True), number, busy)
    except Exception as error:
        raise EnvironmentFailed(number, _said(error)) from error


def open_slice(env: EnvConfig, environments: range, busy: Any) -> SequentialVectorEnv:
    """Open a worker's environments."""
    return SequentialVectorEnv([_open_numbered(env, number, busy) for number in environments])


@dataclass(frozen=True)
class _Failure:
    said: str
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
        with starting(environments):
            self._busy = _context.RawValue("i", environments.start)
            self.connection, theirs = _context.Pipe()
            _limit_waits(self.connection, timeout)
            self._process = _context.Process(
                target=_main, args=(theirs, serve, environments, self._busy, arguments), daemon=True
            )
            with _signals_blocked():
                self._process.start()
        theirs.close()
        # At exit multiprocessing would wait for a worker that does not listen.
        self._last_resort = util.Finalize(self, _kill, (self._process,), exitpriority=10)
        self.pid = self._process.pid
        self.expect(max(START_SECONDS, timeout))

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
        """Take the answer of one that `listen` returned; raises WorkerDied."""
        try:
            if not self.heard:
                raise self._hung()
            self.heard = False
            answer = self.connection.recv()
        except BlockingIOError as error:
            raise self._hung() from error
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if isinstance(answer, _Failure):
            raise self._died(f"raised {answer.said}", answer.traceback)
        return answer

    def stop(self) -> None:
        """Ask the process to close its environments and end."""
        if not self.connection.closed:
            with suppress(OSError):  # It is dead already.
                self.connection.send(None)

    def kill(self, *, after: float = 0.0) -> None:
        """End the process whatever it does, unless it ends by itself in that many seconds; again does nothing."""
        if self._last_resort.still_active():
            self._process.join(after)
            self._last_resort()
            self.connection.close()

    def _hung(self) -> WorkerDied:
        died = self._died(f"did not answer for {self._patience:g} s (collector.timeout={self._timeout:g})")
        self.kill()  # It would not hear either that it has to end.
        return died

    def _gone(self) -> WorkerDied:
        self._process.join(_DYING_SECONDS)
        code = self._process.exitcode
        how = "vanished" if code is None else f"exited with code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return self._died(how)

    def _died(self, how: str, remote_traceback: str = "") -> WorkerDied:
        number = int(self._busy.value)
        return WorkerDied(
            f"environment {number} of {self._env.id} failed: its worker (process {self.pid}, environments "
            f"{self.environments.start} to {self.environments.stop - 1}) {how}.",
            environment=number,
            remote_traceback=remote_traceback,
        )


@contextmanager
def starting(environments: range) -> Iterator[None]:
    """Say in a line which limit of the system keeps the worker of these environments from being started."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # PyTorch tells of its failed system calls by a text
        met = [what for what in _LIMITS if error.args[:1] == (what,) or os.strerror(what) in str(error)]
        if not met:
            raise
        raise WorkerDied(
            f"the worker of environments {environments.start} to {environments.stop - 1} cannot be started: "
            f"{os.strerror(met[0])}. Give fewer collector.workers, or {_LIMITS[met[0]]}.",
            environment=environments.start,
        ) from error


@dataclass(frozen=True)
class WorkerSeeds:
    """How a worker with a policy begins: seeds of its environments and of its exploration, random steps of each."""

    seeds: list[int]
    exploration: int
    random_steps: int


def begin(job: Job, environments: range, *, frames: int, incarnation: int) -> WorkerSeeds:
    """The episodes of `direct` for the first `incarnation` of its worker, 0, and others for each that replaces it."""
    count = job.env.count
    words = seeds(job.seed + frames, count)
    if incarnation:
        words = np.random.SeedSequence([job.seed + frames, incarnation]).generate_state(count).tolist()
    return WorkerSeeds(
        words[environments.start : environments.stop],
        exploration=int(np.random.SeedSequence([*words, environments.start]).generate_state(1)[0]),
        # Whole steps, as everywhere.
        random_steps=-(-max(0, job.random_frames - frames) // count),
    )


def split(count: int, workers: int) -> list[range]:
    """Deal `count` environments out to at most `workers` workers, evenly."""
    workers = min(count, workers)
    ends = [count * number // workers for number in range(workers + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def listen(workers: Sequence[Worker], *, patience: float = math.inf) -> list[Worker]:
    """Wait until one or more of the `workers` have answered or died, or the time of one is over; return those.

    It waits no longer than `patience` seconds.
    """
    # Less than half the time of multiprocessing's wait, which is many files long.
    poll = select.poll()
    for worker in workers:
        poll.register(worker.connection, select.POLLIN)
    until = min(worker.deadline for worker in workers)
    seconds = min(patience, max(0.0, until - time.monotonic()))
    heard = {file for file, _ in poll.poll(seconds * 1000)}
    now = time.monotonic()
    for worker in workers:
        worker.heard = worker.connection.fileno() in heard
    return [worker for worker in workers if worker.heard or worker.deadline <= now]


def close(workers: Sequence[Worker]) -> None:
    """End them all: those that listen close their environments before."""
    for worker in workers:
        worker.stop()
    until = time.monotonic() + _DYING_SECONDS
    for worker in workers:
        worker.kill(after=max(0.0, until - time.monotonic()))


class RestartBudget:
    """How many workers may still be replaced."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._left = restarts

    def spend(self, died: WorkerDied) -> None:
        """Count a replacement; raises `died` where none is left."""
        if self._left == 0:
            raise died
        self._left -= 1
        log.warning("%s It is replaced (%d of %d).", died, self._restarts - self._left, self._restarts)
        log.debug("%s", died.remote_traceback)


def default_workers() -> int:
    """As many as this process has cores."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def log_new_episodes(frames: int) -> None:
    """Say in the log that a run that goes on does so with new episodes."""
    if frames:
        log.info("resuming is not exact: the environments in workers start new episodes, of other seeds")


def refuse_batched(env: EnvConfig) -> None:
    """Raise ConfigError for environments that no worker can hold a part of."""
    if env.in_one:
        raise ConfigError(f"env.id={env.id} steps all its environments at once: use collector=direct.")
    refuse_unpicklable(env.make, env.id)


def check(*, workers: int | None, timeout: float, restarts: int) -> None:
    """Raise ConfigError for a plan of workers that cannot be."""
    if workers is not None and workers < 1:
        raise ConfigError(f"collector.workers={workers}: give 1 or more processes, or null for one a core.")
    if not 0 < timeout < float("inf"):
        raise ConfigError(f"collector.timeout={timeout}: give a positive number of seconds.")
    if restarts < 0:
        raise ConfigError(f"collector.restarts={restarts}: give 0 or more.")


def _main(connection: Connection, serve: Callable[..., None], environments: range, busy: Any, arguments: Any) -> None:
    _die_with_parent()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        serve(connection, environments, busy, *arguments)
    except EnvironmentFailed as failed:
        connection.send(_failure(failed.__cause__ or failed))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # The main process is gone, or has given this one up.
    except Exception as error:  # noqa: BLE001 - whatever it is, the main process raises it
        connection.send(_failure(error))


def _failure(error: BaseException) -> _Failure:
    text = "".join(traceback.format_exception(error))
    return _Failure(_said(error), text)


def _said(error: BaseException) -> str:
    # A fault is a line already, and says at its end in which step.
    text = str(error) if isinstance(error, EnvironmentFault) else short(error)
    return f"{type(error).__name__}: {text}".rstrip(".: ")


def _die_with_parent() -> None:
    """Have the system kill this process when its parent goes, also while it is stuck in a simulator.

    The parent is the server, which goes when nobody holds the other end of a pipe any more, and Python hands that
    end to every child as well.
    """
    server: Any = forkserver._forkserver  # it has no public name
    os.close(server._forkserver_alive_fd)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _signals_blocked:  # noqa: N801 - read as a verb
    """Keeps a terminal's or a scheduler's signals to the whole group from the workers: the main process ends them."""

    _blocked = STOPPING

    def __enter__(self) -> None:
        resource_tracker.ensure_running()  # starting it takes SIGINT and SIGTERM out of the mask
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        # A mask is inherited, from here through the server to its children; so is the name of its folder.
        forkserver.set_forkserver_preload(["sac_torchrl.collectors.server"])
        os.environ[FOLDER] = util.get_temp_dir()
        forkserver.ensure_running()
        del os.environ[FOLDER]

    def __exit__(self, *exception: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def _limit_waits(connection: Connection, seconds: float) -> None:
    """Have the system end a write that the other side does not take, and a read that it does not finish."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as side:
        side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _kill(process: Any) -> None:
    process.kill()
    process.join(_DYING_SECONDS)
    if process.exitcode is not None:
        process.close()
