"""Collection in this process."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, GymWrapper

from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.collectors.experience import Experience, Job
from sac_torchrl.collectors.gymnasium import GymnasiumCollector, Transitions
from sac_torchrl.collectors.stepping import DirectExperience
from sac_torchrl.collectors.tensors import RecordingCollector
from sac_torchrl.envs import generators
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.envs.vector import as_arrays, as_tensors
from sac_torchrl.replay.buffer import layout, rows
from sac_torchrl.replay.n_step import DelayedNStep
from sac_torchrl.replay.packing import PackedReplayBuffer, Packing

# The columns of a row besides its observations.
_SCALARS = ("action",), ("next", "reward"), ("next", "terminated")


@dataclass
class Direct(CollectorConfig):
    """All environments in this process, one step of each per iteration."""

    def start(self, job: Job) -> Experience:
        """Connect them; the policy acts with the very parameters that the learner trains, so nothing is copied."""
        env = job.env.build(device=next(job.actor.parameters()).device, tolerate_faults=True)
        if isinstance(env, TensorEnv) and env.in_place and not job.env.faults:
            return TensorExperience(job, env)
        if isinstance(env, GymWrapper) and not job.env.faults and GymnasiumExperience.stores(job):
            return GymnasiumExperience(job, env)
        return DirectExperience(job, env)


class GymnasiumExperience(DirectExperience):
    """Environments of Gymnasium of which a row is one step: what they return is written into the bytes of the rows.

    Their types and shapes are checked at the first step: an `AgentVectorEnv` has the same at every one.
    """

    @staticmethod
    def stores(job: Job) -> bool:
        """Whether the rows of `job` hold what a step gives, and nothing else."""
        observation = job.specs.leaves
        columns = {*observation, *(("next", *key) for key in observation), *_SCALARS}
        return isinstance(job.buffer, PackedReplayBuffer) and columns == layout(job.specs).keys()

    def __init__(self, job: Job, env: EnvBase) -> None:
        super().__init__(job, env)
        self._buffer = cast(PackedReplayBuffer, job.buffer)
        self._packing, self._checked = Packing(layout(job.specs)), False
        self._packed = torch.zeros(job.env.count, self._packing.width, dtype=torch.uint8)
        columns = self._packing.views(self._packed)
        self._action, reward, terminated = (columns[key] for key in _SCALARS)
        self._reward, self._terminated = reward[:, 0], terminated[:, 0]
        self._observed = [(key[1:], columns[key], columns["next", *key]) for key in job.specs.leaves]
        self._then: Any = None
        self._sums, self._steps = self._returns.numpy(), self._lengths.numpy()

    def __iter__(self) -> Iterator[int]:
        """As for every Experience."""
        if self.finished:
            return
        collector = cast(GymnasiumCollector, self._open())
        self._then = as_arrays(collector._carrier.get("observation"))
        try:
            while True:
                made = collector.step(self._then)
                self._running, self._then = collector._carrier, made.then
                self._write(made)
                yield len(made.done)
                if self.frames >= self._job.total_frames:
                    return
                if self._cutting:
                    self._begin_again(collector)
                    self._then = as_arrays(collector._carrier.get("observation"))
        finally:
            collector.shutdown()

    def _environments(self) -> dict[str, Any] | None:
        if self._running is not None:
            self._running.set("observation", as_tensors(self._then))
        return super()._environments()

    def _write(self, made: Transitions) -> None:
        """Store the rows of a step, and count its frames and returns; raises ValueError for rows that do not fit."""
        if not self._checked:
            self._packing.pack(made.rows())
            self._checked = True
        for leaf, before, after in self._observed:
            before[...] = made.observation[leaf[0]] if leaf else made.observation
            after[...] = made.following[leaf[0]] if leaf else made.following
        self._action[...] = made.action
        self._reward[...] = made.reward
        self._terminated[...] = made.terminated
        self._buffer.extend_packed(self._packed)
        self.frames += len(made.done)
        if made.then is not made.following:  # some have ended
            self._follow(torch.from_numpy(self._reward), torch.from_numpy(made.done), slice(None))
        else:
            self._sums += self._reward
            self._steps += 1


class TensorExperience(DirectExperience):
    """Tensor environments: each transition is counted and packed in the captured step that makes it.

    The rows are stored by one copy outside of it, since their place in the buffer changes. Nothing waits for a GPU;
    rows of several frames are stored `n_steps - 1` steps after their first, see `DelayedNStep`.
    """

    _env: TensorEnv

    def __init__(self, job: Job, env: TensorEnv) -> None:
        super().__init__(job, env)
        specs = job.specs
        self._n_step = DelayedNStep(specs.n_steps, gamma=specs.gamma, count=job.env.count, device=env.device)
        self._packing = Packing(layout(specs))
        # In one place: TorchScript, which replays the step on a CPU, does not view bytes as other types.
        self._packed = torch.zeros(job.env.count, self._packing.width, dtype=torch.uint8, device=env.device)
        self._buffer = cast(PackedReplayBuffer, job.buffer)

    def __iter__(self) -> Iterator[int]:
        """As for every Experience."""
        count = self._job.env.count
        with generators.preserve():
            self._env.set_seed(self._job.seed + self.frames)
            collector = RecordingCollector(
                self._env,
                self._job.actor,
                random_frames=max(0, self._job.random_frames - self.frames),
                record=self._record,
            )
            self._continue(collector)
        steps = iter(collector)
        while not self.finished:
            packed = next(steps)
            self._running = collector._carrier
            if self.frames >= (self._job.specs.n_steps - 1) * count:  # before, no row is complete
                self._buffer.extend_packed(packed)
            self.frames += count
            yield count

    def _record(self, transition: TensorDictBase) -> Tensor:
        """Count a transition `(count,)`; return the rows to store as bytes `(count, width)`."""
        self._watch.see(value for value in transition.values(True, True) if value.is_floating_point())
        done = transition["next", "done"].reshape(-1)
        self._follow(transition["next", "reward"].reshape(-1), done, slice(None))
        return self._packing.pack(self._n_step(rows(transition, self._job.specs), done, slice(None)), self._packed)
