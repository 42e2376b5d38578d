"""The failures a user can meet, each one line on standard error and an exit code of its own (`sysexits.h`).

    SacError               70  anything else that went wrong inside
    ├─ ConfigError         64  a configuration or an environment that cannot be trained on; no file was made
    ├─ CheckpointError     65  a checkpoint that is damaged, or of another configuration
    ├─ WorkerDied          69  a worker process that was killed, hung or raised, and was not replaced
    ├─ EnvironmentFault    69  an environment that returned what cannot be trained on, or cannot continue
    ├─ LearnerFault        70  parameters, losses or actions that are not finite
    ├─ RunFolderInUse      73  another process holds the run folder
    ├─ DiskError           74  a file that cannot be written
    └─ Preempted           75  a signal asked the run to stop; a checkpoint of where it stopped is saved

A run that finished exits with 0, one that was interrupted before it had a folder with 130.
"""

import errno
import os
import select
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher

RECOVER = (
    "None of it is saved, and resuming would likely diverge again: start a new run with a smaller learner.lr or "
    "smaller rewards."
)


class SacError(Exception):
    """A failure with a message of one line: what was wrong, where, and what to do."""

    exit_code = 70
    label = "error"


class ConfigError(SacError):
    """A configuration or an environment that cannot be trained on, found before any file is made."""

    exit_code = 64


class CheckpointError(SacError):
    """A checkpoint that is damaged or belongs to another configuration."""

    exit_code = 65


class WorkerDied(SacError):
    """A worker process that was killed, hung or raised, and was not replaced.

    `environment` is the index of the environment that it was stepping, `remote_traceback` the traceback in the worker,
    empty if there is none.
    """

    exit_code = 69

    def __init__(self, message: str, *, environment: int, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.environment = environment
        self.remote_traceback = remote_traceback
        if remote_traceback:
            self.add_note(f"In the worker:\n{remote_traceback}")


class EnvironmentFault(SacError):
    """An environment that returned what cannot be trained on, or cannot continue."""

    exit_code = 69


class LearnerFault(SacError):
    """Parameters, losses or actions that are not finite."""

    exit_code = 70


class RunFolderInUse(SacError):
    """Another process holds the run folder."""

    exit_code = 73


class DiskError(SacError):
    """A file that cannot be written: no space, no permission, no such folder."""

    exit_code = 74


class Preempted(SacError):
    """A signal asked the run to stop; a checkpoint of where it stopped is saved."""

    exit_code = 75
    label = "stopped"


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the closest of the `known` dotted keys or names, or up to three that are about as close."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, word, candidate).ratio()
        last = SequenceMatcher(None, word.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, last) + whole / 10

    ranked = sorted(known, key=likeness, reverse=True)
    close = [one for one in ranked if likeness(one) > max(0.75, likeness(ranked[0]) - 0.1)]
    return f": did you mean {' or '.join(close[:3])}?" if close else "."


def short(what: object) -> str:
    """The text of `what` on one line that ends after 160 characters."""
    return textwrap.shorten(str(what), 160, placeholder=" ...")


_DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "allow this user to write it",
    errno.EIO: "look after the disk",
    errno.EPERM: "allow this user to write it",
}


def disk_advice(error: OSError) -> str:
    """What to do about a file that cannot be written."""
    return _DISK.get(error.errno or 0, "make it possible to write there")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an exception into one line on standard error and its exit code.

    An interruption by the user exits with 130; an unexpected exception prints its traceback and exits with 70.
    """
    try:
        yield
    except SacError as error:
        _say(f"{error.label}: {error}")
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt as interruption:
        _say("error: interrupted.")
        raise SystemExit(130) from interruption
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise SystemExit(128 + signal.SIGPIPE) from error
        if error.errno not in _DISK:
            _say(traceback.format_exc())
            raise SystemExit(SacError.exit_code) from error
        advice = disk_advice(error)
        _say(f"error: {error.filename or 'a file of the run'}: {error.strerror}: {advice}, then resume.")
        raise SystemExit(DiskError.exit_code) from error
    except Exception as error:
        _say(traceback.format_exc())
        raise SystemExit(SacError.exit_code) from error
    finally:
        _reader_is_gone()


def _reader_is_gone() -> bool:
    """Whether the reader of standard output is gone, as behind `| head`; redirects it to the null device then."""
    output = select.poll()
    output.register(1, 0)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return gone


def _say(text: str) -> None:
    # Standard error may be closed; the exit code remains.
    with suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr)
