"""One checkpoint on disk: writing, verifying, finding and removing it.

    <folder>/<frames>/state.safetensors   the tensors of the state
                      state.json          everything else, with placeholders for the tensors
                      manifest.json       written last: size and SHA-256 of all files, row segments included
    <folder>/rows/<start>-<end>.safetensors   replay rows `start` to `end`, counted from the first of the run

Nothing is overwritten: a directory or segment is written under a temporary name, synced and renamed. The
hashes find accidents; they do not prove who wrote a file.
"""

import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from sac_torchrl.errors import CheckpointError
from sac_torchrl.files import open_plain, read_plain, rename, sync, temporary, write_whole
from sac_torchrl.trees import Tree, decode, encode

log = logging.getLogger(__name__)

FORMAT = 1
# What a manifest or a state in JSON may take before it is read: those of long runs take some 100 kB.
_MOST, _MOST_VALUES = 64_000_000, 2_000_000
_TICK = 20_000_000  # nanoseconds; Linux's clock of files ticks every 1 to 10 ms
_PACKAGES = ("torch", "torchrl", "tensordict", "safetensors", "numpy", "gymnasium", "mujoco", "dm_control")
_THREADS = torch.get_num_threads()  # before a learner takes some of them
_TENSORS, _SKELETON, _MANIFEST = "state.safetensors", "state.json", "manifest.json"
_FRAMES = re.compile(r"0|[1-9][0-9]{0,17}")
_SEGMENT = re.compile(r"[0-9]+-[0-9]+\.safetensors")
_DEBRIS = re.compile(r"\.tmp-[0-9]+(-[0-9]+\.safetensors)?")  # what a process that was killed leaves


@dataclass(frozen=True)
class Segment:
    """An unchanging file of the replay rows from `start` up to `end`, counted from the first of the run."""

    start: int
    end: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a segment holds rows: {self.start} to {self.end} are none")

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.start}-{self.end}.safetensors"

    def path(self, folder: Path) -> Path:
        """Its file, where `folder` holds the checkpoints."""
        return folder / "rows" / self.name

    def stamp(self, folder: Path) -> tuple[int, ...] | None:
        """Numbers that differ after its file is written to or replaced; None where there is no telling.

        Two writes within one tick of the file system's clock leave the same time, so a new file has no stamp yet.
        """
        try:
            found = os.lstat(f"{folder}/rows/{self.name}")  # without a Path: a run may have thousands
        except OSError:
            return None
        if time.time_ns() - found.st_ctime_ns < _TICK:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def intact(self, folder: Path) -> bool:
        """Read its file and say whether every byte is as it was written."""
        try:
            _check(self.path(folder), size=self.size, sha256=self.sha256)
        except (OSError, CheckpointError):
            return False
        return True


@dataclass(frozen=True)
class Snapshot:
    """A verified checkpoint: its state, decoded, and the segments that hold its replay rows."""

    frames: int
    state: Tree
    segments: list[Segment]
    versions: dict[str, str] = field(default_factory=dict)


@cache  # to look them up takes as long as to save a thousand rows
def versions() -> dict[str, str]:
    """The versions of what the numbers of a run come from, as far as it is installed, and PyTorch's threads."""
    found = {"python": platform.python_version(), "threads": str(_THREADS)}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write(path: Path, state: Tree, segments: list[Segment]) -> None:
    """Write the checkpoint `<folder>/<frames>`; whatever was there is thrown away first."""
    skeleton, tensors = encode(state)
    payloads = {_TENSORS: safetensors.torch.save(tensors), _SKELETON: _json(skeleton)}
    manifest = {
        "format": FORMAT,
        "frames": int(path.name),
        "versions": versions(),
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in payloads.items()
        },
        "rows": [asdict(segment) for segment in segments],
    }
    seal = {"manifest": manifest, "sha256": hashlib.sha256(_json(manifest)).hexdigest()}
    discard(path)
    _check_room(path.parent, sum(map(len, payloads.values())) + len(_json(seal)))
    stage = temporary(path)
    stage.mkdir()
    try:
        for name, data in payloads.items():
            _write(stage / name, data)
        _write(stage / _MANIFEST, _json(seal))
        sync(stage)
    except OSError:
        shutil.rmtree(stage, ignore_errors=True)  # a full disk needs the space back
        raise
    rename(stage, path)
    sync(path.parent)


def write_segment(folder: Path, start: int, columns: Mapping[str, torch.Tensor]) -> Segment:
    """Write the rows of `columns`, the first of which is row `start` of the run."""
    rows = len(next(iter(columns.values())))
    data = safetensors.torch.save(dict(columns))
    segment = Segment(start, start + rows, len(data), hashlib.sha256(data).hexdigest())
    path = segment.path(folder)
    _check_room(folder, len(data))
    # A file of this name is damaged, or of a damaged checkpoint that was passed over.
    write_whole(path, data)
    return segment


def read_segment(folder: Path, segment: Segment) -> dict[str, torch.Tensor]:
    """The columns that `write_segment` was given."""
    return safetensors.torch.load_file(segment.path(folder))


def verify(path: Path) -> Snapshot:
    """Read the checkpoint `path` and check every byte it needs, replay rows included.

    Raises `CheckpointError` naming the file that is damaged or missing.
    """
    try:
        manifest = _manifest(path)
        for name in (_TENSORS, _SKELETON):
            _check(path / name, **manifest["files"][name])
        segments = [Segment(**entry) for entry in manifest["rows"]]
        if (path.parent / "rows").is_symlink():
            raise CheckpointError(f"{path.parent / 'rows'}: is a link")
        for segment in segments:
            _check(segment.path(path.parent), size=segment.size, sha256=segment.sha256)
        tensors = safetensors.torch.load_file(path / _TENSORS)
        state = decode(_read_json(path / _SKELETON), tensors)
        _check_rows(state, segments)
        made_with = {str(name): str(one) for name, one in manifest["versions"].items()}
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT} ({error!r})") from error
    return Snapshot(manifest["frames"], state, segments, made_with)


def digest(folder: Path, snapshot: Snapshot) -> str:
    """The SHA-256 of everything a run resumes from: its state and the replay rows that its ring holds.

    Two runs have the same digest if they are the same to the last bit. It depends neither on library versions nor on
    how the rows are split into files.
    """
    skeleton, tensors = encode(snapshot.state)
    whole = hashlib.sha256(json.dumps(skeleton, sort_keys=True).encode())
    for name in sorted(tensors):
        whole.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        whole.update(_raw(tensors[name]))
    saved = snapshot.state["rows"]
    oldest = max(0, saved["write_count"] - saved["capacity"])
    columns: dict[str, Any] = {}
    for segment in snapshot.segments:
        for name, column in read_segment(folder, segment).items():
            columns.setdefault(name, hashlib.sha256()).update(_raw(column[max(0, oldest - segment.start) :]))
    for name in sorted(columns):
        whole.update(f"{name} {columns[name].hexdigest()}\n".encode())
    return whole.hexdigest()


def intact(folder: Path) -> Iterator[Snapshot]:
    """The intact checkpoints below `folder`, newest first; a damaged one is named in a warning.

    Reads only. Raises `CheckpointError` at the end if there are checkpoints and none is intact.
    """
    found, good, reason = frames_in(folder), 0, ""
    for frames in found:
        try:
            snapshot = verify(folder / str(frames))
        except CheckpointError as error:
            reason = str(error)
            log.warning("passing over the damaged checkpoint at %s frames: %s", frames, reason)
            continue
        good += 1
        yield snapshot
    if found and not good:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {folder} is intact ({reason}): "
            "bring back a copy of one, or train in a new folder."
        )


def newest(folder: Path) -> Snapshot | None:
    """The newest intact checkpoint below `folder`, or `None` if there is no checkpoint."""
    return next(intact(folder), None)


def frames_in(folder: Path) -> list[int]:
    """The frames of the checkpoints below `folder`, newest first, intact or not."""
    if not folder.is_dir():
        return []
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return sorted((int(path.name) for path in folders if _FRAMES.fullmatch(path.name)), reverse=True)


def discard(path: Path) -> None:
    """Remove the checkpoint `path`, whole or partial, so that no reader ever sees half of it."""
    stage = temporary(path)
    if stage.exists():
        shutil.rmtree(stage)
    if path.exists():
        rename(path, stage)
        shutil.rmtree(stage)


def prune(folder: Path, kept: Mapping[int, list[Segment]]) -> None:
    """Remove the checkpoints and row segments that `kept` does not name, and `sweep`."""
    for frames in frames_in(folder):
        if frames not in kept:
            discard(folder / str(frames))
    needed = {segment.name for segments in kept.values() for segment in segments}
    for path in (folder / "rows").iterdir():
        if _SEGMENT.fullmatch(path.name) and path.name not in needed:
            path.unlink()
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left half written or half removed."""
    for path in [*folder.iterdir(), *(folder / "rows").iterdir()]:
        if _DEBRIS.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _manifest(path: Path) -> dict[str, Any]:
    seal = _read_json(path / _MANIFEST)
    manifest: dict[str, Any] = seal["manifest"]
    sealed = hashlib.sha256(_json(manifest)).hexdigest() == seal["sha256"]
    if not sealed or read_plain(path / _MANIFEST, most=_MOST) != _json(seal):
        raise CheckpointError(f"{path / _MANIFEST}: its SHA-256 differs")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {manifest['format']}, this version reads {FORMAT}")
    if str(manifest["frames"]) != path.name:
        raise CheckpointError(f"{path}: is the checkpoint at {manifest['frames']} frames")
    if unknown := {file.name for file in path.iterdir()} - {_TENSORS, _SKELETON, _MANIFEST}:
        raise CheckpointError(f"{path / min(unknown)}: does not belong in a checkpoint")
    return manifest


def _read_json(path: Path) -> Any:
    content = read_plain(path, most=_MOST)
    # An empty list takes three bytes there and thirty times as many in memory.
    if sum(map(content.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise CheckpointError(f"{path}: holds more than {_MOST_VALUES:,} values")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON") from error


def _check(path: Path, *, size: int, sha256: str) -> None:
    with open_plain(path) as file:
        if (found := os.fstat(file.fileno()).st_size) != size:
            raise CheckpointError(f"{path}: has {found} of {size} bytes")
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise CheckpointError(f"{path}: its SHA-256 differs")


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_rows(state: Tree, segments: list[Segment]) -> None:
    """Raise ValueError if the segments are not exactly the rows that the ring of the state holds, in order."""
    rows = state.get("rows", {"write_count": 0, "capacity": 1})
    oldest = max(0, rows["write_count"] - rows["capacity"])
    ends = [min(segments[0].start, oldest) if segments else oldest, *(segment.end for segment in segments)]
    if [segment.start for segment in segments] != ends[:-1] or ends[-1] != rows["write_count"]:
        raise ValueError(f"its segments do not hold the rows {oldest} to {rows['write_count']}")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sync(path)


def _check_room(folder: Path, needed: int) -> None:
    """Raise OSError before anything is written that would not fit."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        said = f"{os.strerror(errno.ENOSPC)}, {needed:,} bytes are needed and {free:,} free"
        raise OSError(errno.ENOSPC, said, str(folder))
