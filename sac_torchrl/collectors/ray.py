"""Collection on a Ray cluster: TorchRL's RayCollector, one for each worker, so that one that dies can be replaced."""

import copy
import importlib
import importlib.util
import ipaddress
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.policies import acting
from sac_torchrl.collectors.experience import CollectorConfig, Dropped, Experience, Job, Steps
from sac_torchrl.collectors.workers import (
    START_SECONDS,
    EnvironmentFailed,
    RestartBudget,
    WorkerSeeds,
    begin,
    check,
    log_new_episodes,
    open_slice,
    refuse_batched,
    split,
)
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import wrapped
from sac_torchrl.errors import ConfigError, WorkerDied, short
from sac_torchrl.extras import require
from sac_torchrl.replay.buffer import rows
from sac_torchrl.specs import ENTROPY, Specs


@dataclass
class Ray(CollectorConfig):
    """Workers on a Ray cluster, each with a slice of the environments and a policy of its own.

    `address` is that of a running cluster, whose authentication token must be set (docs/ray.md), or null for one on
    this machine that ends with the run. A worker sends `steps` steps of its environments at a time and then makes the
    next ones with the weights of that moment, while the learner learns: at most two times `steps` steps of every
    environment have been made that were not learned from. `workers` is how many there are (null: one for each
    environment); each takes a CPU of the cluster. `timeout` (seconds) bounds the wait for `steps` steps, and
    `restarts` is how often a worker that failed is replaced.
    """

    address: str | None = None
    workers: int | None = None
    steps: int = 16
    timeout: float = 60.0
    restarts: int = 0

    def __post_init__(self) -> None:
        check(workers=self.workers, timeout=self.timeout, restarts=self.restarts)
        if self.steps < 1:
            raise ConfigError(f"collector.steps={self.steps}: give 1 or more.")

    def start(self, job: Job) -> Experience:
        """Connect them; raises ConfigError without Ray, and for a cluster without a token."""
        refuse_batched(job.env)
        require("ray", "collector=ray")
        if self.address is not None and not _has_token():
            raise ConfigError(
                f"collector.address={self.address}: whoever reaches an open Ray cluster runs code on it; start it and "
                "this run with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (docs/ray.md)."
            )
        return RayExperience(job, self)


class RayExperience(Experience):
    """Workers on a Ray cluster that go on while the learner learns."""

    def __init__(self, job: Job, plan: Ray) -> None:
        super().__init__(job)
        self._plan = plan
        self._slices = split(job.env.count, plan.workers or job.env.count)

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        self._ray: Any = importlib.import_module("ray")
        log_new_episodes(self.frames)
        self._budget, self._incarnations = RestartBudget(self._plan.restarts), 0
        self._workers: list[_Remote] = []
        try:
            self._connect()
            self._start_worker(*self._slices)
            while True:
                collected = self._take_some()
                if collected:
                    yield collected
        finally:
            for remote in self._workers:
                remote.close()
            self._ray.shutdown()

    def _connect(self) -> None:
        # What runs on this machine alone listens on it alone. Nothing serves the dashboard.
        paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
        local: dict[str, Any] = {
            "address": "local",
            "num_cpus": len(self._slices),
            "_node_ip_address": "127.0.0.1",
            "runtime_env": paths,
        }
        place = local if self._plan.address is None else {"address": self._plan.address}
        self._ray.init(include_dashboard=False if self._plan.address is None else None, log_to_driver=False,
                       logging_level=logging.ERROR, **place)  # fmt: skip
        if (there := _cpus(self._ray)) < len(self._slices):
            raise ConfigError(
                f"collector.workers={len(self._slices)}: the Ray cluster has {there:g} CPUs; give it more, or fewer "
                "workers."
            )
        self._alone = len({node["NodeManagerAddress"] for node in self._ray.nodes() if node["Alive"]}) == 1
        if not self._alone:
            _check_name()

    def _start_worker(self, *slices: range) -> None:
        """Start their workers all at once: each takes a while to import what it needs."""

        def one(environments: range) -> None:
            beginning = begin(self._job, environments, frames=self.frames, incarnation=self._incarnations)
            learned, alone = self.frames, self._alone
            self._workers.append(
                _Remote(
                    self._ray,
                    self._job,
                    self._plan,
                    environments,
                    beginning,
                    workers=len(self._slices),
                    learned=learned,
                    alone=alone,
                )
            )

        with warnings.catch_warnings(), ThreadPoolExecutor(len(slices)) as pool:
            # Of Ray and TorchRL about each other.
            warnings.simplefilter("ignore")
            list(pool.map(one, slices))

    def _replace(self, environments: range, died: WorkerDied) -> None:
        """Start another worker."""
        while True:
            self._budget.spend(died)
            self._incarnations += 1
            try:
                self._start_worker(environments)
            except WorkerDied as again:
                died = again
            else:
                return

    def _take_some(self) -> list[Steps | Dropped]:
        """The steps of the first worker that has some, which then makes the next ones."""
        by_task = {remote.task: remote for remote in self._workers}
        wait = max(0.0, min(remote.deadline for remote in self._workers) - time.monotonic())
        ready, _ = self._ray.wait(list(by_task), timeout=wait)
        remote = by_task[ready[0]] if ready else min(self._workers, key=lambda remote: remote.deadline)
        made = list[Steps | Dropped]()
        try:
            made += remote.receive(self._job.specs, stored=self.frames)
            remote.go_on(self._job.actor, learned=self.frames)
        except WorkerDied as died:
            remote.close()
            self._workers.remove(remote)
            self._replace(remote.environments, died)
            made += [Dropped(torch.arange(remote.environments.start, remote.environments.stop))]
        return made


class _Remote:
    """One worker: a RayCollector with one remote collector, and the batch that it is making."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        plan: Ray,
        environments: range,
        beginning: WorkerSeeds,
        *,
        workers: int,
        learned: int,
        alone: bool,
    ) -> None:
        self.environments = environments
        self._ray = ray
        self._id = job.env.id
        self._timeout = plan.timeout
        # TorchRL rounds up to whole batches.
        self._random_steps = -(-beginning.random_steps // plan.steps) * plan.steps
        self._policy = acting(copy.deepcopy(job.actor).cpu())
        distributed: Any = importlib.import_module("torchrl.collectors.distributed")
        scheme: Any = importlib.import_module("torchrl.weight_update").RayWeightSyncScheme()
        scheduling: Any = importlib.import_module("ray.util.scheduling_strategies")
        self._place = self._reserve(workers)
        strategy = scheduling.PlacementGroupSchedulingStrategy(placement_group=self._place)
        try:
            self._collector = distributed.RayCollector(
                [partial(_open, job.env, environments, beginning.seeds, beginning.exploration, alone)],
                self._policy,
                collector_class=Collector,
                frames_per_batch=plan.steps * len(environments),
                total_frames=-1,
                init_random_frames=beginning.random_steps * len(environments),
                device=torch.device("cpu"),
                sync=True,
                weight_sync_schemes={"policy": scheme},
                remote_configs={"num_cpus": 1, "scheduling_strategy": strategy},
                collector_kwargs={"track_traj_ids": False, "auto_register_policy_transforms": False},
            )
        except ray.exceptions.RayError as error:
            self._ray.util.remove_placement_group(self._place)
            # What is half built hangs in its traceback, and would connect to the cluster again when Python ends.
            error.__traceback__ = None
            # Ray asks an unfinished Collector for its length, and tells how that failed as well.
            said = str(error).partition("During handling of the above exception")[0].splitlines()
            why = next(line for line in reversed(said) if line.strip())
            raise self._died(f"cannot be started ({why})", None, str(error)) from error
        [self._actor] = self._collector.remote_collectors
        try:
            self.go_on(job.actor, learned=learned)
        except WorkerDied:
            self.close()
            raise
        # It has told both sides where they meet, and is a process as large as a worker.
        with suppress(ValueError):  # It is gone already.
            ray.kill(ray.get_actor(scheme.connection_info_name))

    def _reserve(self, workers: int) -> Any:
        """A CPU of the cluster: an actor without one would be waited for without end. Raises WorkerDied."""
        place = self._ray.util.placement_group([{"CPU": 1}])
        until = time.monotonic() + START_SECONDS
        while not place.wait(1):
            # Those of a machine that is lost count for some seconds more.
            if (there := _cpus(self._ray)) < workers:
                why = f"the Ray cluster has {there:g} CPUs left for {workers} workers"
            elif time.monotonic() > until:
                why = f"no CPU of the Ray cluster was free for {START_SECONDS:g} s"
            else:
                continue
            self._ray.util.remove_placement_group(place)
            raise self._died(f"cannot be started ({why})")
        return place

    def go_on(self, actor: ProbabilisticActor, *, learned: int) -> None:
        """Have it make the next steps, with the weights of `actor`, which learned from so many frames."""
        with torch.no_grad():
            for theirs, ours in zip(self._policy.state_dict().values(), actor.state_dict().values(), strict=True):
                theirs.copy_(ours)
        try:
            self._collector.update_policy_weights_()
        except (RuntimeError, self._ray.exceptions.RayError) as error:
            raise self._unreached(error, f"did not take new weights ({short(error)})") from error
        self._learned = learned
        self.task = self._actor.next.remote()
        self.deadline = time.monotonic() + self._timeout

    def receive(self, specs: Specs, *, stored: int) -> list[Steps | Dropped]:
        """Take its steps; raises WorkerDied."""
        try:
            batch = self._ray.get(self.task, timeout=max(0.0, self.deadline - time.monotonic()))
        except self._ray.exceptions.GetTimeoutError as error:
            raise self._died(f"did not answer for {self._timeout:g} s (collector.timeout)") from error
        except self._ray.exceptions.RayTaskError as error:
            failed = error.cause
            environment = failed.number if isinstance(failed, EnvironmentFailed) else None
            raise self._died(f"raised {short(failed)}", environment, str(error)) from error
        except self._ray.exceptions.RayError as error:
            raise self._unreached(error, f"is gone ({type(error).__name__})") from error
        whose = slice(self.environments.start, self.environments.stop)
        batch = batch.transpose(0, 1)
        policy_lag = stored - self._learned + (len(batch) - 1) / 2 * len(self.environments)
        uniform, self._random_steps = self._random_steps, max(0, self._random_steps - len(batch))
        made = list[Steps | Dropped]()
        # TorchRL has zeros in place of what the policy would have told of its random actions.
        for part in (batch[:uniform].exclude(ENTROPY), batch[uniform:]):
            if len(part):
                made.append(Steps(rows(part, specs), part["next", "done"].squeeze(-1), whose, policy_lag=policy_lag))
        return made

    def _unreached(self, error: Exception, how: str) -> WorkerDied:
        """Say that it is gone, or where Ray still reaches it, `how` it failed.

        Ray takes a while to give up an actor that it cannot reach, and might send the next to the same lost machine.
        """
        unreached = self._ray.exceptions.ActorUnavailableError, self._ray.exceptions.GetTimeoutError
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                self._ray.get(self._actor.__ray_ready__.remote(), timeout=1)
            except unreached:
                time.sleep(0.1)
            except self._ray.exceptions.RayError:
                return self._died(f"is gone ({type(error).__name__})")
            else:
                break
        return self._died(how)

    def close(self) -> None:
        """End it whatever it does."""
        self._collector.shutdown()
        self._ray.util.remove_placement_group(self._place)

    def _died(self, how: str, environment: int | None = None, remote_traceback: str = "") -> WorkerDied:
        number = self.environments.start if environment is None else environment
        return WorkerDied(
            f"environment {number} of {self._id} failed: its Ray worker (environments {self.environments.start} to "
            f"{self.environments.stop - 1}) {how}.",
            environment=number,
            remote_traceback=remote_traceback,
        )


def _cpus(ray: Any) -> float:
    """How many the cluster has."""
    return float(ray.cluster_resources().get("CPU", 0))


def _check_name() -> None:
    """Raise ConfigError where this machine's own name is not an address at which other machines reach it.

    Weights are exchanged between the addresses of the names (torch.distributed).
    """
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "nothing"
    if address == "nothing" or ipaddress.ip_address(address).is_loopback:
        raise ConfigError(
            f"collector=ray on several machines: the name {name} stands for {address} on that machine, where no other "
            "reaches it: give it its address in the cluster's network, in /etc/hosts there (docs/ray.md)."
        )


def _open(env: EnvConfig, environments: range, words: list[int], exploration: int, alone: bool) -> EnvBase:
    """Open a slice of the environments, in a worker, which may be `alone` with the learner on one machine."""
    if not alone:
        _check_name()
    torch.manual_seed(exploration)
    busy = SimpleNamespace(value=0)
    envs = open_slice(env, environments, busy)
    envs.reset(seed=list(words))
    return wrapped(envs)


def _has_token() -> bool:
    """Whether Ray is told to ask for a token, and finds one where it looks."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return os.environ.get("RAY_AUTH_MODE") == "token" and (given or Path("~/.ray/auth_token").expanduser().is_file())
