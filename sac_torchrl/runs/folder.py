"""A run: its folder, its lock and its log, from the first file to the last line."""

import dataclasses
import fcntl
import logging
import os
import random
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from sac_torchrl.envs import contained
from sac_torchrl.errors import ConfigError, DiskError, Preempted, RunFolderInUse, SacError, disk_advice
from sac_torchrl.fields import field
from sac_torchrl.files import temporary, write_whole
from sac_torchrl.runs.device import keep_freed_memory, resolve_device
from sac_torchrl.runs.seeds import Seeds
from sac_torchrl.runs.snapshot import versions
from sac_torchrl.signals import Signals

CONFIG = "config.yaml"
LOG = "run.log"
LOCK = ".lock"
UNFINISHED = temporary(Path(CONFIG)).name

logger = logging.getLogger("sac_torchrl")


class Closeable(Protocol):
    """A resource that has to be closed."""

    def close(self) -> object:
        """Close it; a second call does nothing."""


Closed = TypeVar("Closed", bound=Closeable)


@dataclass(frozen=True)
class Run:
    """A run folder that is locked by this process, with the run's device, seeds and signals.

    `resumed`: whether the folder held a run already. `resume`: the command that resumes it, with {folder} in it.
    """

    folder: Path
    device: torch.device
    seeds: Seeds
    resumed: bool
    resume: str = "sac-torchrl resume {folder}"
    signals: Signals = dataclasses.field(default_factory=Signals)
    parts: ExitStack = dataclasses.field(default_factory=ExitStack)

    def closing(self, part: Closed) -> Closed:
        """Return `part`, and close it when the run ends, by whatever cause."""
        self.parts.callback(part.close)
        return part

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM, SIGINT, SIGUSR1 or SIGHUP asked the run to save and stop."""
        return bool(self.signals.received)

    def stop_if_asked(self, frames: int) -> None:
        """Raise Preempted if a signal came; call it after saving the checkpoint of `frames` frames."""
        if self.stopping:
            raise Preempted(
                f"{self.signals.received} came; saved at {frames} frames. "
                f"Resume it with: {self.resume.format(folder=shlex.quote(str(self.folder)))}"
            )


@dataclass
class RunConfig:
    """Where the run is written. A folder that holds a run is resumed; one with other files and no run is refused."""

    folder: str | None = field(None, "a new folder, or a run to resume; null: a new one below runs/")

    def saved(self) -> Path | None:
        """Find the config.yaml of the run to resume; raises ConfigError for a folder of something else."""
        if self.folder is None:
            return None
        folder = Path(self.folder).expanduser()
        if (folder / CONFIG).is_file():
            return folder / CONFIG
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"run.folder={folder} is a file: give a new folder, or one with a run.")
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {LOCK, UNFINISHED}:
            raise ConfigError(f"run.folder={folder} holds files but no {CONFIG}: give a new folder, or one with a run.")
        return None

    @contextmanager
    def open(self, config: str, *, name: str, seed: int, device: str, resume: str = Run.resume) -> Iterator[Run]:
        """Make or take the folder, lock it, write `config` into it and log to its run.log until the end.

        A folder made here is called `name` and the time, and never existed before. Raises RunFolderInUse
        where another process holds the folder and DiskError where it cannot be written.
        """
        resumed = self.saved() is not None
        on = resolve_device(device)
        with ExitStack() as stack:
            signals = Signals()
            stack.enter_context(signals.noted())  # before there is a folder: a signal then leaves no half-made one
            try:
                folder = (new_folder(name) if self.folder is None else _given_folder(self.folder)).absolute()
                stack.callback(os.close, _lock(folder))
                if resumed != (folder / CONFIG).is_file():
                    raise RunFolderInUse(f"run.folder={folder} was taken by another process just now.")
                write_whole(folder / CONFIG, config)
                screen = _log_to(folder, stack)
            except OSError as error:
                raise DiskError(
                    f"cannot write the run folder {self.folder or 'below runs/'}: {error}. "
                    f"{disk_advice(error).capitalize()}, or give another run.folder."
                ) from error
            # A CPU takes some hundred times longer for an operation on numbers below 1e-38, which Adam's
            # moments reach.
            torch.set_flush_denormal(True)
            keep_freed_memory()
            seeds = Seeds.derive(seed)
            # Nothing here draws from these, but an environment may: its run can be repeated then.
            random.seed(seeds.environments)
            np.random.seed(seeds.environments)
            contained.set_stream(None)
            logger.info("%s in %s on %s, seed %d", "resumed" if resumed else "started", folder, on, seed)
            logger.debug("command: %s", " ".join(sys.argv))
            logger.debug("%s", ", ".join(f"{name} {one}" for name, one in versions().items()))
            try:
                with ExitStack() as parts:
                    yield Run(folder, on, seeds, resumed, resume, signals, parts)
            except Preempted as stopped:
                logger.removeHandler(screen)
                logger.info("stopped: %s", stopped)
                raise
            except SystemExit as asked:
                logger.removeHandler(screen)
                logger.exception("stopped")
                raise SacError(
                    f"something called sys.exit({asked.code!r}) before the run was finished; run.log has the traceback."
                ) from asked
            except BaseException:
                logger.removeHandler(screen)  # The caller shows the failure; here it is kept.
                logger.exception("stopped")
                raise
            logger.info("finished: the results are in %s", folder)


def new_folder(name: str) -> Path:
    """Make a folder below runs/ that is called `name` and the time, and never existed before."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    Path("runs").mkdir(exist_ok=True)
    folder, attempt = Path("runs") / stem, 1
    while True:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            attempt += 1
            folder = folder.with_name(f"{stem}-{attempt}")
        else:
            return folder


def _given_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _lock(folder: Path) -> int:
    """Hold the folder until the descriptor is closed; the system drops the lock of a process that dies."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode() or "unknown"
        os.close(descriptor)
        raise RunFolderInUse(
            f"run.folder={folder} is in use by process {holder}: wait for it, or give another folder."
        ) from error
    os.truncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


class _LogFile(logging.FileHandler):
    """A log on a disk that may be full: what ends the run then is not its log, and has a line of its own."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the line."""

    def close(self) -> None:
        """Close the file, whether or not its last lines can be written."""
        with suppress(OSError):
            super().close()


def _log_to(folder: Path, stack: ExitStack) -> logging.Handler:
    """Send the package's log to the folder, and its main lines to standard error as well."""
    file = _LogFile(folder / LOG, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler()
    screen.setLevel(logging.INFO)
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.DEBUG)
    # TorchRL logs every storage that it makes to standard output.
    torchrl = logging.getLogger("torchrl")
    stack.callback(torchrl.setLevel, torchrl.level)
    torchrl.setLevel(logging.WARNING)
    for handler in (file, screen):
        logger.addHandler(handler)
        stack.callback(handler.close)
        stack.callback(logger.removeHandler, handler)
    return screen
