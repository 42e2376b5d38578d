"""Files that are written whole and durable: after a crash a file holds its old content or its new one."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file of this content. Raises OSError, with the old file as it was."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name a draft beside `path` to write to; it takes the place of `path` when the `with` block ends without an error.

    Content, name and folder are synced in this order. A draft that is not finished is removed.
    """
    draft = temporary(path)
    try:
        yield draft
        sync(draft)
        rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def rename(old: Path, new: Path) -> None:
    """Give a file or folder another name; where a signal interrupts that, as on network file systems, try again.

    Python tries other calls again itself, but not this one.
    """
    while True:
        with suppress(InterruptedError):
            old.replace(new)
            return


@contextmanager
def open_plain(path: Path) -> Iterator[BufferedReader]:
    """Open a file that another user may have placed: links are not followed and opening never blocks.

    Raises OSError for all but a plain file.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is not a plain file", str(path))
        yield file


def read_plain(path: Path, *, most: int) -> bytes:
    """Read such a file; raises OSError where it has more than `most` bytes."""
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"has more than {most:,} bytes", str(path))
    return content


def temporary(path: Path) -> Path:
    """Name the draft of `path`, in the same folder and with the same suffix."""
    return path.with_name(f".tmp-{path.name}")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
