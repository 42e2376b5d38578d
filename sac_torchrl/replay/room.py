"""Room for replay rows: it is there before anything is allocated."""

import logging
import os
import shutil
import sys
from pathlib import Path

import torch

from sac_torchrl.errors import ConfigError, DiskError

log = logging.getLogger(__name__)


def check_disk(folder: Path, needed: int, *, rows: int) -> None:
    """Raise DiskError where so many rows of `needed` bytes in all do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskError(
            f"{rows:,} replay rows need {_size(needed)} and {folder} has {_size(free)} free: "
            "make room, or train with a lower replay.capacity in a new run.folder."
        )
    log.info("replay: %s rows, %s on disk in %s (%s free)", f"{rows:,}", _size(needed), folder, _size(free))


def check_memory(place: torch.device, needed: int, *, rows: int, storage: str) -> None:
    """Raise ConfigError where they do not fit into the memory of `place`; `storage` is what the user gave."""
    free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else _available_memory()
    if needed > free:
        raise ConfigError(
            f"{rows:,} replay rows need {_size(needed)} and {place} has {_size(free)} of memory available: "
            "train with a lower replay.capacity in a new run.folder, or use replay.storage=disk there instead of "
            f"{storage}."
        )
    log.info("replay: %s rows, %s in memory of %s (%s available)", f"{rows:,}", _size(needed), place, _size(free))


def _available_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # no such file outside Linux: the installed memory is the best bound there
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's limit, which meminfo does not show
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int((limit.parent / "memory.current").read_text()))
    return available


def reserve(folder: Path) -> None:
    """Give the memmap files their disk blocks now.

    They are sparse when made, and a disk that fills later kills the process by SIGBUS, without an exception.
    """
    if sys.platform != "linux":
        return
    for file in folder.rglob("*.memmap"):
        with file.open("r+b") as handle:
            size = os.fstat(handle.fileno()).st_size
            try:
                os.posix_fallocate(handle.fileno(), 0, size)
            except OSError as error:
                raise DiskError(f"cannot reserve {_size(size)} for {file}: {error.strerror}.") from error


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
