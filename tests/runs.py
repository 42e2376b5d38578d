"""Runs of the command in processes of their own, as a person or a scheduler starts them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import sac_torchrl
from sac_torchrl.runs import snapshot

ROOT = Path(sac_torchrl.__file__).parents[1]
SMALL = (
    "random_frames=40",
    "batch_size=16",
    "variant.network.hidden=[8]",
    "learner.execution=eager",
    "evaluate.every=100000",
    "evaluate.episodes=1",
    "device=cpu",
)


def start(
    *words: str, cwd: Path, environment: Mapping[str, str] | None = None, hangup: signal.Handlers = signal.SIG_DFL
) -> "subprocess.Popen[str]":
    """Start `sac-torchrl` with these words, in a session of its own; `nohup` gives it another answer to `hangup`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "sac_torchrl", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 600) -> tuple[int, str, str]:
    """Wait for its end; returns exit code, output and errors. A process that does not end is killed and fails."""
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, out, errors


def command(*words: str, cwd: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run `sac-torchrl` with these words to its end."""
    return finish(start(*words, cwd=cwd, environment=environment))


def wait_until(what: Callable[[], bool], process: "subprocess.Popen[str] | None" = None, seconds: float = 600) -> None:
    """Wait until something is the case, for as long as the process lives."""
    end = time.monotonic() + seconds
    while not what():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > end:
            code, out, errors = finish(process, 1) if process is not None and ended else (-1, "", "still running")
            raise AssertionError(f"it never came to that: exit code {code}\n{out}\n{errors}")
        time.sleep(0.01)


def children(pid: int) -> Iterator[int]:
    """The processes that a process started and that run."""
    return (one for one, parent, _ in _processes() if parent == pid)


def family(session: int) -> Iterator[int]:
    """The processes of a session that run: the one that `start` started and all that it started."""
    return (one for one, _, belongs in _processes() if belongs == session)


def _processes() -> Iterator[tuple[int, int, int]]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                state, parent, _, session, *_ = (path / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):  # it ended just now
                continue
            if state not in "ZX":
                yield int(path.name), int(parent), int(session)


def digest(folder: Path) -> str:
    """The digest of the newest checkpoint of a run."""
    checkpoints = folder / "checkpoints"
    newest = snapshot.newest(checkpoints)
    assert newest is not None
    return snapshot.digest(checkpoints, newest)
