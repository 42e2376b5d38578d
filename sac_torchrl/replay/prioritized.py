"""Prioritized replay: rows with large errors are drawn more often, and count for less in the critics' loss."""

from importlib.metadata import version
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import PrioritizedSampler, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler

from sac_torchrl.errors import RECOVER, ConfigError, LearnerFault
from sac_torchrl.replay.packing import PackedReplayBuffer
from sac_torchrl.specs import ERROR


class PrioritizedReplayBuffer(PackedReplayBuffer):
    """PackedReplayBuffer that gives new rows the largest priority so far (Schaul et al. 2016, algorithm 1, line 6)."""

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> Tensor:
        """Write rows `(n,)` and return their positions `(n,)`."""
        positions = super().extend(tensordicts)
        self._sampler.mark_update(positions, storage=self._storage)
        return positions

    def update_priority(self, index: Any, priority: Any) -> None:
        """Give the rows at `index` the priorities `priority`, `(n,)`; raises LearnerFault where one is not finite.

        TorchRL would draw nothing but the first row from then on.
        """
        if not torch.as_tensor(priority).isfinite().all():
            raise LearnerFault(f"{ERROR} is not finite: the priorities stay as they were. {RECOVER}")
        super().update_priority(index, priority)


def prioritized_sampler(rows: int, *, exponent: float, correction: float) -> Sampler:
    """TorchRL's PrioritizedSampler, which draws row i in proportion to (|td_error_i| + 1e-8)^exponent.

    Its trees are on the CPU, wherever the rows are: TorchRL's wheels have none for GPUs. Raises ConfigError without
    TorchRL's C++ extension.
    """
    try:
        return PrioritizedSampler(rows, alpha=exponent, beta=correction, device=torch.device("cpu"))
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
