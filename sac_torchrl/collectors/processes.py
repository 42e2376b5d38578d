"""Collection from environments in processes of their own, for simulators that are slower than the policy."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from sac_torchrl.collectors.experience import Dropped, Experience, Job, Steps
from sac_torchrl.collectors.pipelined import PipelinedExperience
from sac_torchrl.collectors.slices import open_slice
from sac_torchrl.collectors.stepping import step_all
from sac_torchrl.collectors.worker_process import Worker, close, listen
from sac_torchrl.collectors.workers import Workers, WorkersConfig, log_new_episodes, spread
from sac_torchrl.envs import generators
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import AgentVectorEnv, arrays, put, wrapped
from sac_torchrl.errors import WorkerDied
from sac_torchrl.fields import field
from sac_torchrl.replay.buffer import rows


@dataclass
class Processes(WorkersConfig):
    """Environments in worker processes, all stepped at once, one step of each per iteration.

    Where `pipelined`, the workers hold copies of the policy too, and make the next `steps` steps while the learner
    trains on the last ones: the acting policy is always the one from before those, and the number of updates is the
    same. A worker that is killed, raises or exceeds its timeout is replaced; its episodes end there, without the
    interrupted step. When `restarts` are used up the run ends with WorkerDied.
    """

    pipelined: bool = field(False, "workers act while the learner trains")
    steps: int = field(8, "steps of every environment per iteration, if pipelined", least=1)

    def start(self, job: Job) -> Experience:
        """Connect them; the policy acts here with the very parameters that the learner trains, unless pipelined."""
        return PipelinedExperience(job, self, steps=self.steps) if self.pipelined else ProcessesExperience(job, self)


class ProcessesExperience(Experience):
    """Environments in other processes, all stepped at once; the policy acts in this one."""

    def __init__(self, job: Job, config: WorkersConfig) -> None:
        super().__init__(job)
        self._open = partial(
            ProcessVectorEnv, job.env, config.slices(job.env), timeout=config.timeout, restarts=config.restarts
        )

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        log_new_episodes(self.frames)
        with closing(self._open()) as envs:
            env = wrapped(envs)
            with generators.preserve():  # TorchRL seeds torch's generator as well
                env.set_seed(self._job.seed + self.frames)
            remaining = max(0, self._job.random_frames - self.frames)
            with closing(step_all(env, self._job.actor, random_frames=remaining)) as batches:
                for batch in batches:
                    new, done = rows(batch, self._job.specs), batch["next", "done"].reshape(1, -1)
                    if envs.lost.any():
                        lost = torch.from_numpy(envs.lost)
                        kept = (~lost).nonzero().flatten()
                        yield [Dropped(lost.nonzero().flatten()), Steps(new[kept], done[:, kept], kept)]
                    else:
                        yield [Steps(new, done, slice(None))]


class ProcessVectorEnv(AgentVectorEnv):
    """`env.count` Gymnasium environments in worker processes as one vector environment.

    Gymnasium's AsyncVectorEnv has a process for each environment, does not name the one that fails and replaces none.
    `lost` is true for the environments without a last step: they are truncated, with the observation before it. Raises
    WorkerDied.
    """

    def __init__(self, env: EnvConfig, slices: list[range], *, timeout: float, restarts: int) -> None:
        self.lost = np.zeros(env.count, np.bool_)
        self._env = env
        self._timeout = timeout
        self._seed: int | None = None
        self._unstarted: set[int] = set()
        self._workers = Workers(self._start, restarts=restarts)
        try:
            for environments in slices:
                self._workers.start(environments)
            answers = self._answers(set(range(len(slices))))
        except BaseException:
            close(self._workers)
            raise
        super().__init__(env.count, *next(answer for answer in answers if answer is not None))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As for every vector environment; remembers an integer, for the workers that replace others."""
        self._seed = seed if isinstance(seed, int) else self._seed
        return super().reset(seed=seed, options=options)

    def close_extras(self, **options: Any) -> None:
        """End the workers."""
        close(self._workers)

    def _reset(self, seeds: list[int | None] | None, mask: Any) -> None:
        asked = set[int]()
        for number, worker in enumerate(self._workers):
            part = slice(worker.environments.start, worker.environments.stop)
            if mask[part].any():
                asked.add(number)
                new = self._new_seeds() if number in self._unstarted else seeds or [None] * self.num_envs
                self._unstarted.discard(number)
                self._send(number, (new[part], mask[part]))
        answers = self._answers(asked)
        for number in asked:
            if (answer := answers[number]) is not None:
                environments = self._workers[number].environments
                put(self._observations, slice(environments.start, environments.stop), answer)

    def _step(self, actions: Any) -> tuple[Any, Any, Any]:
        asked = set(range(len(self._workers))) - self._unstarted
        for number in asked:
            environments = self._workers[number].environments
            # Bytes, both ways: pickling four arrays takes 30 microseconds.
            self._send(number, actions[environments.start : environments.stop].tobytes())
        answers = self._answers(asked)
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        self.lost[:] = False
        for worker, answer in zip(self._workers, answers, strict=True):
            part = slice(worker.environments.start, worker.environments.stop)
            if answer is None:
                self.lost[part] = truncated[part] = True
                continue
            place = 0
            for column in (*arrays(self._observations), rewards, terminated, truncated):
                values = column[part]
                values[...] = np.frombuffer(answer, values.dtype, values.size, place).reshape(values.shape)
                place += values.nbytes
        return rewards, terminated, truncated

    def _start(self, environments: range, replaced: int) -> Worker:
        worker = Worker(_serve, environments, self._env, env=self._env, timeout=self._timeout)
        if replaced:  # The first workers start together: `__init__` waits for all of them.
            try:
                listen([worker])
                worker.receive()
            except BaseException:
                worker.kill()
                raise
        return worker

    def _send(self, number: int, message: Any) -> None:
        if number not in self._unstarted:
            try:
                self._workers[number].send(message)
            except WorkerDied as died:
                self._replace(number, died)

    def _answers(self, asked: set[int]) -> list[Any]:
        """The answers of the workers, in their order; None for those not asked and those that were replaced."""
        answers: list[Any] = [None] * len(self._workers)
        pending = {self._workers[number]: number for number in asked - self._unstarted}
        while pending:
            for worker in listen(list(pending)):
                number = pending.pop(worker)
                try:
                    answers[number] = worker.receive()
                except WorkerDied as died:
                    self._replace(number, died)
        return answers

    def _replace(self, number: int, died: WorkerDied) -> None:
        """Start another worker in its place; its environments begin when they are reset."""
        self._workers.replace(self._workers[number], died)
        self._unstarted.add(number)

    def _new_seeds(self) -> list[int | None]:
        if self._seed is None:
            return [None] * self.num_envs
        return [*spread(self._seed, self.num_envs, self._workers.replaced)]


def _serve(connection: Connection, environments: range, busy: Any, env: EnvConfig) -> None:
    """Step a slice of the environments at the main process's commands."""
    with closing(open_slice(env, environments, busy)) as envs:
        space = envs.action_space
        connection.send((envs.single_observation_space, envs.single_action_space))
        while (message := connection.recv()) is not None:
            if isinstance(message, bytes):
                actions = np.frombuffer(message, space.dtype).reshape(space.shape or ())
                observations, *others, _ = envs.step(actions)
                connection.send(b"".join(part.tobytes() for part in (*arrays(observations), *others)))
            else:
                new_seeds, mask = message
                connection.send(envs.reset(seed=new_seeds, options={"reset_mask": mask})[0])
