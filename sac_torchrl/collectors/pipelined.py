"""Pipelined collection: the workers of `processes` act while the learner trains on their last steps."""

from collections import defaultdict
from collections.abc import Generator

from sac_torchrl.collectors.experience import Dropped, Job, Steps
from sac_torchrl.collectors.policy_workers import PolicyWorker, PolicyWorkers, Step
from sac_torchrl.collectors.worker_process import listen
from sac_torchrl.collectors.workers import WorkersConfig
from sac_torchrl.errors import WorkerDied


class PipelinedExperience(PolicyWorkers):
    """The workers make the next `steps` steps of all environments while the learner trains on the last.

    The acting policy is therefore always the one from before the updates on the last `steps` steps. Runs with the same
    seed are equal if no worker was replaced.
    """

    def __init__(self, job: Job, config: WorkersConfig, *, steps: int) -> None:
        super().__init__(job, config)
        self._at_once = steps

    def _iterate(self) -> Generator[list[Steps | Dropped], None, None]:
        dropped = self._grant()
        while True:
            collected = dropped + self._gather()
            dropped = self._grant()
            yield collected

    def _grant(self) -> list[Steps | Dropped]:
        """Have every worker that is ready make its next steps, with fresh weights."""
        dropped = list[Steps | Dropped]()
        for worker in list(self._workers):
            if worker.ready:
                worker.refresh(self._job.actor, learned=self.frames)
                try:
                    worker.grant(self._at_once)
                except WorkerDied as died:
                    dropped.append(self._replace(worker, died))
        return dropped

    def _gather(self) -> list[Steps | Dropped]:
        """Take the granted steps of every worker, in the order of the workers, and wait until the others are ready."""
        made = defaultdict[PolicyWorker, list[Step]](list)
        broken, dropped = list[Steps | Dropped](), list[Steps | Dropped]()
        waiting = list(self._workers)
        while waiting:
            for worker in listen(waiting):
                try:
                    self._take_all(worker, made[worker])
                    if worker.granted or not worker.ready:
                        continue
                except WorkerDied as died:
                    place = self._workers.index(worker)
                    if steps := made.pop(worker):
                        broken.append(self._steps([(worker.environments, steps)]))
                    dropped.append(self._replace(worker, died))
                    waiting.append(self._workers[place])
                waiting.remove(worker)
        whole = [(worker.environments, made[worker]) for worker in self._workers if made[worker]]
        return [*broken, *dropped, *([self._steps(whole)] if whole else [])]

    def _take_all(self, worker: PolicyWorker, made: list[Step]) -> None:
        """Append the steps that a worker has sent by now."""
        while True:
            step = worker.take(stored=self.frames + len(made) * self._job.env.count)
            if step is not None:
                made.append(step)
            if not worker.granted or not worker.has_answered:
                return
