"""The interface of every collector to the loop: an iterator that stores transitions and counts them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor

from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.replay.n_step import NStep, NumberedEpisodes
from sac_torchrl.specs import Specs


@dataclass(frozen=True)
class Job:
    """What to collect: `actor` acts in the environments of `env`, and their transitions go to `buffer`.

    The first `random_frames` actions are drawn uniformly; collection ends at `total_frames`, over all environments.
    """

    env: EnvConfig
    actor: ProbabilisticActor
    buffer: TensorDictReplayBuffer
    specs: Specs
    total_frames: int
    random_frames: int
    seed: int


@dataclass(frozen=True)
class Steps:
    """Transitions that were just collected: some steps of `n` environments.

    `rows` `(steps * n,)`, one step after the other, are what the buffer stores; `done` `(steps, n)` is true where an
    episode ended; `environments` are the indices of the `n` environments; `policy_lag` is the mean number of stored
    frames that the acting policy had not been trained on. The rows of one step where `unknown` `(n,)` end an episode
    and do not hold what it ended with: they are counted, and not stored.
    """

    rows: TensorDictBase
    done: Tensor
    environments: slice | Tensor
    policy_lag: float = 0.0
    unknown: Tensor | None = None

    def first(self, frames: int) -> "Steps":
        """As many of these steps as make that many frames, or all."""
        steps = -(-frames // max(1, self.done.shape[1]))
        if steps >= len(self.done):
            return self
        done = self.done[:steps]
        return replace(self, rows=self.rows[: done.numel()], done=done)


@dataclass(frozen=True)
class Dropped:
    """The running episodes of these environments `(n,)` broke off; they are excluded from the returns."""

    environments: Tensor


class Experience(ABC):
    """An iterator that stores new transitions and yields how many frames were just added to the buffer.

    `frames` counts the transitions of all environments since the start of the run; iteration ends at `total_frames`.
    `seed` seeds the environments. A resume continues running episodes where environments are stepped in this process.
    Where their state cannot be captured, saving it cuts the episodes, in this run as in one resumed from it, so that
    the two are the same. Environments in other processes start new episodes after a resume.
    """

    def __init__(self, job: Job, *, device: torch.device | None = None) -> None:
        count, specs = job.env.count, job.specs
        self.frames = 0
        self._job = job
        self._n_step: NStep = NStep(specs.n_steps, gamma=specs.gamma, count=count, device=device)
        if specs.episodes:
            self._n_step = NumberedEpisodes(count)
        # They stay on the device of the transitions and are read when they are logged: reading waits for the GPU.
        self._returns = torch.zeros(count, dtype=torch.float64, device=device)
        self._lengths = torch.zeros(count, dtype=torch.int64, device=device)
        self._ended = torch.zeros(3, dtype=torch.float64, device=device)
        self._policy_lag = 0.0
        self._faults = 0
        self._resumed: dict[str, Any] | None = None
        self._logged_at = time.monotonic()
        self._logged_frames = 0

    def __iter__(self) -> Iterator[int]:
        """Store transitions and yield their number; close the environments at the end."""
        if self.finished:
            return
        if self._resumed is None or self._resumed["running"] is None:
            self._store(self._n_step.cut())  # of a run that was resumed with new episodes
        with closing(self._collect()) as collected:
            for made in collected:
                before = self.frames
                for steps in self._without_faults(made) if self._job.env.faults else made:
                    if isinstance(steps, Dropped):
                        self._cut(steps.environments)
                    else:
                        self._take(steps.first(self._job.total_frames - self.frames))
                    if self.frames >= self._job.total_frames:
                        break
                if self.frames > before:
                    yield self.frames - before
                if self.frames >= self._job.total_frames:
                    break

    @property
    def finished(self) -> bool:
        """Whether `total_frames` have been collected."""
        return self.frames >= self._job.total_frames

    def metrics(self) -> dict[str, float]:
        """Mean return and length of the training episodes that ended since the last call, and frames per second.

        The first two are absent where no episode ended. `train/policy_lag` is how many of the frames in the buffer
        the acting policy had not learned from, as a mean over the new frames. `train/faults`, the faulty steps that
        were not stored, is there where `env.faults` allows some.
        """
        now, new = time.monotonic(), self.frames - self._logged_frames
        metrics = {"time/frames_per_second": new / (now - self._logged_at)}
        if new:
            metrics["train/policy_lag"] = self._policy_lag / new
        number, returns, lengths = self._ended.tolist()
        if number:
            metrics["train/return"] = returns / number
            metrics["train/length"] = lengths / number
        if self._job.env.faults:
            metrics["train/faults"] = self._faults
        self._logged_at, self._logged_frames, self._policy_lag, self._faults = now, self.frames, 0, 0
        self._ended.zero_()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The counters, the running episodes, and the ended ones that `metrics` has not reported yet."""
        environments = self._environments()
        cut = environments is None or environments["running"] is None
        going = torch.zeros_like if cut else torch.clone
        return {
            "frames": self.frames,
            "returns": going(self._returns),
            "lengths": going(self._lengths),
            "ended": self._ended.clone(),
            "faults": self._faults,
            "environments": environments,
        } | self._n_step.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved run stood, at the next iteration; raises ValueError for other environments."""
        if state["returns"].shape != self._returns.shape:
            raise ValueError(f"{len(state['returns'])} environments were saved and there are {len(self._returns)}")
        self._n_step.load_state_dict(state)
        self._resumed = state["environments"]
        self.frames = self._logged_frames = state["frames"]
        self._faults = state.get("faults", 0)  # checkpoints of before there was any have none
        for mine, saved in (
            (self._returns, state["returns"]),
            (self._lengths, state["lengths"]),
            (self._ended, state["ended"]),
        ):
            mine.copy_(saved)

    def _environments(self) -> dict[str, Any] | None:
        """The state of the environments, in the middle of their episodes, where it can be captured."""
        return None

    def lend(self) -> EnvBase:
        """The only environment there is, for an evaluation (env.single): its running episode is cut."""
        raise ValueError(f"{type(self).__name__} has no environment in this process to lend")

    def close(self) -> None:  # noqa: B027 - the others open nothing before an iteration, which closes it
        """Close environments that were opened, and that no iteration closed."""

    @abstractmethod
    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        """Open the environments and step them while the iteration lasts; close them at its end."""

    def _without_faults(self, made: list[Steps | Dropped]) -> Iterator[Steps | Dropped]:
        """Drop the steps that the environments marked as faulty by the reward NaN."""
        for steps in made:
            if isinstance(steps, Dropped) or not steps.rows["next", "reward"].isnan().any():
                yield steps
                continue
            indices = torch.arange(self._job.env.count)[steps.environments]
            for rows, done in zip(steps.rows.split(steps.done.shape[1]), steps.done, strict=True):
                faulty = rows["next", "reward"].reshape(-1).isnan()
                self._faults += int(faulty.sum())
                yield Steps(rows[~faulty], done[~faulty].unsqueeze(0), indices[~faulty], policy_lag=steps.policy_lag)
                yield Dropped(indices[faulty])

    def _take(self, steps: Steps) -> None:
        """Store them and keep the sums of the episodes that are running, and of those that ended."""
        new = len(steps.rows)
        if not new:
            return
        if steps.unknown is not None:
            indices, known = torch.arange(new, device=steps.unknown.device), ~steps.unknown
            self._store(self._n_step.cut(indices[steps.unknown]))
            self._store(self._n_step(steps.rows[known], steps.done[0, known], indices[known]))
        elif self._job.specs.n_steps == 1 and not self._job.specs.episodes:
            self._store(steps.rows)
        else:
            for rows, done in zip(steps.rows.split(steps.done.shape[1]), steps.done, strict=True):
                self._store(self._n_step(rows, done, steps.environments))
        self.frames += new
        self._policy_lag += new * steps.policy_lag
        rewards = steps.rows["next", "reward"].reshape(steps.done.shape)
        if steps.done.is_cpu and not steps.done.any():
            self._returns[steps.environments] += rewards.sum(0, dtype=torch.float64)
            self._lengths[steps.environments] += len(rewards)
            return
        for reward, done in zip(rewards, steps.done, strict=True):
            self._follow(reward, done, steps.environments)

    def _follow(self, reward: Tensor, done: Tensor, indices: slice | Tensor) -> None:
        returns, lengths = self._returns[indices] + reward, self._lengths[indices] + 1
        self._ended += torch.stack([done.double().sum(), (returns * done).sum(), (lengths * done).sum().double()])
        self._returns[indices] = returns * ~done
        self._lengths[indices] = lengths * ~done

    def _store(self, rows: TensorDictBase) -> None:
        if len(rows):
            self._job.buffer.extend(rows)

    def _cut(self, environments: Tensor) -> None:
        """Forget the running episodes of these environments; their frames stay stored."""
        self._store(self._n_step.cut(environments))
        self._returns[environments], self._lengths[environments] = 0.0, 0
