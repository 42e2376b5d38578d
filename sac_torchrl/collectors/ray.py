"""Collection on a Ray cluster: TorchRL's RayCollector, one for each worker, so that one that dies can be replaced."""

import time
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sac_torchrl.collectors.experience import Dropped, Experience, Job, Steps
from sac_torchrl.collectors.ray_cluster import connected, has_token
from sac_torchrl.collectors.ray_worker import RayWorker
from sac_torchrl.collectors.workers import WorkersConfig, WorkerSeeds, WorkersExperience
from sac_torchrl.errors import ConfigError, WorkerDied
from sac_torchrl.extras import require
from sac_torchrl.fields import field


@dataclass
class Ray(WorkersConfig):
    """Workers on a Ray cluster, each with a slice of the environments and its own policy.

    A worker sends `steps` steps of its environments at a time and then makes the next ones with the weights of that
    moment, while the learner trains: at most two times `steps` steps of every environment are ahead of the learner.
    Each worker takes a CPU of the cluster.
    """

    workers: int | None = field(None, "workers; null: one for each environment", least=1)
    timeout: float = field(60.0, "seconds that a worker may take for its steps", above=0)
    address: str | None = field(None, "a running cluster with a token (docs/ray.md); null: one on this machine")
    steps: int = field(16, "steps of every environment that a worker sends at a time", least=1)

    def start(self, job: Job) -> Experience:
        """Connect them; raises ConfigError without Ray, and for a cluster without a token."""
        experience = RayExperience(job, self)
        require("ray", "collector=ray")
        if self.address is not None and not has_token():
            raise ConfigError(
                f"collector.address={self.address}: whoever reaches an open Ray cluster runs code on it; start it and "
                "this run with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (docs/ray.md)."
            )
        return experience

    def default_workers(self, count: int) -> int:
        """One for each environment."""
        return count


class RayExperience(WorkersExperience[RayWorker]):
    """Workers on a Ray cluster that act while the learner trains."""

    def __init__(self, job: Job, config: Ray) -> None:
        super().__init__(job, config)
        self._config = config

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        self._open()
        with connected(self._config.address, cpus=len(self._slices)) as self._ray:
            try:
                # All at once: each takes a while to import what it needs.
                with _quiet(), ThreadPoolExecutor(len(self._slices)) as pool:
                    list(pool.map(self._workers.start, self._slices))
                while True:
                    collected = self._take_some()
                    if collected:
                        yield collected
            finally:
                for worker in self._workers:
                    worker.kill()

    def _start(self, environments: range, seeds: WorkerSeeds) -> RayWorker:
        return RayWorker(
            self._ray,
            self._job,
            environments,
            seeds,
            steps=self._config.steps,
            timeout=self._config.timeout,
            workers=len(self._slices),
            learned=self.frames,
        )

    def _take_some(self) -> list[Steps | Dropped]:
        """The steps of the first worker that has some, which then makes the next ones."""
        by_task = {worker.task: worker for worker in self._workers}
        wait = max(0.0, min(worker.deadline for worker in self._workers) - time.monotonic())
        ready, _ = self._ray.wait(list(by_task), timeout=wait)
        worker = by_task[ready[0]] if ready else min(self._workers, key=lambda worker: worker.deadline)
        try:
            made = worker.receive(self._job.specs, stored=self.frames)
        except WorkerDied as died:
            with _quiet():
                return [self._replace(worker, died)]
        worker.continue_with(self._job.actor, learned=self.frames)
        return made


def _quiet() -> AbstractContextManager[object]:
    """Ignore what Ray and TorchRL warn about each other."""
    return warnings.catch_warnings(action="ignore")
