"""Collection by workers that hold environments and a copy of the policy: they go on while the learner updates."""

import copy
from collections.abc import Generator
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agent import Specs
from sac_torchrl.collectors.direct import stepping
from sac_torchrl.collectors.experience import Experience, Steps
from sac_torchrl.collectors.workers import Budget, Worker, close, listen, open_numbered, split, starting, tell_resumed
from sac_torchrl.envs import Env, seeds, wrapped
from sac_torchrl.errors import WorkerDied
from sac_torchrl.packed import Packing
from sac_torchrl.replay import layout, rows


class Acting:
    """A worker with its environments and a policy of its own, which it refreshes from `weights`, shared memory.

    It makes as many steps as it was granted and not one more. `learned` is the number of frames that the weights it
    was last given have learned from.
    """

    def __init__(
        self,
        environments: range,
        actor: ProbabilisticActor,
        env: Env,
        specs: Specs,
        *,
        timeout: float,
        learned: int,
        **plan: Any,
    ) -> None:
        with starting(environments):
            self._weights = copy.deepcopy(actor).cpu().share_memory()
        self._packing = Packing(layout(specs))
        self._whose = slice(environments.start, environments.stop)
        self._version = self._used = 0
        self._learned = {0: learned}
        self._theirs: list[Tensor] | None = None
        self._ours: list[Tensor] = []
        self.granted = 0
        self.ready = False
        self._timeout = timeout
        self.worker = Worker(_serve, environments, env, self._weights, specs, plan, env=env, timeout=timeout)

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

    def receive(self, *, stored: int) -> Steps | None:
        """Take one step, made when `stored` frames were in the buffer; None where it says that it is ready."""
        answer = self.worker.receive()
        self.worker.expect(self._timeout)
        if answer is None:
            self.ready = True
            return None
        self._used, packed, done = answer
        self.granted -= 1
        transitions = self._packing.unpack(torch.from_numpy(packed))
        return Steps(transitions, torch.from_numpy(done), self._whose, behind=stored - self._learned[self._used])


class Remote(Experience):
    """What the pipelined and the free-running collection share: the workers, their seeds and their replacement."""

    def __init__(self, env: Env, *arguments: Any, workers: int, timeout: float, restarts: int, **options: Any) -> None:
        super().__init__(*arguments, count=env.count, **options)
        self._env = env
        self._slices = split(env.count, workers)
        self._timeout = timeout
        self._restarts = restarts

    def _start(self) -> None:
        tell_resumed(self.frames)
        self._budget = Budget(self._restarts)
        self._incarnations = 0
        self._crew: list[Acting] = []
        for environments in self._slices:
            self._crew.append(self._recruit(environments))

    def _close(self) -> None:
        close([acting.worker for acting in self._crew])

    def _recruit(self, environments: range) -> Acting:
        # The episodes of `direct`, as long as nothing is replaced.
        seed = self._seed + self.frames
        words = seeds(seed, self._count)
        if self._incarnations:
            words = np.random.SeedSequence([seed, self._incarnations]).generate_state(self._count).tolist()
        return Acting(
            environments,
            self._actor,
            self._env,
            self._specs,
            timeout=self._timeout,
            learned=self.frames,
            seeds=words[environments.start : environments.stop],
            exploration=int(np.random.SeedSequence([*words, environments.start]).generate_state(1)[0]),
            # Whole steps, as everywhere.
            random_frames=-(-max(0, self._random_frames - self.frames) // self._count) * len(environments),
        )

    def _replace(self, acting: Acting, died: WorkerDied) -> Acting:
        """Start another in its place: it says when it is ready."""
        self._budget.spend(died)
        acting.worker.kill()
        environments = acting.worker.environments
        self._cut(torch.arange(environments.start, environments.stop))
        self._incarnations += 1
        other = self._recruit(environments)
        self._crew[self._crew.index(acting)] = other
        return other


class Pipelined(Remote):
    """The workers make the next step of all environments while the learner learns from the last.

    The policy that acts is therefore the one from before the updates on the last step, always: `train/policy_lag` is
    `env.count`. With the same seed and nothing replaced a run comes out the same.
    """

    def _collect(self) -> Generator[list[Steps], None, None]:
        try:
            self._start()
            self._step()
            while True:
                collected = self._gather()
                self._step()
                yield collected
        finally:
            self._close()

    def _step(self) -> None:
        for acting in list(self._crew):
            if acting.ready:
                acting.refresh(self._actor, learned=self.frames)
                try:
                    acting.grant(1)
                except WorkerDied as died:
                    self._replace(acting, died)

    def _gather(self) -> list[Steps]:
        """The step of every worker, in their order, and a start of those that were not ready."""
        made: dict[int, Steps] = {}
        waiting = {acting.worker: acting for acting in self._crew}
        while waiting:
            for worker in listen(list(waiting)):
                acting = waiting.pop(worker)
                try:
                    steps = acting.receive(stored=self.frames)
                except WorkerDied as died:
                    other = self._replace(acting, died)
                    waiting[other.worker] = other
                else:
                    if steps is not None:
                        made[worker.environments.start] = steps
        return [made[start] for start in sorted(made)]


class FreeRunning(Remote):
    """Every worker steps on by itself, at most `slack` frames of all together ahead of what was learned from."""

    def __init__(self, *arguments: Any, slack: int, refresh: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ahead = slack // self._count
        self._refresh = refresh

    def _collect(self) -> Generator[list[Steps], None, None]:
        try:
            self._start()
            while True:
                collected = self._take()
                if collected:
                    yield collected
                self._grant()
        finally:
            self._close()

    def _grant(self) -> None:
        """Let everyone who is ready run as far ahead as it may, with fresh weights where they are due."""
        for acting in list(self._crew):
            if acting.ready and acting.granted < self._ahead:
                if self.frames - acting.learned >= self._refresh:
                    acting.refresh(self._actor, learned=self.frames)
                try:
                    acting.grant(self._ahead - acting.granted)
                except WorkerDied as died:
                    self._replace(acting, died)

    def _take(self) -> list[Steps]:
        """Wait for one step and take what else is there; half of what a worker may make at most, so that it goes on."""
        made = list[Steps]()
        busy = {acting.worker: acting for acting in self._crew if acting.granted or not acting.ready}
        for worker in listen(list(busy)):
            acting = busy[worker]
            try:
                for _ in range(max(1, self._ahead // 2)):
                    steps = acting.receive(stored=self.frames)
                    made += [] if steps is None else [steps]
                    if not acting.granted or not worker.connection.poll(0):
                        break
            except WorkerDied as died:
                self._replace(acting, died)
        return made


def _serve(
    connection: Connection,
    environments: range,
    busy: Any,
    env: Env,
    weights: ProbabilisticActor,
    specs: Specs,
    plan: dict[str, Any],
) -> None:
    """Make the steps that are granted."""
    envs = SyncVectorEnv(
        [partial(open_numbered, env, number, busy) for number in environments],
        autoreset_mode=AutoresetMode.DISABLED,
    )
    envs.reset(seed=plan["seeds"])
    torch.manual_seed(plan["exploration"])
    actor, packing = copy.deepcopy(weights), Packing(layout(specs))
    ours, given = _tensors(actor), _tensors(weights)
    granted, used = 0, 0
    connection.send(None)
    with closing(stepping(wrapped(envs), actor, random_frames=plan["random_frames"])) as batches:
        while True:
            while granted == 0 or connection.poll(0):
                if (message := connection.recv()) is None:
                    return
                steps, version = message
                granted += steps
                if version != used:
                    torch._foreach_copy_(ours, given)
                    used = version
            batch: TensorDictBase = next(batches)
            done = batch["next", "done"].reshape(-1).numpy()
            connection.send((used, packing.pack(rows(batch, specs)).numpy(), done))
            granted -= 1


def _tensors(actor: ProbabilisticActor) -> list[Tensor]:
    """All its parameters and buffers."""
    return list(actor.state_dict().values())
