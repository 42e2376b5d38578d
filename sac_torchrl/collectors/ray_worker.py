"""A worker on a Ray cluster: a RayCollector of TorchRL with one remote collector, so that it can be replaced."""

import copy
import importlib
import time
from functools import partial
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
from sac_torchrl.collectors.experience import Dropped, Job, Steps
from sac_torchrl.collectors.ray_cluster import available_cpus
from sac_torchrl.collectors.slices import EnvironmentFailed, open_slice
from sac_torchrl.collectors.worker_process import START_SECONDS
from sac_torchrl.collectors.workers import WorkerSeeds
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import wrapped
from sac_torchrl.errors import WorkerDied, short
from sac_torchrl.replay.buffer import rows
from sac_torchrl.specs import ENTROPY, Specs


class RayWorker:
    """One worker: a RayCollector with one remote collector, and the batch that it is making."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        environments: range,
        seeds: WorkerSeeds,
        *,
        steps: int,
        timeout: float,
        workers: int,
        learned: int,
    ) -> None:
        self.environments = environments
        self._ray = ray
        self._id = job.env.id
        self._timeout = timeout
        # TorchRL rounds up to whole batches.
        self._random_steps = -(-seeds.random_steps // steps) * steps
        self._place = self._reserve(workers)
        self._collector = self._connect(job, seeds, steps)
        [self._actor] = self._collector.remote_collectors
        self.continue_with(job.actor, learned=learned)

    def _connect(self, job: Job, seeds: WorkerSeeds, steps: int) -> Any:
        """Start the remote collector. Raises WorkerDied."""
        distributed: Any = importlib.import_module("torchrl.collectors.distributed")
        scheduling: Any = importlib.import_module("ray.util.scheduling_strategies")
        strategy = scheduling.PlacementGroupSchedulingStrategy(placement_group=self._place)
        try:
            return distributed.RayCollector(
                [partial(_open, job.env, self.environments, seeds.seeds, seeds.exploration)],
                acting(copy.deepcopy(job.actor).cpu()),
                collector_class=RemoteCollector,
                frames_per_batch=steps * len(self.environments),
                total_frames=-1,
                init_random_frames=seeds.random_steps * len(self.environments),
                device=torch.device("cpu"),
                sync=True,
                # TorchRL's own scheme opens a port on all interfaces; here the weights go with the call.
                weight_sync_schemes={},
                remote_configs={"num_cpus": 1, "scheduling_strategy": strategy},
                collector_kwargs={"track_traj_ids": False, "auto_register_policy_transforms": False},
            )
        except self._ray.exceptions.RayError as error:
            self._ray.util.remove_placement_group(self._place)
            # The traceback holds the half-built collector, which would connect to the cluster again when Python ends.
            error.__traceback__ = None
            # Ray asks an unfinished Collector for its length, and reports how that failed as well.
            lines = str(error).partition("During handling of the above exception")[0].splitlines()
            why = next(line for line in reversed(lines) if line.strip())
            raise self._died(f"cannot be started ({why})", None, str(error)) from error

    def _reserve(self, workers: int) -> Any:
        """Reserve a CPU of the cluster: the wait for an actor without one has no end. Raises WorkerDied."""
        place = self._ray.util.placement_group([{"CPU": 1}])
        until = time.monotonic() + START_SECONDS
        while not place.wait(1):
            # Those of a machine that is lost count for some seconds more.
            if (there := available_cpus(self._ray)) < workers:
                why = f"the Ray cluster has {there:g} CPUs left for {workers} workers"
            elif time.monotonic() > until:
                why = f"no CPU of the Ray cluster was free for {START_SECONDS:g} s"
            else:
                continue
            self._ray.util.remove_placement_group(place)
            raise self._died(f"cannot be started ({why})")
        return place

    def continue_with(self, actor: ProbabilisticActor, *, learned: int) -> None:
        """Have the worker make its next steps with the weights of `actor`, which was trained on `learned` frames."""
        weights = [tensor.cpu() for tensor in actor.state_dict().values()]
        self._learned = learned
        self.task = self._actor.steps.remote(weights)
        self.deadline = time.monotonic() + min(self._timeout, 1e9)  # Ray counts milliseconds in 64 bits

    def receive(self, specs: Specs, *, stored: int) -> list[Steps | Dropped]:
        """Take the worker's steps; raises WorkerDied."""
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
        environments = slice(self.environments.start, self.environments.stop)
        batch = batch.transpose(0, 1)
        policy_lag = stored - self._learned + (len(batch) - 1) / 2 * len(self.environments)
        uniform, self._random_steps = self._random_steps, max(0, self._random_steps - len(batch))
        made = list[Steps | Dropped]()
        # For random actions TorchRL has zeros in place of the policy's entropy.
        for part in (batch[:uniform].exclude(ENTROPY), batch[uniform:]):
            if len(part):
                done = part["next", "done"].squeeze(-1)
                made.append(Steps(rows(part, specs), done, environments, policy_lag=policy_lag))
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

    def kill(self) -> None:
        """End the worker whatever it does."""
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


def _open(env: EnvConfig, environments: range, seeds: list[int], exploration: int) -> EnvBase:
    """Open a slice of the environments, in a worker."""
    torch.manual_seed(exploration)
    busy = SimpleNamespace(value=0)
    envs = open_slice(env, environments, busy)
    envs.reset(seed=list(seeds))
    return wrapped(envs)
