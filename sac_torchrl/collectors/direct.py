"""Collection in this process."""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.policies import acting
from sac_torchrl.collectors.experience import CollectorConfig, Dropped, Experience, Job, Steps
from sac_torchrl.collectors.gymnasium import GymnasiumCollector
from sac_torchrl.envs import generators, state as envstate
from sac_torchrl.envs.check import Kind, resume_finding
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.errors import CheckpointError, EnvironmentFault, short
from sac_torchrl.learner.capture import Captured, CudaGraph
from sac_torchrl.learner.finite import FiniteFlag
from sac_torchrl.replay.buffer import rows
from sac_torchrl.replay.packing import unchecked
from sac_torchrl.trees import Tree

log = logging.getLogger(__name__)


@dataclass
class Direct(CollectorConfig):
    """All environments in this process, one step of each per iteration."""

    def start(self, job: Job) -> Experience:
        """Connect them; the policy acts with the very parameters that the learner trains, so nothing is copied."""
        return DirectExperience(job)


class DirectExperience(Experience):
    """The environments stepped together by this process."""

    def __init__(self, job: Job) -> None:
        self._env = job.env.build(device=next(job.actor.parameters()).device, tolerate_faults=True)
        super().__init__(job, device=self._env.device)
        self._running: TensorDictBase | None = None
        self._cutting = self._tested = False
        self._restorable = True
        self._watch = FiniteFlag()

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        with generators.preserve():
            self._env.set_seed(self._job.seed + self.frames)
            remaining = max(0, self._job.random_frames - self.frames)
            collector = make_collector(self._env, self._job.actor, random_frames=remaining)
            self._continue(collector)
        try:
            for batch in collector:
                self._running = collector._carrier  # what the next step begins from; TorchRL has no public name for it
                new = rows(batch, self._job.specs)
                if not isinstance(self._env, GymWrapper):  # those are looked at one by one, at their edge
                    self._watch.see(value for value in new.values(True, True) if value.is_floating_point())
                yield [Steps(new, batch["next", "done"].reshape(1, -1), slice(None))]
                if self._cutting:
                    self._store(self._n_step.cut())
                    with generators.preserve():
                        self._env.set_seed(self._job.seed + self.frames)
                        collector.reset()
                    self._cut(torch.arange(len(self._returns)))
                    self._cutting = False
        finally:
            collector.shutdown()

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
        self._cutting = not self._restorable or "missing" in state
        if not self._restorable:
            return None
        if self._cutting:
            return {"state": state, "running": None}
        running = self._running.exclude("next").flatten_keys("/")
        return {"state": state, "running": {key: value.clone() for key, value in running.items()}}

    def _test_resume(self, state: Tree) -> bool:
        """Try, on instances of its own, what a resume would do; log the finding; False where a state has no use."""
        if self._job.env.in_one:
            if "missing" in state:
                log.info("episodes are cut at every checkpoint, because %s", " and ".join(state["missing"]))
            return True
        finding, restorable = None, True
        with generators.preserve(), envstate.unshared(self._env):
            try:
                finding, restorable = resume_finding(self._job.env)
            except Exception as error:  # noqa: BLE001 - an environment may raise anything, and the run goes on
                log.warning("whether a resumed episode goes on alike could not be tried: %s", short(error))
        if finding is not None:
            good = finding.kind is Kind.note and "missing" not in state
            level = logging.DEBUG if good else logging.INFO if finding.kind is Kind.note else logging.WARNING
            log.log(level, "resume test of %s: %s", self._job.env.id, finding.text)
        return restorable

    def _continue(self, collector: Collector) -> None:
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


def step_all(env: EnvBase, actor: ProbabilisticActor, *, random_frames: int) -> Generator[TensorDictBase, None, None]:
    """Step all environments of `env` once at a time, and close them at the end: transitions `(count, 1)`."""
    with generators.preserve():
        collector = make_collector(env, actor, random_frames=random_frames)
    try:
        yield from collector
    finally:
        collector.shutdown()


def make_collector(env: EnvBase, actor: ProbabilisticActor, *, random_frames: int) -> Collector:
    """TorchRL's collector, one step of every environment in a batch, or what goes for it with a simulator."""
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


class TensorCollector:
    """The same for tensor environments: transitions `(count,)`, which hold until the next step.

    TorchRL's Collector asks the host after every step whether any episode ended. Here the reset is computed for all
    environments and taken where one ended, so that a GPU is never waited for. The policy is captured; on a GPU the
    whole step is one graph where the environment consists of nothing but tensors.
    """

    _carrier: TensorDictBase

    def __init__(self, env: TensorEnv, actor: ProbabilisticActor, *, random_frames: int) -> None:
        self._env = env
        self._policy = acting(actor)
        self._random_frames = random_frames
        self._act = Captured(self._choose)
        self._step: Callable[..., Sequence[Tensor]] = self._transition
        self.reset()
        if env.in_place and self._carrier["observation"].is_cuda:
            self._step = CudaGraph(self._transition, generators=[env.generator])

    def __iter__(self) -> Iterator[TensorDictBase]:
        made, count = 0, self._env.batch_size[0]
        while True:
            observation = self._carrier.get("observation")
            random = made < self._random_frames
            names = ["action"] if random else self._policy.out_keys
            with torch.no_grad():
                if random:
                    results = self._transition(observation, self._env.random_action())
                else:
                    results = self._step(observation)
            seen, *acted, following, reward, terminated, done, start = results
            self._carrier.set("observation", start)
            made += count
            last = {"observation": following, "reward": reward, "terminated": terminated, "done": done}
            yield unchecked({"observation": seen, **dict(zip(names, acted, strict=True)), "next": last}, count)

    def reset(self) -> None:
        """Start new episodes."""
        self._carrier = self._env.reset().select("observation")

    def shutdown(self) -> None:
        """Nothing is open."""

    def _transition(self, observation: Tensor, *actions: Tensor) -> Sequence[Tensor]:
        """Act, or take the action given, and step: what was seen and done, what came of it, and what is seen next."""
        acted = actions or self._act(observation)
        following, reward, terminated, truncated = self._env.take(acted[0])
        done = terminated | truncated
        return [observation, *acted, following, reward, terminated, done, self._env.restart(done)]

    def _choose(self, observation: Tensor) -> list[Tensor]:
        with set_exploration_type(ExplorationType.RANDOM):
            acted = self._policy(TensorDict({"observation": observation}, batch_size=self._env.batch_size))
        return [acted.get(key) for key in self._policy.out_keys]
