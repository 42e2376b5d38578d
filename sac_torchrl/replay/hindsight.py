"""Hindsight: rows are sampled with goals that were reached later in their episode."""

from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import RandomSampler

from sac_torchrl.envs.goals import ACHIEVED, DESIRED, Goals
from sac_torchrl.errors import EnvironmentFault
from sac_torchrl.replay.packing import PackedReplayBuffer
from sac_torchrl.specs import EPISODE

# Key under which the sampler says where the row is that achieved a row's new goal.
_GOAL = "goal"


class EpisodeSampler(RandomSampler):
    """Draws rows of finished episodes uniformly, with replacement, and for some a row from the rest of their episode.

    It keeps the rows of each environment in order, whatever order environments are stored in. An episode is finished
    once its environment has begun another. All of it follows from the rows in the ring and their order, so that a
    buffer refilled from a checkpoint draws the same rows.
    """

    def __init__(self, capacity: int, *, ratio: float) -> None:
        super().__init__()
        self._capacity = capacity
        self._ratio = ratio
        # NumPy's arrays, because an operation on a few numbers takes torch several times as long.
        # The positions of finished rows, episode after episode. A row stays in the ring while fewer than `capacity`
        # rows come after it, and fewer than `capacity` older ones may be finished after it.
        self._finished = np.zeros(2 * capacity, np.int64)
        # Of the row at each position: its place in `_finished`, counted from the first of all, and its episode's end.
        self._place = np.zeros(capacity, np.int64)
        self._end = np.zeros(capacity, np.int64)
        self._empty()

    def _empty(self) -> None:
        self._entered = self._written = 0
        # By environment: the number of its running episode, and the rows of that, counted from the first of the run.
        self._running: dict[int, tuple[int, list[int]]] = {}
        self._unfinished = np.zeros(0, np.int64)  # the rows of all running episodes, ascending

    def note(self, episodes: Tensor, first: int) -> None:
        """Take in rows that were written, `(n, 2)`: environment and episode; the first is row `first` of the run."""
        self._written = first + len(episodes)
        ended = False
        for row, (environment, episode) in enumerate(episodes.tolist(), first):
            known, rows = self._running.get(environment, (episode, list[int]()))
            if known != episode:
                self._finish(rows)
                rows, ended = [], True
            rows.append(row)
            self._running[environment] = episode, rows
        if ended:
            self._unfinished = np.sort([row for _, rows in self._running.values() for row in rows])
        else:
            self._unfinished = np.concatenate([self._unfinished, np.arange(first, self._written)])

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw positions `(batch_size,)`; `goal` is where the row is that achieved the new goal, -1 for the own one.

        Raises EnvironmentFault where no episode is finished.
        """
        oldest = max(0, self._written - self._capacity)
        running = self._unfinished[np.searchsorted(self._unfinished, oldest) :]
        count = self._written - oldest - len(running)
        if not count:
            raise EnvironmentFault(
                f"replay.hindsight=future: no episode is finished among the newest {len(running)} rows: give "
                "env.max_episode_steps, or replay.hindsight=none, in a new run."
            )
        drawn, later, relabeled = torch.rand(3, batch_size, dtype=torch.float64, generator=self._rng).numpy()
        rank = (drawn * count).astype(np.int64)
        # The rank-th row but for those of running episodes: each of them that lies before it moves it on by one.
        before = np.searchsorted(running - oldest - np.arange(len(running)), rank, side="right")
        index = (oldest + rank + before) % self._capacity
        place = self._place[index]
        place = place + (later * (self._end[index] - place)).astype(np.int64)
        goal = np.where(relabeled < self._ratio, self._finished[place % len(self._finished)], -1)
        return torch.from_numpy(index), {_GOAL: torch.from_numpy(goal)}

    def _finish(self, rows: list[int]) -> None:
        """Enter the rows of an episode that are still in the ring."""
        oldest = self._written - self._capacity
        positions = np.array([row for row in rows if row >= oldest], np.int64) % self._capacity
        places = np.arange(self._entered, self._entered + len(positions))
        self._finished[places % len(self._finished)] = positions
        self._place[positions] = places
        self._entered += len(positions)
        self._end[positions] = self._entered


class HindsightReplayBuffer(PackedReplayBuffer):
    """PackedReplayBuffer that samples rows with goals that a later row of their episode achieved."""

    _sampler: EpisodeSampler

    def __init__(self, *, goals: Goals, **options: Any) -> None:
        super().__init__(**options)
        self._goals = goals

    def extend_packed(self, packed: Tensor) -> Tensor:
        """Write rows `(n, width)` and return their positions `(n,)`."""
        first = self.write_count
        positions = super().extend_packed(packed)
        self._sampler.note(self._storage.packing.unpack(packed)[EPISODE], first)
        return positions

    def sample(
        self, batch_size: int | None = None, return_info: bool = False, include_info: bool | None = None
    ) -> TensorDictBase:
        """Draw rows `(batch_size,)`; goal, reward and termination of some are those of a goal that was reached later.

        Raises TypeError for `return_info`, which the rows would not fit.
        """
        if return_info:
            raise TypeError("rows with goals of hindsight are sampled without their info.")
        batch = super().sample(batch_size, return_info, include_info)
        goal = batch.pop(_GOAL)
        chosen = (goal >= 0).nonzero().flatten()
        if len(chosen):
            following = batch["next"]
            wanted = self._storage.get(goal[chosen])["next", *ACHIEVED]
            reached = following[ACHIEVED][chosen]
            reward, terminated = self._goals(reached.cpu().numpy(), wanted.cpu().numpy())
            for rows in (batch, following):
                rows[DESIRED][chosen] = wanted
            following["reward"][chosen, 0] = torch.from_numpy(reward).to(wanted.device, torch.float32)
            if terminated is not None:
                following["terminated"][chosen, 0] = torch.from_numpy(terminated).to(wanted.device)
        return batch
