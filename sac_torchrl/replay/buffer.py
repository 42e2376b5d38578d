"""The replay buffer: its rows, their size, and their storage."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torchrl.data import Categorical, LazyTensorStorage, RandomSampler, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler

from sac_torchrl.errors import ConfigError, DiskError, short
from sac_torchrl.fields import check, field
from sac_torchrl.replay.packing import (
    Layout,
    PackedMemmapStorage,
    PackedReplayBuffer,
    PackedTensorStorage,
    Packing,
    RingWriter,
)
from sac_torchrl.replay.prioritized import PrioritizedReplayBuffer, prioritized_sampler
from sac_torchrl.replay.room import check_disk, check_memory, reserve
from sac_torchrl.specs import ENTROPY, EPISODE, SPAN, Specs

if TYPE_CHECKING:
    from sac_torchrl.envs.goals import Goals

log = logging.getLogger(__name__)


class Storage(Enum):
    """Where rows live: files in the run folder, main memory, or the memory of the training device."""

    disk = "disk"
    ram = "ram"
    device = "device"


class Hindsight(Enum):
    """Whether a sampled row may be given a goal that was reached after it, in the same episode."""

    none = "none"
    future = "future"


@dataclass
class ReplayConfig:
    """A ring of the newest transitions, sampled with replacement.

    Rows are drawn uniformly, or in proportion to their TD error (Schaul et al. 2016, arXiv 1511.05952, table 3). The
    exponent of the weights then rises linearly with the frames of the run to 1 (section 3.4).

    With `hindsight=future` only rows of finished episodes are drawn. A part of them, `hindsight_ratio`, gets the goal
    that the row itself or a later one of its episode achieved, drawn uniformly, with the reward and termination of that
    goal (Andrychowicz et al. 2017, arXiv 1707.01495, section 4.5; the ratio is k / (k + 1) for their k of 4).
    """

    capacity: int = field(1_000_000, "newest rows that are kept", least=1)
    storage: Storage = field(Storage.disk, "where rows live: the run folder, main memory or the training device")
    prioritized: bool = field(False, "draw rows in proportion to their TD error")
    priority_exponent: float = field(0.6, "power of the TD error that rows are drawn by", least=0, most=1)
    weight_exponent: float = field(
        0.4, "power of 1 / priority that weighs the critics' loss; it rises to 1 at total_frames", least=0, most=1
    )
    hindsight: Hindsight = field(Hindsight.none, "future: sample rows with goals that their episode achieved later")
    hindsight_ratio: float = field(0.8, "part of the sampled rows that get such a goal", above=0, most=1)

    def __post_init__(self) -> None:
        check(
            self,
            "replay",
            (
                self.hindsight is Hindsight.none or not self.prioritized,
                "replay.hindsight=future: the TD error of a row is of one goal, and it is sampled with others; give "
                "replay.prioritized=false.",
            ),
        )

    def try_out(self, folder: Path | None, specs: Specs, *, rows: int, device: torch.device) -> None:
        """Raise the errors of `build` for rows that do not fit, or cannot be drawn, and make nothing.

        `folder` is one that exists on the disk of the rows; None: they are in memory, or take the place of others.
        """
        size = min(self.capacity, rows)
        if self.prioritized:
            prioritized_sampler(1, exponent=self.priority_exponent, correction=self.weight_exponent)
        if self.storage is not Storage.disk:
            place = device if self.storage is Storage.device else torch.device("cpu")
            check_memory(place, size * row_bytes(specs), rows=size, storage=self.storage.value)
        elif folder is not None:
            check_disk(folder, size * row_bytes(specs), rows=size)

    def build(
        self,
        folder: Path,
        specs: Specs,
        *,
        rows: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        goals: "Goals | None" = None,
    ) -> TensorDictReplayBuffer:
        """An empty buffer of `min(capacity, rows)` rows, with samples on `device`; hindsight needs `goals`.

        `folder` is used for `disk` only, and is scratch: replay files found there are removed, because a
        resumed run refills the buffer from its checkpoint. Raises `ConfigError` or `DiskError` before
        anything is allocated if the rows do not fit.
        """
        if batch_size > self.capacity:
            raise ConfigError(
                f"batch_size={batch_size} is larger than replay.capacity={self.capacity}: change one of them."
            )
        size = min(self.capacity, rows)
        place = device if self.storage is Storage.device else torch.device("cpu")
        sampler: Sampler = RandomSampler()
        if self.prioritized:
            sampler = prioritized_sampler(size, exponent=self.priority_exponent, correction=self.weight_exponent)
        if self.storage is Storage.disk:
            _clear(folder)
            check_disk(folder, size * row_bytes(specs), rows=size)
            storage: LazyTensorStorage = PackedMemmapStorage(
                size, layout(specs), destination=device, scratch_dir=folder, compilable=True
            )
        else:
            check_memory(place, size * row_bytes(specs), rows=size, storage=self.storage.value)
            storage = PackedTensorStorage(size, layout(specs), destination=device, device=place, compilable=True)
        kind: Callable[..., TensorDictReplayBuffer] = PackedReplayBuffer
        if self.prioritized:
            kind = partial(PrioritizedReplayBuffer, rows=rows)
        elif goals is not None:
            from sac_torchrl.replay.hindsight import EpisodeSampler, HindsightReplayBuffer  # only where it is used

            sampler = EpisodeSampler(size, ratio=self.hindsight_ratio)
            kind = partial(HindsightReplayBuffer, goals=goals)
        buffer = kind(
            storage=storage,
            sampler=sampler,
            # TorchRL's default writer wants a column for every row's index; `sample` adds it anyway.
            # `compilable` counts in plain integers instead of ones that processes share.
            writer=RingWriter(compilable=True),
            batch_size=batch_size,
            # RandomSampler draws on the storage's device and needs a generator of that device, the others on the CPU.
            generator=torch.Generator(device=place if type(sampler) is RandomSampler else "cpu").manual_seed(seed),
        )
        # A lazy storage takes its columns from the first row: give it one of the right schema.
        first = Packing(layout(specs)).unpack(torch.zeros(1, row_bytes(specs), dtype=torch.uint8))
        if self.storage is Storage.disk:
            try:
                buffer.extend(first)
            except RuntimeError as error:  # PyTorch cannot make a file of this size
                reason = str(error).rpartition(": ")[2]  # PyTorch puts the whole path before it
                raise DiskError(f"cannot make the replay rows in {folder}: {short(reason)}.") from error
            reserve(folder)
        else:
            buffer.extend(first)
        buffer.empty()
        return buffer


def layout(specs: Specs) -> Layout:
    """The columns of a row, by nested key: dtype and shape.

    `("next", "done")` is not among them: TorchRL's TD(0) target reads `terminated` alone.
    """
    observation: Layout = {key: (leaf.dtype, leaf.shape) for key, leaf in specs.leaves.items()}
    span: Layout = {(SPAN,): (torch.int32, torch.Size([1]))} if specs.n_steps > 1 else {}
    entropy: Layout = {(ENTROPY,): (torch.float32, torch.Size([]))} if specs.entropy else {}
    episode: Layout = {(EPISODE,): (torch.int32, torch.Size([2]))} if specs.episodes else {}
    return {
        **span,
        **episode,
        **entropy,
        **observation,
        ("action",): (specs.action.dtype, specs.action.shape),
        **{("next", *key): column for key, column in observation.items()},
        ("next", "reward"): (torch.float32, torch.Size([1])),
        ("next", "terminated"): (torch.bool, torch.Size([1])),
    }


def row_bytes(specs: Specs) -> int:
    """The bytes one row takes in the buffer."""
    return Packing(layout(specs)).width


def rows(batch: TensorDictBase, specs: Specs) -> TensorDictBase:
    """The rows to store, `(rows,)`, of a collector's batch `(count, T)` or `(count,)`.

    Each row spans one frame, and is of no episode yet. An action without an entropy was drawn uniformly.
    """
    if batch.ndim == 1 and specs.n_steps == 1 and not specs.entropy and not specs.episodes:
        return batch  # The buffer takes the columns of its layout and leaves the others.
    chosen = batch.select(*layout(specs), strict=False)
    device = batch.get("action").device
    if specs.n_steps > 1:
        chosen.set(SPAN, torch.ones(*batch.shape, 1, dtype=torch.int32, device=device))
    if specs.episodes:
        chosen.set(EPISODE, torch.zeros(*batch.shape, 2, dtype=torch.int32, device=device))
    if specs.entropy and ENTROPY not in chosen:
        actions = specs.action
        assert isinstance(actions, Categorical)  # no other actions come with an entropy
        chosen.set(ENTROPY, torch.full(batch.shape, math.log(actions.space.n), device=device))
    flat: TensorDictBase = chosen.reshape(-1)
    return flat


def generator(buffer: TensorDictReplayBuffer) -> torch.Generator:
    """The generator `buffer` samples from."""
    # TorchRL takes it in the constructor and `set_rng` and has no public way to read it back.
    rng = buffer._rng
    if not isinstance(rng, torch.Generator):
        raise ValueError("the replay buffer has no generator of its own: build it with `generator=`.")
    return rng


def _clear(folder: Path) -> None:
    """Make `folder`, without what `LazyMemmapStorage` made in it in an earlier run; nothing else is removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_-single-tensor-_.memmap").unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the replay folder {folder}: {error.strerror}.") from error
