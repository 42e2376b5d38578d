"""Saving and restoring a run: its parts, its replay rows, and the generators both draw from."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tensordict import TensorDict
from torchrl.data import TensorDictReplayBuffer

from sac_torchrl.envs import generators
from sac_torchrl.errors import CheckpointError, DiskError, disk_advice
from sac_torchrl.fields import check, field
from sac_torchrl.replay.buffer import generator
from sac_torchrl.replay.prioritized import priorities, restore_priorities
from sac_torchrl.runs import snapshot
from sac_torchrl.runs.snapshot import Segment, Snapshot
from sac_torchrl.trees import Tree

log = logging.getLogger(__name__)

SEGMENT_BYTES = 2**28  # bounds the memory that saving and restoring rows takes


class Stateful(Protocol):
    """A part that saves and restores its whole state through these two methods; `Tree` says what it may hold."""

    def state_dict(self) -> Tree:
        """The whole state; its tensors may change after the call."""
        ...

    def load_state_dict(self, state: Tree, /) -> object:
        """Restore a saved state. Raises an exception if it does not fit."""
        ...


@dataclass
class CheckpointConfig:
    """How often a run is saved. At least two checkpoints are kept, so that one is intact when the newest is damaged."""

    every: int = field(10_000, "frames between checkpoints", least=1)
    keep: int = field(2, "checkpoints that are kept, the newest", least=2)

    def __post_init__(self) -> None:
        check(self, "checkpoint")

    def build(self, folder: Path, buffer: TensorDictReplayBuffer, **parts: Stateful) -> "Checkpoints":
        """The checkpoints below `folder`, each of `buffer` and every one of `parts`."""
        return Checkpoints(folder, buffer, parts, keep=self.keep)


class Checkpoints:
    """Saves and restores `parts`, the rows of `buffer` and its generator, and those of the process."""

    def __init__(self, folder: Path, buffer: TensorDictReplayBuffer, parts: dict[str, Stateful], *, keep: int) -> None:
        self._folder = folder
        self._buffer = buffer
        self._parts = parts
        self._keep = keep
        self._segments: list[Segment] = []
        self._stamps: dict[Segment, tuple[int, ...] | None] = {}
        self._intact: dict[int, list[Segment]] = {}
        self._restored = False

    def save(self, frames: int) -> Path:
        """Write the checkpoint `<folder>/<frames>` and remove the oldest; a second call does nothing.

        Takes time in proportion to the rows added since the last save. A file of older rows that was damaged since is
        written again from the buffer. Raises `DiskError` if it cannot be
        written and `CheckpointError` if the folder holds checkpoints that were not restored; those before
        it are intact then.
        """
        path = self._folder / str(frames)
        if frames in self._intact:
            return path
        if not self._intact and not self._restored and snapshot.frames_in(self._folder):
            raise CheckpointError(f"{self._folder} holds the checkpoints of another run: choose a new folder.")
        state = self._state()  # first: a part that refuses to be saved leaves no file
        try:
            self._folder.joinpath("rows").mkdir(parents=True, exist_ok=True)
            self._save_rows()
            snapshot.write(path, state, self._segments)
            self._intact[frames] = list(self._segments)
            self._intact = {kept: self._intact[kept] for kept in sorted(self._intact)[-self._keep :]}
            snapshot.prune(self._folder, self._intact)
            self._note_stamps()
        except OSError as error:
            before = "from the newest intact checkpoint" if self._intact else "over, there is none before it"
            raise DiskError(
                f"cannot save the checkpoint {path}: {error.strerror}: {disk_advice(error)}, then resume, which "
                f"starts {before}."
            ) from error
        return path

    def restore(self) -> int | None:
        """Load the newest intact checkpoint and return its frames, or `None` if there is no checkpoint.

        Files that a killed process left incomplete are removed. Nothing is loaded before every file is verified and
        decoded. Raises `CheckpointError`, with all parts unchanged, if no checkpoint is intact or the newest intact
        one does not fit this run.
        """
        found = list(snapshot.intact(self._folder))
        if found:
            self._check_fits(found[0])
            self._load_parts(found[0])
            self._load_rows(found[0])
            self._load_generators(found[0].state["generators"])
            self._segments = list(found[0].segments)
            self._note_stamps()
            log.info("going on at %s frames", found[0].frames)
            here = snapshot.versions()
            other = [
                f"{name} {one} ({here.get(name, 'none')} here)"
                for name, one in found[0].versions.items()
                if here.get(name) != one
            ]
            if other:
                log.warning("resuming is not exact: it was saved with %s", ", ".join(other))
            snapshot.sweep(self._folder)  # a run that is at its end saves no more
        self._intact = {one.frames: one.segments for one in found}
        self._restored = True
        return found[0].frames if found else None

    def _state(self) -> Tree:
        return {
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "generators": {"sampling": generator(self._buffer).get_state(), "process": generators.get_states()},
            "rows": {
                "capacity": self._buffer.storage.max_size,
                "write_count": self._buffer.write_count,
                "columns": self._columns(),
                "priorities": priorities(self._buffer),
            },
        }

    def _columns(self) -> Tree:
        columns = self._buffer.storage[:].flatten_keys("/")
        return {key: f"{value.dtype} {tuple(value.shape[1:])}" for key, value in columns.items()}

    def _save_rows(self) -> None:
        written, capacity = self._buffer.write_count, self._buffer.storage.max_size
        oldest = max(0, written - capacity)
        saved = self._segments[-1].end if self._segments else 0
        if saved > written or self._buffer.writer.state_dict()["_cursor"] != written % capacity:
            raise ValueError("the replay buffer was emptied or written out of order: only `extend` it.")
        self._segments = [segment for segment in self._segments if segment.end > oldest]
        self._mend_rows(oldest)
        row_bytes = max(1, sum(column.nbytes for column in self._buffer.storage[:1].values(True, True)))
        step = max(1, SEGMENT_BYTES // row_bytes)
        for start in range(max(saved, oldest), written, step):
            self._segments.append(self._write_rows(start, min(start + step, written)))

    def _write_rows(self, start: int, end: int) -> Segment:
        positions = torch.arange(start, end) % self._buffer.storage.max_size
        rows = self._buffer.storage[positions].flatten_keys("/")
        return snapshot.write_segment(
            self._folder, start, {key: value.cpu().contiguous() for key, value in rows.items()}
        )

    def _mend_rows(self, oldest: int) -> None:
        """Write damaged files again, from the rows that the buffer still holds; all kept checkpoints share them."""
        for number, segment in enumerate(self._segments):
            stamp = segment.stamp(self._folder)
            # Only a file that changed is read: to read all of them would take longer than a save.
            if (stamp is not None and stamp == self._stamps.get(segment)) or segment.intact(self._folder):
                self._stamps[segment] = stamp
                continue
            path, start = segment.path(self._folder), max(oldest, segment.start)
            log.warning("%s is damaged: it is written again from the replay buffer", path)
            self._stamps.pop(segment, None)
            self._segments[number] = again = self._write_rows(start, segment.end)
            if start > segment.start:
                log.warning("the buffer holds its rows from %d on: checkpoints before this one stay damaged", start)
            elif again != segment:
                log.warning("the buffer's rows %d to %d are not those that were saved", start, segment.end)

    def _note_stamps(self) -> None:
        self._stamps = {one: self._stamps.get(one) or one.stamp(self._folder) for one in self._segments}

    def _load_rows(self, saved: Snapshot) -> None:
        written, capacity = saved.state["rows"]["write_count"], self._buffer.storage.max_size
        oldest = max(0, written - capacity)
        self._buffer.empty()
        self._buffer.writer.load_state_dict({"_cursor": oldest % capacity, "_write_count": oldest})
        for segment in saved.segments:
            columns = snapshot.read_segment(self._folder, segment)
            rows = TensorDict(columns, batch_size=[segment.end - segment.start]).unflatten_keys("/")
            self._buffer.extend(rows[max(0, oldest - segment.start) :])
        restore_priorities(self._buffer, saved.state["rows"].get("priorities", {}))

    def _check_fits(self, saved: Snapshot) -> None:
        if missing := {"parts", "rows", "generators"} - set(saved.state):
            raise CheckpointError(f"the checkpoint at {saved.frames} frames holds no {min(missing)}: it is of no run.")
        parts, rows = saved.state["parts"], saved.state["rows"]
        if parts.keys() != self._parts.keys():
            raise CheckpointError(
                f"the checkpoint at {saved.frames} frames holds {sorted(parts)} and this run has "
                f"{sorted(self._parts)}: resume it with the configuration it was made with."
            )
        here, there = self._columns(), rows["columns"]
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise CheckpointError(
                    f"replay column {name!r} of the checkpoint at {saved.frames} frames is {there.get(name)} "
                    f"and this run's is {here.get(name)}: resume it with the environment it was made with."
                )
        capacity = self._buffer.storage.max_size
        if capacity != rows["capacity"] and rows["write_count"] > min(capacity, rows["capacity"]):
            raise CheckpointError(
                f"the checkpoint at {saved.frames} frames has written {rows['write_count']} rows to a "
                f"ring of {rows['capacity']} and cannot go on in one of {capacity}: "
                f"resume it with replay.capacity={rows['capacity']}."
            )

    def _load_parts(self, saved: Snapshot) -> None:
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self._parts.items()}
        loading = ""
        try:
            for loading, part in self._parts.items():
                part.load_state_dict(saved.state["parts"][loading])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            for name, part in self._parts.items():
                part.load_state_dict(before[name])
            raise CheckpointError(
                f"{loading!r} of the checkpoint at {saved.frames} frames does not fit this run: "
                f"{' '.join(str(error).split())}"
            ) from error

    def _load_generators(self, saved: Tree) -> None:
        generators.set_states(saved["process"])
        sampling = generator(self._buffer)
        if sampling.get_state().shape == saved["sampling"].shape:
            sampling.set_state(saved["sampling"])
        else:
            log.warning("resuming is not exact: the rows were on another kind of device, sampling is reseeded")
