"""Prioritized replay: rows with large errors are drawn more often, and count for less in the critics' loss."""

from importlib.metadata import version
from math import inf
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import PrioritizedSampler, TensorDictReplayBuffer

from sac_torchrl.errors import RECOVER, ConfigError, LearnerFault
from sac_torchrl.replay.packing import PackedReplayBuffer
from sac_torchrl.specs import ERROR


class PrioritizedReplayBuffer(PackedReplayBuffer):
    """PackedReplayBuffer that gives new rows the largest priority so far (Schaul et al. 2016, algorithm 1, line 6).

    `rows` is the number of rows after which the weights' exponent is 1.
    """

    _sampler: "PackedPrioritizedSampler"

    def __init__(self, *, rows: int, **options: Any) -> None:
        super().__init__(**options)
        self._rows = rows
        self._first = self._sampler.beta

    def extend_packed(self, packed: Tensor) -> Tensor:
        """Write rows `(n, width)` and return their positions `(n,)`."""
        positions = super().extend_packed(packed)
        self._sampler.mark_update(positions, storage=self._storage)
        done = min(1.0, self.write_count / self._rows)
        self._sampler.beta = self._first + (1 - self._first) * done
        return positions

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        """Give the rows of a batch that `sample` drew the priorities in its `td_error`, `(n,)`; raises KeyError."""
        error = data.get(ERROR, None)
        if error is None:
            raise KeyError(f"the batch has no {ERROR!r}: update the learner with it before.")
        with self._replay_lock, self._write_lock:
            self._sampler.update_priority(data.get("index"), error)


class PackedPrioritizedSampler(PrioritizedSampler):
    """TorchRL's PrioritizedSampler in a third of its operations, for rows in one dimension and trees on the CPU."""

    _max_priority: Any  # (largest, its position), or a pair of None: TorchRL's annotation says numbers

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Draw positions `(batch_size,)`, and their `priority_weight`; equal to TorchRL's for the same generator."""
        count = len(storage)
        mass = torch.rand(batch_size, generator=self._rng).mul_(self._sum_tree.query(0, count))
        index = self._sum_tree.scan_lower_bound(mass).clamp_max_(count - 1)
        weight = self._sum_tree[index].div_(self._min_tree.query(0, count)).pow_(-self.beta)
        return index, {"priority_weight": weight}

    def update_priority(self, index: Any, priority: Any, *, storage: Any = None) -> None:
        """Give the rows at `index` the priorities `priority`, both `(n,)`.

        Raises LearnerFault where one is negative or not finite: TorchRL would draw nothing but the first row from then
        on.
        """
        index = torch.as_tensor(index, device="cpu")
        priority = torch.as_tensor(priority, device="cpu").detach()
        least, largest = map(float, priority.aminmax())
        if not 0 <= least <= largest < inf:
            raise LearnerFault(f"{ERROR} is not finite: the priorities stay as they were. {RECOVER}")
        before: Any = self._max_priority[0]
        if before is None or largest > before:
            self._max_priority = priority.max(), index.flatten()[priority.argmax()]
        self._write(index, priority.add(self._eps).pow_(self.alpha))

    def mark_update(self, index: Any, *, storage: Any = None) -> None:
        """Give the new rows at `index`, `(n,)`, the largest priority so far, or 1."""
        index = torch.as_tensor(index, device="cpu")
        if self._max_priority[0] is None:
            self._max_priority = torch.tensor(1.0), index[0]
        largest: Any = self._max_priority[0]
        self._write(index, (largest + self._eps).pow_(self.alpha).expand(len(index)))

    def _write(self, index: Tensor, powers: Tensor) -> None:
        self._sum_tree[index] = powers
        self._min_tree[index] = powers


def prioritized_sampler(rows: int, *, exponent: float, correction: float) -> PackedPrioritizedSampler:
    """A sampler that draws row i in proportion to (|td_error_i| + 1e-8)^exponent.

    Its trees are on the CPU, wherever the rows are: TorchRL's wheels have none for GPUs. Raises ConfigError without
    TorchRL's C++ extension.
    """
    try:
        return PackedPrioritizedSampler(rows, alpha=exponent, beta=correction, device=torch.device("cpu"))
    except RuntimeError as error:
        raise ConfigError(
            "replay.prioritized=true needs TorchRL's C++ extension, which does not load here (torch "
            f"{version('torch')}, torchrl {version('torchrl')}): install torch>=2.14 with the torchrl that belongs to "
            "it, or give replay.prioritized=false."
        ) from error


def priorities(buffer: TensorDictReplayBuffer) -> dict[str, Any]:
    """The priorities of all rows, for a checkpoint; empty where rows are drawn uniformly."""
    sampler = buffer.sampler
    if not isinstance(sampler, PrioritizedSampler):
        return {}
    positions = torch.arange(len(buffer), device=sampler.device)
    # TorchRL has None for the pair before the first row, against its own annotation.
    newest: Any = sampler._max_priority
    largest, position = newest or (None, None)
    return {
        "powers": torch.as_tensor(sampler._sum_tree[positions]).cpu(),
        "largest": None if largest is None else float(largest),
        "position": None if position is None else int(position),
    }


def restore_priorities(buffer: TensorDictReplayBuffer, saved: dict[str, Any]) -> None:
    """Restore the priorities that `priorities` returned."""
    sampler = buffer.sampler
    if not isinstance(sampler, PrioritizedSampler) or not saved:
        return
    positions = torch.arange(len(saved["powers"]), device=sampler.device)
    powers = saved["powers"].to(sampler.device)
    sampler._sum_tree[positions] = powers
    sampler._min_tree[positions] = powers
    largest, position = saved["largest"], saved["position"]
    known: Any = None if largest is None else (torch.tensor(largest), torch.tensor(position))
    sampler._max_priority = known
