"""A guardian for the child processes and temporary folders of this one: it ends and removes those that outlive it.

Only the standard library is imported: the guardian is this file, run as a program.
"""

import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

MARK = "SAC_TORCHRL_PARENTS"  # the environment variable by which the guardian knows them
_GRACE_SECONDS = 3.0  # for processes that end by themselves and clean up
_LIMIT_SECONDS = 10.0
_numbers = count()


@contextmanager
def marked() -> Iterator[None]:
    """Processes that are started within the block do not outlive this process by more than some seconds.

    They inherit a mark in their environment variables and are ended even in a session of their own, and even if this
    process is killed. A forked process that executes no new program has no mark. Linux only.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.environ.get(MARK)
    # A marked process may guard its own: every mark stays.
    os.environ[MARK] = f"{before or ''}{_guardian(os.getpid())};"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = before


def temporary_folder(prefix: str) -> str:
    """Make a folder among the temporary files that does not outlive this process by more than some seconds.

    Its name has the mark, so the guardian knows it before it is made. Linux only. The name is as short as Python's own:
    paths of sockets have 107 bytes.
    """
    if sys.platform != "linux":
        return tempfile.mkdtemp(prefix=prefix)
    folder = Path(tempfile.gettempdir()) / f"{prefix}{_guardian(os.getpid())[:7]}{next(_numbers)}"
    folder.mkdir(mode=0o700)
    return str(folder)


@cache
def _guardian(process: int) -> str:
    """Start the guardian of this `process` and return its mark; a forked process has one of its own."""
    mark = secrets.token_hex(8)
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    arguments = [sys.executable, "-I", "-S", __file__, str(process), mark, tempfile.gettempdir()]
    silence = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    os.posix_spawn(sys.executable, arguments, unmarked, file_actions=silence, setsid=True)
    return mark


def _living(mark: str, known: dict[int, bytes]) -> list[int]:
    """The processes that bear the mark or descend from one that does.

    `known` keeps them with the times at which they started: a parent may end before its children.
    """
    parents: dict[int, int] = {}
    began: dict[int, bytes] = {}
    ours: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It ended, or is another user's.
            state, parent, *others = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if state == b"Z":
                continue
            process = int(entry.name)
            parents[process], began[process] = int(parent), others[17]
            if known.get(process) == others[17] or _marked(entry, mark):
                ours.append(process)
    for process in ours:  # which grows: their children, and the children of those
        ours += [child for child, parent in parents.items() if parent == process and child not in ours]
    ours = [process for process in ours if not _guards(process)]
    known.update((process, began[process]) for process in ours)
    return ours


def _marked(entry: Path, mark: str) -> bool:
    """Whether the process has the mark in its environment.

    Where a title overwrote that, as those of Ray's agents do, whether it has a file open below a marked folder.
    """
    environment = (entry / "environ").read_bytes()
    if environment[:1] != b"\0":
        return mark.encode() in environment
    return any(f"-{mark[:7]}" in str(file.readlink()) for file in (entry / "fd").iterdir())


def _guards(process: int) -> bool:
    """Whether it is a guardian, which ends by itself."""
    with suppress(OSError):
        return os.fsencode(__file__) in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def _cleans_up(process: int) -> bool:
    """Whether it is Python's resource tracker, which removes semaphores and folders once the others have ended."""
    return b"multiprocessing.resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()


def _watch(process: int, mark: str, temporary: str) -> None:
    os.chdir("/")  # the folder that it was started in may be removed
    with suppress(ProcessLookupError):  # It is gone already.
        gone = select.poll()
        gone.register(os.pidfd_open(process), select.POLLIN)
        gone.poll()
    start, known = time.monotonic(), dict[int, bytes]()
    while (living := _living(mark, known)) and time.monotonic() - start < _LIMIT_SECONDS:
        if time.monotonic() - start > _GRACE_SECONDS:
            for one in living:
                with suppress(OSError):
                    if not _cleans_up(one):
                        os.kill(one, signal.SIGKILL)
        time.sleep(0.1)
    for folder in Path(temporary).glob(f"*-{mark[:7]}*"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), *sys.argv[2:])
