"""Environments that this process steps together, through TorchRL's collector or one with its interface."""

import logging
from collections.abc import Generator
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, GymWrapper
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.policies import acting
from sac_torchrl.collectors.experience import Dropped, Experience, Job, Steps
from sac_torchrl.collectors.gymnasium import GymnasiumCollector
from sac_torchrl.collectors.tensors import TensorCollector
from sac_torchrl.envs import generators, state as envstate
from sac_torchrl.envs.findings import Kind
from sac_torchrl.envs.resume_check import resume_finding
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.envs.torchrl import TorchRLEnv
from sac_torchrl.errors import CheckpointError, EnvironmentFault, short
from sac_torchrl.learner.finite import FiniteFlag
from sac_torchrl.replay.buffer import rows
from sac_torchrl.trees import Tree

log = logging.getLogger(__name__)


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
        try:
            with generators.preserve(), envstate.unshared(self._env):
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
