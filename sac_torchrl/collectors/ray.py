"""Collection on a Ray cluster: TorchRL's RayCollector, one for each worker, so that one that dies can be replaced."""

import copy
import importlib
import importlib.util
import ipaddress
import logging
import os
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import Module
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
    log_new_episodes,
    open_slice,
    refuse_batched,
    split,
)
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import wrapped
from sac_torchrl.errors import ConfigError, WorkerDied, short
from sac_torchrl.extras import require
from sac_torchrl.fields import check, field
from sac_torchrl.orphans import marked
from sac_torchrl.replay.buffer import rows
from sac_torchrl.signals import handlers_kept
from sac_torchrl.specs import ENTROPY, Specs


@dataclass
class Ray(CollectorConfig):
    """Workers on a Ray cluster, each with a slice of the environments and its own policy.

    A worker sends `steps` steps of its environments at a time and then makes the next ones with the weights of that
    moment, while the learner trains: at most two times `steps` steps of every environment are ahead of the learner.
    Each worker takes a CPU of the cluster.
    """

    address: str | None = field(None, "a running cluster with a token (docs/ray.md); null: one on this machine")
    workers: int | None = field(None, "workers; null: one for each environment", least=1)
    steps: int = field(16, "steps of every environment that a worker sends at a time", least=1)
    timeout: float = field(60.0, "seconds that a worker may take for its steps", above=0)
    restarts: int = field(0, "failed workers that are replaced in a run; the next failure ends it", least=0)

    def __post_init__(self) -> None:
        check(self, "collector")

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
        log_new_episodes(self.frames)
        self._budget, self._incarnations = RestartBudget(self._plan.restarts), 0
        self._workers: list[_Remote] = []
        with _cluster(self._plan.address, cpus=len(self._slices)) as self._ray:
            try:
                self._start_worker(*self._slices)
                while True:
                    collected = self._take_some()
                    if collected:
                        yield collected
            finally:
                for remote in self._workers:
                    remote.close()

    def _start_worker(self, *slices: range) -> None:
        """Start their workers all at once: each takes a while to import what it needs."""

        def one(environments: range) -> None:
            beginning = begin(self._job, environments, frames=self.frames, incarnation=self._incarnations)
            self._workers.append(
                _Remote(
                    self._ray,
                    self._job,
                    self._plan,
                    environments,
                    beginning,
                    workers=len(self._slices),
                    learned=self.frames,
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
        try:
            made = remote.receive(self._job.specs, stored=self.frames)
        except WorkerDied as died:
            remote.close()
            self._workers.remove(remote)
            self._replace(remote.environments, died)
            return [Dropped(torch.arange(remote.environments.start, remote.environments.stop))]
        remote.go_on(self._job.actor, learned=self.frames)
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
    ) -> None:
        self.environments = environments
        self._ray = ray
        self._id = job.env.id
        self._timeout = plan.timeout
        # TorchRL rounds up to whole batches.
        self._random_steps = -(-beginning.random_steps // plan.steps) * plan.steps
        policy = acting(copy.deepcopy(job.actor).cpu())
        distributed: Any = importlib.import_module("torchrl.collectors.distributed")
        scheduling: Any = importlib.import_module("ray.util.scheduling_strategies")
        self._place = self._reserve(workers)
        strategy = scheduling.PlacementGroupSchedulingStrategy(placement_group=self._place)
        try:
            self._collector = distributed.RayCollector(
                [partial(_open, job.env, environments, beginning.seeds, beginning.exploration)],
                policy,
                collector_class=RemoteCollector,
                frames_per_batch=plan.steps * len(environments),
                total_frames=-1,
                init_random_frames=beginning.random_steps * len(environments),
                device=torch.device("cpu"),
                sync=True,
                # TorchRL's own scheme opens a port on all interfaces; here the weights go with the call.
                weight_sync_schemes={},
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
        self.go_on(job.actor, learned=learned)

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
        weights = [tensor.cpu() for tensor in actor.state_dict().values()]
        self._learned = learned
        self.task = self._actor.steps.remote(weights)
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


class RemoteCollector(Collector):
    """TorchRL's Collector, which is sent the weights with the call for the next steps."""

    def steps(self, weights: list[Tensor]) -> TensorDictBase:
        """Make one batch with these weights, the values of the policy's state_dict."""
        policy = cast(Module, self.policy)
        with torch.no_grad():
            for ours, given in zip(policy.state_dict().values(), weights, strict=True):
                ours.copy_(given)
        return cast(TensorDictBase, self.next())  # type: ignore[no-untyped-call]


def _cpus(ray: Any) -> float:
    """How many the cluster has."""
    return float(ray.cluster_resources().get("CPU", 0))


def _open(env: EnvConfig, environments: range, words: list[int], exploration: int) -> EnvBase:
    """Open a slice of the environments, in a worker."""
    torch.manual_seed(exploration)
    busy = SimpleNamespace(value=0)
    envs = open_slice(env, environments, busy)
    envs.reset(seed=list(words))
    return wrapped(envs)


def _has_token() -> bool:
    """Whether Ray is told to ask for a token, and finds one where it looks."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return os.environ.get("RAY_AUTH_MODE") == "token" and (given or Path("~/.ray/auth_token").expanduser().is_file())


@contextmanager
def _cluster(address: str | None, *, cpus: int) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or to one of this machine alone that ends with the block.

    Raises ConfigError where the process is connected already, and where the cluster has fewer than `cpus` CPUs.
    """
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        raise ConfigError(
            "collector=ray: this process is connected to a Ray cluster already: call ray.shutdown() first."
        )
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _local_cluster(ray, cpus=cpus) if address is None else nullcontext({"address": address}) as place:
        try:
            with marked(), handlers_kept():
                ray.init(**place, **quiet)
            if address is None:
                _check_loopback(ray)
            if (there := _cpus(ray)) < cpus:
                raise ConfigError(
                    f"collector.workers={cpus}: the Ray cluster has {there:g} CPUs; give it more, or fewer workers."
                )
            yield ray
        finally:
            with handlers_kept():
                ray.shutdown()


@contextmanager
def _local_cluster(ray: Any, *, cpus: int) -> Iterator[dict[str, Any]]:
    """What `ray.init` is given for a cluster of this machine that nobody else can use.

    Ray takes a token from the process's environment and reads that once, when it is imported, as TorchRL does; its
    option for the address of a node turns 127.0.0.1 into the machine's address in the network, unless it thinks that
    clusters of several machines are not supported. What it does for its own tests is done here: read them again.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def reread() -> None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    several = constants.ENABLE_RAY_CLUSTER
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            with _environment(secret):
                constants.ENABLE_RAY_CLUSTER = False
                reread()
                yield {
                    "address": "local",
                    "num_cpus": cpus,
                    "include_dashboard": False,
                    "_temp_dir": folder,
                    "_node_ip_address": "127.0.0.1",
                    "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
                }
        finally:
            constants.ENABLE_RAY_CLUSTER = several
            reread()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the process's environment within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_loopback(ray: Any) -> None:
    """Raise ConfigError where Ray opened its ports to the network after all, or asks for no token."""
    raylet: Any = importlib.import_module("ray._raylet")
    addresses = [node["NodeManagerAddress"] for node in ray.nodes()]
    asks = raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN
    if not (asks and all(ipaddress.ip_address(address).is_loopback for address in addresses)):
        raise ConfigError(
            f"collector=ray: Ray {ray.__version__} keeps strangers from a local cluster in no way known here (it is at "
            f"{', '.join(addresses)}): start one with a token and give collector.address (docs/ray.md)."
        )
