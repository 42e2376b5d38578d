"""Collection by workers that hold environments and a copy of the policy: they go on while the learner updates."""

import copy
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from sac_torchrl.collectors.direct import step_all
from sac_torchrl.collectors.experience import Dropped, Experience, Job, Steps
from sac_torchrl.collectors.workers import (
    RestartBudget,
    Worker,
    WorkerSeeds,
    begin,
    close,
    default_workers,
    listen,
    log_new_episodes,
    open_slice,
    split,
    starting,
)
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import wrapped
from sac_torchrl.errors import WorkerDied
from sac_torchrl.replay.buffer import layout, rows
from sac_torchrl.replay.packing import Packing
from sac_torchrl.specs import Specs


class PolicyWorker:
    """A worker with its environments and a policy of its own, which it refreshes from `weights`, shared memory.

    It makes as many steps as it was granted and not one more. `learned` is the number of frames that the weights it
    was last given have learned from.
    """

    def __init__(self, job: Job, environments: range, beginning: WorkerSeeds, *, timeout: float, learned: int) -> None:
        with starting(environments):
            self._weights = copy.deepcopy(job.actor).cpu().share_memory()
        self._packing = Packing(layout(job.specs))
        self._version = self._used = 0
        self._learned = {0: learned}
        self._theirs: list[Tensor] | None = None
        self._ours: list[Tensor] = []
        self.granted = 0
        self.ready = False
        self._timeout = timeout
        arguments = (job.env, self._weights, job.specs, beginning)
        self.worker = Worker(_serve, environments, *arguments, env=job.env, timeout=timeout)

    def refresh(self, actor: ProbabilisticActor, *, learned: int) -> None:
        """Give it the weights of `actor`, unless it has not taken over those of before: it never sees half of both."""
        if self._used == self._version:
            if self._theirs is None:
                # The tensors stay the same, and to look them up takes longer than to copy them.
                self._theirs, self._ours = _tensors(self._weights), _tensors(actor)
            torch._foreach_copy_(self._theirs, self._ours)
            self._version += 1
            self._learned = {self._used: self._learned[self._used], self._version: learned}

    @property
    def learned(self) -> int:
        """How many frames the newest weights it was given have learned from."""
        return self._learned[self._version]

    def grant(self, steps: int) -> None:
        """Have it make that many more steps of all its environments. Raises WorkerDied."""
        self.granted += steps
        self.worker.send((steps, self._version))

    def receive(self, *, stored: int) -> "_Step | None":
        """Take one step, made when `stored` frames were in the buffer; None where it says that it is ready."""
        answer = self.worker.receive()
        self.worker.expect(self._timeout)
        if answer is None:
            self.ready = True
            return None
        self._used, packed, done = answer
        self.granted -= 1
        return packed, done, stored - self._learned[self._used]

    @property
    def has_answered(self) -> bool:
        """Whether `receive` would find something."""
        return bool(listen([self.worker], patience=0.0))


# A step of a worker's `n` environments: rows `(n, width)` of bytes, `done` `(n,)`, and how far behind the policy was.
_Step = tuple[Any, Any, int]


class PolicyWorkers(Experience):
    """What the pipelined and the free-running collection share: the workers, their seeds and their replacement."""

    def __init__(self, job: Job, *, workers: int, timeout: float, restarts: int) -> None:
        super().__init__(job)
        self._slices = split(job.env.count, workers)
        self._timeout = timeout
        self._restarts = restarts
        self._packing = Packing(layout(job.specs))

    def _start(self) -> None:
        log_new_episodes(self.frames)
        # A product that is split over two threads waits for the one whose core a worker has taken.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, min(self._threads, default_workers() - len(self._slices))))
        self._budget = RestartBudget(self._restarts)
        self._incarnations = 0
        self._workers: list[PolicyWorker] = []
        for environments in self._slices:
            self._workers.append(self._start_worker(environments))

    def _close(self) -> None:
        torch.set_num_threads(self._threads)
        close([acting.worker for acting in self._workers])

    def _start_worker(self, environments: range) -> PolicyWorker:
        beginning = begin(self._job, environments, frames=self.frames, incarnation=self._incarnations)
        return PolicyWorker(self._job, environments, beginning, timeout=self._timeout, learned=self.frames)

    def _replace(self, acting: PolicyWorker, died: WorkerDied) -> Dropped:
        """Start another in its place: it says when it is ready."""
        self._budget.spend(died)
        acting.worker.kill()
        environments = acting.worker.environments
        self._incarnations += 1
        self._workers[self._workers.index(acting)] = self._start_worker(environments)
        return Dropped(torch.arange(environments.start, environments.stop))

    def _steps(self, made: Sequence[tuple[range, list[_Step]]]) -> Steps:
        """Put together what several workers made, the same number of steps each, one step after the other."""
        packed = np.concatenate([np.stack([step[0] for step in steps]) for _, steps in made], axis=1)
        done = np.concatenate([np.stack([step[1] for step in steps]) for _, steps in made], axis=1)
        first, last = made[0][0].start, made[-1][0].stop
        whose: slice | Tensor = slice(first, last)
        if done.shape[1] < last - first:  # there are gaps
            whose = torch.cat([torch.arange(environments.start, environments.stop) for environments, _ in made])
        policy_lag = np.mean([step[2] for _, steps in made for step in steps])
        transitions = self._packing.unpack(torch.from_numpy(packed.reshape(-1, packed.shape[-1])))
        return Steps(transitions, torch.from_numpy(done), whose, policy_lag=float(policy_lag))


class PipelinedExperience(PolicyWorkers):
    """The workers make the next `steps` steps of all environments while the learner learns from the last.

    The policy that acts is therefore the one from before the updates on the last `steps` steps, always. With the same
    seed and nothing replaced a run comes out the same.
    """

    def __init__(self, job: Job, *, steps: int, **options: Any) -> None:
        super().__init__(job, **options)
        self._at_once = steps

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        try:
            self._start()
            lost = self._grant()
            while True:
                collected = lost + self._gather()
                lost = self._grant()
                yield collected
        finally:
            self._close()

    def _grant(self) -> list[Steps | Dropped]:
        lost = list[Steps | Dropped]()
        for acting in list(self._workers):
            if acting.ready:
                acting.refresh(self._job.actor, learned=self.frames)
                try:
                    acting.grant(self._at_once)
                except WorkerDied as died:
                    lost.append(self._replace(acting, died))
        return lost

    def _gather(self) -> list[Steps | Dropped]:
        """The steps of every worker, in their order, and a start of those that were not ready."""
        made = defaultdict[PolicyWorker, list[_Step]](list)
        broken, lost = list[Steps | Dropped](), list[Steps | Dropped]()
        waiting = {acting.worker: acting for acting in self._workers}
        while waiting:
            for worker in listen(list(waiting)):
                acting = waiting[worker]
                try:
                    while True:
                        step = acting.receive(stored=self.frames + len(made[acting]) * self._job.env.count)
                        if step is not None:
                            made[acting].append(step)
                        if not acting.granted or not acting.has_answered:
                            break
                    if acting.ready and not acting.granted:
                        del waiting[worker]
                except WorkerDied as died:
                    del waiting[worker]
                    place = self._workers.index(acting)
                    if steps := made.pop(acting):
                        broken.append(self._steps([(worker.environments, steps)]))
                    lost.append(self._replace(acting, died))
                    other = self._workers[place]
                    waiting[other.worker] = other
        whole = [(acting.worker.environments, made[acting]) for acting in self._workers if made[acting]]
        return [*broken, *lost, *([self._steps(whole)] if whole else [])]


class AsyncExperience(PolicyWorkers):
    """Every worker steps on by itself, at most `slack` frames of all together ahead of what was learned from."""

    def __init__(self, job: Job, *, slack: int, refresh: int, **options: Any) -> None:
        super().__init__(job, **options)
        self._ahead = slack // job.env.count
        self._refresh = refresh

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        try:
            self._start()
            lost = list[Steps | Dropped]()
            while True:
                collected = lost + self._take_some()
                if collected:
                    yield collected
                lost = self._grant()
        finally:
            self._close()

    def _grant(self) -> list[Steps | Dropped]:
        """Let everyone who is ready run as far ahead as it may, with fresh weights where they are due."""
        lost = list[Steps | Dropped]()
        for acting in list(self._workers):
            if acting.ready and acting.granted < self._ahead:
                if self.frames - acting.learned >= self._refresh:
                    acting.refresh(self._job.actor, learned=self.frames)
                try:
                    acting.grant(self._ahead - acting.granted)
                except WorkerDied as died:
                    lost.append(self._replace(acting, died))
        return lost

    def _take_some(self) -> list[Steps | Dropped]:
        """Wait for one step and take what else is there; half of what a worker may make at most, so that it goes on."""
        collected = list[Steps | Dropped]()
        busy = {acting.worker: acting for acting in self._workers if acting.granted or not acting.ready}
        for worker in listen(list(busy)):
            acting, made, lost = busy[worker], list[_Step](), list[Steps | Dropped]()
            try:
                for _ in range(max(1, self._ahead // 2)):
                    step = acting.receive(stored=self.frames)
                    made += [] if step is None else [step]
                    if not acting.granted or not acting.has_answered:
                        break
            except WorkerDied as died:
                lost.append(self._replace(acting, died))
            if made:
                collected.append(self._steps([(worker.environments, made)]))
            collected += lost
        return collected


def _serve(
    connection: Connection,
    environments: range,
    busy: Any,
    env: EnvConfig,
    weights: ProbabilisticActor,
    specs: Specs,
    beginning: WorkerSeeds,
) -> None:
    """Make the steps that are granted."""
    envs = open_slice(env, environments, busy)
    envs.reset(seed=list(beginning.seeds))
    torch.manual_seed(beginning.exploration)
    actor, packing = copy.deepcopy(weights), Packing(layout(specs))
    ours, given = _tensors(actor), _tensors(weights)
    granted, used = 0, 0
    connection.send(None)
    random_frames = beginning.random_steps * len(environments)
    # What has not made a step yet closes nothing.
    with closing(envs), closing(step_all(wrapped(envs), actor, random_frames=random_frames)) as batches:
        while True:
            while granted == 0 or connection.poll(0):
                if (message := connection.recv()) is None:
                    return
                steps, version = message
                granted += steps
                if version != used:
                    torch._foreach_copy_(ours, given)
                    used = version
            batch = next(batches)
            done = batch["next", "done"].reshape(-1).numpy()
            connection.send((used, packing.pack(rows(batch, specs)).numpy(), done))
            granted -= 1


def _tensors(actor: ProbabilisticActor) -> list[Tensor]:
    """All its parameters and buffers."""
    return list(actor.state_dict().values())
