"""Collection in this process."""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, GymWrapper
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.policies import acting
from sac_torchrl.collectors.experience import CollectorConfig, Dropped, Experience, Job, Steps
from sac_torchrl.collectors.gymnasium import GymnasiumCollector, Transitions, leaf_of
from sac_torchrl.collectors.tensors import RecordingCollector, TensorCollector
from sac_torchrl.envs import generators, state as envstate
from sac_torchrl.envs.findings import Kind
from sac_torchrl.envs.resume_check import resume_finding
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.envs.torchrl import TorchRLEnv
from sac_torchrl.errors import CheckpointError, EnvironmentFault, short
from sac_torchrl.learner.finite import FiniteFlag
from sac_torchrl.replay.buffer import layout, rows
from sac_torchrl.replay.n_step import DelayedNStep
from sac_torchrl.replay.packing import PackedReplayBuffer, Packing
from sac_torchrl.trees import Tree

log = logging.getLogger(__name__)

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


class DirectExperience(Experience):
    """The environments stepped together by this process."""

    def __init__(self, job: Job, env: EnvBase) -> None:
        super().__init__(job, device=env.device)
        self._env = env
        self._running: TensorDictBase | None = None
        self._cutting = self._tested = False
        self._restorable = True
        self._watch = FiniteFlag(env.device)

    def _open(self) -> Collector:
        """The collector of the environments, which stand where a saved run left them or at the start of episodes."""
        with generators.preserve():
            self._env.set_seed(self._job.seed + self.frames)
            remaining = max(0, self._job.random_frames - self.frames)
            collector = make_collector(self._env, self._job.actor, random_frames=remaining)
            self._continue(collector)
        return collector

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        collector = self._open()
        try:
            for batch in collector:
                self._running = collector._carrier  # what the next step begins from; TorchRL has no public name for it
                new = rows(batch, self._job.specs)
                if not isinstance(self._env, GymWrapper):  # those are looked at one by one, at their edge
                    self._watch.see(value for value in new.values(True, True) if value.is_floating_point())
                unknown = self._env.unknown if isinstance(self._env, TorchRLEnv) else None
                yield [Steps(new, batch["next", "done"].reshape(1, -1), slice(None), unknown=unknown)]
                if self._cutting:
                    self._begin_again(collector)
        finally:
            collector.shutdown()

    def _begin_again(self, collector: Collector) -> None:
        """Start new episodes, after an evaluation or a save that cut those that were running."""
        self._store(self._n_step.cut())
        with generators.preserve():
            self._env.set_seed(self._job.seed + self.frames)
            collector.reset()
        self._cut(torch.arange(len(self._returns)))
        self._cutting = False

    def lend(self) -> EnvBase:
        """Lend the environments that are collected in; new episodes start at the next step."""
        self._cutting = True
        return self._env

    def close(self) -> None:
        """Close the environments, unless an iteration did."""
        if not self._env.is_closed:
            self._env.close()

    def metrics(self) -> dict[str, float]:
        """As for every Experience; raises EnvironmentFault if a number that was stored is not finite."""
        self._check()
        return super().metrics()

    def _check(self) -> None:
        if not self._watch.finite:
            raise EnvironmentFault(
                f"{type(self._env).__name__} made an observation, action or reward that is not finite, in the "
                f"{self.frames - self._logged_frames} frames up to {self.frames}. No checkpoint holds it."
            )

    def _environments(self) -> dict[str, Any] | None:
        self._check()
        if self._running is None:
            return self._resumed
        state = envstate.capture(self._env)
        if not self._tested:
            self._restorable, self._tested = self._test_resume(state), True
        self._cutting = self._cutting or not self._restorable or "missing" in state
        if not self._restorable:
            return None
        if self._cutting:
            return {"state": state, "running": None}
        running = self._running.exclude("next").flatten_keys("/")
        return {"state": state, "running": {key: value.clone() for key, value in running.items()}}

    def _test_resume(self, state: Tree) -> bool:
        """Try, on instances of its own, what a resume would do; log the finding; False where a state has no use."""
        if self._job.env.single:
            log.info("resume test of %s: not tried, it needs two more and env.single=true", self._job.env.id)
            return True
        if self._job.env.in_one:
            if "missing" in state:
                log.info("episodes are cut at every checkpoint, because %s", " and ".join(state["missing"]))
            return True
        finding, restorable = None, True
        with generators.preserve(), envstate.unshared(self._env):
            try:
                finding, restorable = resume_finding(self._job.env)
            except Exception as error:  # noqa: BLE001 - an environment may raise anything, and the run continues
                log.warning("whether a resumed episode continues in the same way could not be tried: %s", short(error))
        if finding is not None:
            good = finding.kind is Kind.note and "missing" not in state
            level = logging.DEBUG if good else logging.INFO if finding.kind is Kind.note else logging.WARNING
            log.log(level, "resume test of %s: %s", self._job.env.id, finding.text)
        return restorable

    def _continue(self, collector: Collector | TensorCollector) -> None:
        """Put the environments back into the middle of the episodes of a saved run, or where it began new ones."""
        if self._resumed is None:
            return
        try:
            envstate.restore(self._env, self._resumed["state"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the environments at {self.frames} frames cannot go on: {' '.join(str(error).split())}. "
                "Resume with the versions of the packages that the run was made with."
            ) from error
        if self._resumed["running"] is None:
            self._env.set_seed(self._job.seed + self.frames)
            collector.reset()
        else:
            running = TensorDict(self._resumed["running"], batch_size=self._env.batch_size).unflatten_keys("/")
            collector._carrier.update(running)
        self._resumed = None


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
        self._action, self._reward, self._terminated = (columns[key] for key in _SCALARS)
        self._observed = [(key[1:], columns[key], columns["next", *key]) for key in job.specs.leaves]
        self._sums, self._steps = self._returns.numpy(), self._lengths.numpy()

    def __iter__(self) -> Iterator[int]:
        """As for every Experience."""
        if self.finished:
            return
        collector = cast(GymnasiumCollector, self._open())
        self._then = collector._carrier.get("observation")
        try:
            while True:
                made = collector.step(self._then)
                self._running, self._then = collector._carrier, made.then
                self._write(made)
                self.frames += len(made.done)
                yield len(made.done)
                if self.frames >= self._job.total_frames:
                    return
                if self._cutting:
                    self._begin_again(collector)
                    self._then = collector._carrier.get("observation")
        finally:
            collector.shutdown()

    def _environments(self) -> dict[str, Any] | None:
        if self._running is not None:
            self._running.set("observation", self._then)
        return super()._environments()

    def _write(self, made: Transitions) -> None:
        """Store the rows of a step, and count its returns; raises ValueError for rows that do not fit."""
        if not self._checked:
            self._packing.pack(made.rows())
            self._checked = True
        for path, before, after in self._observed:
            before[...] = leaf_of(made.observation, path)
            after[...] = leaf_of(made.following, path)
        self._action[...] = made.chosen["action"].numpy()
        self._reward[:, 0] = made.reward
        self._terminated[:, 0] = made.terminated
        self._buffer.extend_packed(self._packed)
        if made.done.any():
            self._follow(torch.from_numpy(self._reward[:, 0]), torch.from_numpy(made.done), slice(None))
        else:
            self._sums += self._reward[:, 0]
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


def step_all(env: EnvBase, actor: ProbabilisticActor, *, random_frames: int) -> Generator[TensorDictBase, None, None]:
    """Step all environments of `env` once at a time, and close them at the end: transitions `(count, 1)`."""
    with generators.preserve():
        collector = make_collector(env, actor, random_frames=random_frames)
    try:
        yield from collector
    finally:
        collector.shutdown()


def make_collector(env: EnvBase, actor: ProbabilisticActor, *, random_frames: int) -> Collector:
    """TorchRL's collector, one step of every environment in a batch, or ours with the same interface."""
    if isinstance(env, TensorEnv):
        return cast(Collector, TensorCollector(env, actor, random_frames=random_frames))
    kind = GymnasiumCollector if isinstance(env, GymWrapper) else Collector
    return kind(
        env,
        acting(actor),
        frames_per_batch=env.numel(),
        total_frames=-1,
        init_random_frames=random_frames,
        policy_device=next(actor.parameters()).device,
        env_device=env.device,
        storing_device=env.device,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
