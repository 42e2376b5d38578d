"""Worker processes that hold environments and a copy of the policy, and collect while the learner trains."""

import copy
from abc import abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from sac_torchrl.collectors.experience import Dropped, Job, Steps
from sac_torchrl.collectors.slices import open_slice
from sac_torchrl.collectors.stepping import step_all
from sac_torchrl.collectors.worker_process import Worker, close, listen, starting
from sac_torchrl.collectors.workers import WorkersConfig, WorkerSeeds, WorkersExperience, cores
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import wrapped
from sac_torchrl.replay.buffer import layout, rows
from sac_torchrl.replay.packing import Packing
from sac_torchrl.specs import Specs


class Step(NamedTuple):
    """One step of a worker's `n` environments: rows `(n, width)` of bytes and `done` `(n,)`.

    `lag` is the number of stored frames that the acting policy had not been trained on.
    """

    packed: Any
    done: Any
    lag: int


class PolicyWorker(Worker):
    """A worker with its environments and its own policy, which it refreshes from shared memory.

    It makes as many steps as `grant` allows.
    """

    def __init__(self, job: Job, environments: range, seeds: WorkerSeeds, *, timeout: float, learned: int) -> None:
        with starting(environments):
            self._weights = copy.deepcopy(job.actor).cpu().share_memory()
        self._version = self._used = 0
        self._learned = {0: learned}
        self._theirs: list[Tensor] | None = None
        self._ours: list[Tensor] = []
        self.granted = 0
        self.ready = False
        arguments = (job.env, self._weights, job.specs, seeds)
        super().__init__(_serve, environments, *arguments, env=job.env, timeout=timeout)

    def refresh(self, actor: ProbabilisticActor, *, learned: int) -> None:
        """Give it the weights of `actor`, unless it has not copied the last ones yet: it must not copy half of both."""
        if self._used == self._version:
            if self._theirs is None:
                # The tensors stay the same, and looking them up takes longer than copying them.
                self._theirs, self._ours = _tensors(self._weights), _tensors(actor)
            torch._foreach_copy_(self._theirs, self._ours)
            self._version += 1
            self._learned = {self._used: self._learned[self._used], self._version: learned}

    @property
    def learned(self) -> int:
        """The number of frames that the newest weights it was given were trained on."""
        return self._learned[self._version]

    def grant(self, steps: int) -> None:
        """Have it make that many more steps of all its environments. Raises WorkerDied."""
        self.granted += steps
        self.send((steps, self._version))

    def take(self, *, stored: int) -> Step | None:
        """Receive one step, made when `stored` frames were in the buffer, or None: it is ready. Raises WorkerDied."""
        answer = self.receive()
        self.expect(self._timeout)
        if answer is None:
            self.ready = True
            return None
        self._used, packed, done = answer
        self.granted -= 1
        return Step(packed, done, stored - self._learned[self._used])

    @property
    def has_answered(self) -> bool:
        """Whether `take` would find something."""
        return bool(listen([self], patience=0.0))


class PolicyWorkers(WorkersExperience[PolicyWorker]):
    """What pipelined and asynchronous collection share."""

    def __init__(self, job: Job, config: WorkersConfig) -> None:
        super().__init__(job, config)
        self._packing = Packing(layout(job.specs))

    @abstractmethod
    def _iterate(self) -> Generator[list[Steps | Dropped], None, None]:
        """Collect from the workers, without end."""

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        self._open()
        threads = torch.get_num_threads()
        # A product that is split over two threads waits for the thread that shares its core with a worker.
        torch.set_num_threads(max(1, min(threads, cores() - len(self._slices))))
        try:
            for environments in self._slices:
                self._workers.start(environments)
            yield from self._iterate()
        finally:
            torch.set_num_threads(threads)
            close(self._workers)

    def _start(self, environments: range, seeds: WorkerSeeds) -> PolicyWorker:
        return PolicyWorker(self._job, environments, seeds, timeout=self._timeout, learned=self.frames)

    def _steps(self, made: Sequence[tuple[range, list[Step]]]) -> Steps:
        """Put together what several workers made, the same number of steps each, one step after the other."""
        packed = np.concatenate([np.stack([step.packed for step in steps]) for _, steps in made], axis=1)
        done = np.concatenate([np.stack([step.done for step in steps]) for _, steps in made], axis=1)
        first, last = made[0][0].start, made[-1][0].stop
        environments: slice | Tensor = slice(first, last)
        if done.shape[1] < last - first:  # there are gaps
            environments = torch.cat([torch.arange(part.start, part.stop) for part, _ in made])
        policy_lag = np.mean([step.lag for _, steps in made for step in steps])
        transitions = self._packing.unpack(torch.from_numpy(packed.reshape(-1, packed.shape[-1])))
        return Steps(transitions, torch.from_numpy(done), environments, policy_lag=float(policy_lag))


def _serve(
    connection: Connection,
    environments: range,
    busy: Any,
    env: EnvConfig,
    weights: ProbabilisticActor,
    specs: Specs,
    seeds: WorkerSeeds,
) -> None:
    """Make the steps that are granted."""
    envs = open_slice(env, environments, busy)
    envs.reset(seed=list(seeds.seeds))
    torch.manual_seed(seeds.exploration)
    actor, packing = copy.deepcopy(weights), Packing(layout(specs))
    own, shared = _tensors(actor), _tensors(weights)
    granted, used = 0, 0
    connection.send(None)
    random_frames = seeds.random_steps * len(environments)
    # A generator that has not made a step yet closes nothing.
    with closing(envs), closing(step_all(wrapped(envs), actor, random_frames=random_frames)) as batches:
        while True:
            while granted == 0 or connection.poll(0):
                if (message := connection.recv()) is None:
                    return
                steps, version = message
                granted += steps
                if version != used:
                    torch._foreach_copy_(own, shared)
                    used = version
            batch = next(batches)
            done = batch["next", "done"].reshape(-1).numpy()
            connection.send((used, packing.pack(rows(batch, specs)).numpy(), done))
            granted -= 1


def _tensors(actor: ProbabilisticActor) -> list[Tensor]:
    """All its parameters and buffers."""
    return list(actor.state_dict().values())
