import dataclasses
import logging
import math
import multiprocessing
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import counting
import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from sac_torchrl import (
    Async,
    Direct,
    EnvConfig,
    Experience,
    Processes,
    ReplayConfig,
    ReplayRatio,
    SacError,
    Storage,
    tanh_normal_actor,
)
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.collectors.processes import _serve
from sac_torchrl.collectors.slices import split
from sac_torchrl.collectors.worker_process import Worker, listen
from sac_torchrl.collectors.workers import cores
from sac_torchrl.errors import ConfigError, WorkerDied

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []
    assert left_by(os.getpid()) == []


def left_by(pid: int) -> list[str]:
    """The files in shared memory that Python or PyTorch named after a process."""
    return [path.name for path in Path("/dev/shm").iterdir() if re.match(rf"(pym-|torch_){pid}\D", path.name)]


def start(
    collector: CollectorConfig,
    *,
    count: int,
    frames: int,
    env: EnvConfig | None = None,
    policy: nn.Module | None = None,
    random_frames: int | None = None,
) -> tuple[Experience, Callable[[], TensorDictBase]]:
    torch.manual_seed(0)
    env = env or EnvConfig("Counting-v0", count, plugins=["counting"])
    specs = env.specs()
    buffer = ReplayConfig(storage=Storage.ram).build(
        Path(), specs, rows=frames + count, batch_size=1, seed=0, device=CPU
    )
    experience = collector.build(
        env,
        tanh_normal_actor(policy or counting.AlwaysUp(), specs),
        buffer,
        specs=specs,
        total_frames=frames,
        random_frames=frames // 2 if random_frames is None else random_frames,
        seed=3,
    )
    return experience, lambda: buffer.storage[:]


KINDS: dict[str, CollectorConfig] = {
    "direct": Direct(),
    "processes": Processes(workers=2, timeout=100),
    "pipelined": Processes(workers=2, timeout=100, pipelined=True),
    "async": Async(workers=2, timeout=100),
}


def worker_pids() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


@pytest.mark.parametrize(("count", "workers"), [(1, 4), (3, 2), (16, 4)])
def test_rows_are_those_of_one_process(count: int, workers: int) -> None:
    taken = []
    for collector in (Direct(), Processes(workers=workers, timeout=100)):
        experience, rows = start(collector, count=count, frames=20 * count)
        assert list(experience) == [count] * 20
        taken.append(rows())
    assert (taken[0] == taken[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 16])
def test_every_transition_is_there_once_and_updates_are_exact(kind: str, count: int) -> None:
    experience, rows = start(KINDS[kind], count=count, frames=20 * count)
    replay_ratio, updates = ReplayRatio(0.3, after=0), 0
    for new_frames in experience:
        updates += replay_ratio.due(new_frames)
        assert updates == int(Fraction(3, 10) * experience.frames)
    assert 20 * count <= experience.frames < 21 * count
    numbers, seeded = counting.check(rows(), environments=None), {seed % 9973 for seed in counting.seeds(3, count)}
    assert numbers <= seeded, "the seeds are the same for every kind"
    first = {row["observation"][0].item(): row["action"].item() for row in reversed(list(rows()))}
    assert len(set(first.values())) == len(first), "every environment is explored for itself"
    # Free-running workers may have made all frames before one of them has begun.
    assert numbers == seeded or kind == "async"


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_a_resumed_run_plays_other_episodes_and_the_rest_of_its_random_frames(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = start(KINDS[kind], count=3, frames=30, random_frames=30)
    assert sum(first) >= 30
    resumed, rows = start(KINDS[kind], count=3, frames=120, random_frames=first.frames + 15)
    resumed.load_state_dict(first.state_dict())
    with caplog.at_level(logging.INFO):
        assert sum(resumed) == resumed.frames - first.frames
    assert "new episodes, of other seeds" in caplog.text
    assert counting.check(rows(), environments=None).isdisjoint(seed % 9973 for seed in counting.seeds(3, 3))
    for number in rows()["observation"][:, 0].unique():
        own = rows()[rows()["observation"][:, 0] == number]
        assert (own["action"].flatten() == 1).tolist() == [step >= 5 for step in range(len(own))]


class Told(nn.Module):
    """A policy that acts as it is told, without noise."""

    def __init__(self) -> None:
        super().__init__()
        self.told = nn.Parameter(torch.tensor(0.0))

    def forward(self, observation: Tensor) -> Tensor:
        told = self.told.expand(*observation.shape[:-1], 1)
        return torch.cat([told, torch.full_like(told, -20.0)], -1)


@pytest.mark.parametrize(
    ("collector", "at_once", "lag"),
    [
        (Direct(), 1, 0),
        (Processes(workers=2), 1, 0),
        (Processes(workers=2, pipelined=True, steps=1), 1, 1),
        (Processes(workers=2, pipelined=True, steps=4), 4, 1),
    ],
)
def test_the_acting_policy_is_as_many_steps_old_as_stated(collector: CollectorConfig, at_once: int, lag: int) -> None:
    policy = Told()
    experience, rows = start(collector, count=3, frames=60, policy=policy, random_frames=0)
    lags = []
    for number, new_frames in enumerate(experience, start=1):
        assert new_frames == 3 * at_once
        policy.told.data.fill_(0.01 * number)
        lags.append(experience.metrics()["train/policy_lag"])
    told = rows()["action"].atanh().mul(100).round().int().flatten().tolist()
    assert told == [max(0, step // at_once - lag) for step in range(20) for _ in range(3)]
    # Each of the steps at once is a step further from the policy than the one before.
    within = 3.0 * (at_once - 1) / 2
    assert lags == [within, *[3.0 * at_once * lag + within] * (20 // at_once - 1)]


def test_a_learner_beside_workers_leaves_them_their_cores() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        for collector, left in ((Processes(workers=2), 8), (KINDS["pipelined"], 2), (KINDS["async"], 2)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sac_torchrl.collectors.policy_workers.cores", lambda: 4)
                steps = iter(start(collector, count=2, frames=1000)[0])
                next(steps)
                assert torch.get_num_threads() == left
                cast(Any, steps).close()
            assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(threads)


def test_a_pipelined_run_is_repeatable() -> None:
    taken = []
    for _ in range(2):
        experience, rows = start(Processes(workers=2, pipelined=True, timeout=100), count=3, frames=60)
        list(experience)
        taken.append(rows())
    assert (taken[0] == taken[1]).all()


def test_free_running_workers_stay_within_their_slack(faulty: Callable[..., EnvConfig], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "made")
    steps = os.open(tmp_path / "made", os.O_RDWR)
    env = faulty(at_step=f"file = open({str(tmp_path / 'made')!r}, 'w'); file.write('x'); file.close()", count=3)
    experience, _ = start(
        Async(workers=2, slack=13, timeout=100), count=3, frames=1_000_000, env=env, policy=Told(), random_frames=0
    )

    def read(seconds: float) -> int:
        """The number of steps that were made since the last call, as soon as there are any."""
        return len(os.read(steps, 10_000)) if select.select([steps], [], [], seconds)[0] else 0

    read(0)  # an environment without a time limit is stepped before a run, to see whether it ends
    made = learned = checked = 0
    running = False
    for new_frames in experience:
        # Four steps of three environments: the fifth would be more than 13 frames.
        while running and made < learned + 12 and (new := read(100)):
            made += new
        made += read(0.05)
        assert made <= learned + 12
        checked += running and made == learned + 12
        learned += new_frames
        assert 0 <= experience.metrics()["train/policy_lag"] <= 13
        # One worker may have begun long before the other; from here on both have been told to run.
        running = all(acting.ready for acting in cast(Any, experience)._workers)
        if checked == 15:
            break
    os.close(steps)


def test_a_slow_environment_holds_up_no_other_worker(faulty: Callable[..., EnvConfig]) -> None:
    slow = counting.seeds(3, 2)[0]
    env = faulty(
        at_reset="self.seed = seed if seed is not None else self.seed",
        at_step=f"time.sleep(0.2 * (self.seed == {slow}))",
        observation=f"float(self.seed == {slow})",
    )
    experience, rows = start(Async(workers=2, timeout=100), count=2, frames=100_000, env=env)
    for _ in experience:
        if rows()["observation"].sum() >= 3:
            break
    assert 3 <= rows()["observation"].sum() < len(rows()) / 4


def test_free_running_policies_get_new_weights() -> None:
    policy = Told()
    experience, rows = start(
        Async(workers=2, slack=6, timeout=100), count=3, frames=300, policy=policy, random_frames=0
    )
    stored = list[int]()
    for new_frames in experience:
        stored += [experience.frames - new_frames] * new_frames
        policy.told.data.fill_(0.001 * experience.frames)
    told = rows()["action"].atanh().mul(1000).round().int().flatten()
    policy_lag = torch.tensor(stored) - told
    assert policy_lag.min() >= 0
    assert policy_lag.float().mean() < 30
    assert experience.metrics()["train/policy_lag"] == pytest.approx(policy_lag.double().mean().item())


@pytest.mark.parametrize("kind", [Processes, Async])
def test_a_timeout_longer_than_the_system_can_wait_is_none(kind: type[Processes | Async]) -> None:
    experience, rows = start(kind(workers=1, timeout=1e300), count=1, frames=30, random_frames=0)
    assert list(experience)[-1:] and len(rows()) == 30


def test_environments_are_dealt_out_evenly() -> None:
    assert split(7, 3) == [range(2), range(2, 4), range(4, 7)]
    assert split(2, 8) == [range(1), range(1, 2)]


def test_a_killed_worker_is_replaced_and_its_step_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    experience, rows = start(Processes(workers=3, restarts=1, timeout=100), count=7, frames=141)
    new = []
    with caplog.at_level(logging.WARNING):
        for frames in experience:
            new.append(frames)
            if len(new) == 6:
                victim = worker_pids()[0]
                os.kill(victim, signal.SIGKILL)
    # Twenty-one steps, and one of them without the two or three environments of a worker.
    assert new.count(7) == 20
    assert experience.frames == sum(new) == 140 + min(new)
    assert min(new) in (4, 5)
    numbers = counting.check(rows(), environments=None)
    assert len(numbers) == 7 + (7 - min(new)), "a new worker plays other episodes"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"process {victim}" in warning
    assert "was killed by SIGKILL, perhaps by the system for want of memory" in warning
    assert "(1 of 1)" in warning


def test_a_killed_worker_beyond_the_budget_ends_the_run() -> None:
    experience, rows = start(Processes(workers=2, timeout=100), count=4, frames=1000)
    steps = iter(experience)
    assert next(steps) == 4
    victim = worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(SacError, match=rf"environment \d of Counting-v0 .*process {victim}.*SIGKILL") as caught:
        list(steps)
    assert caught.value.exit_code == 69
    counting.check(rows(), environments=4)
    assert experience.frames == len(rows()) == 4


@pytest.mark.parametrize("kind", ["pipelined", "async"])
def test_a_killed_worker_with_a_policy_is_replaced(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    experience, rows = start(
        dataclasses.replace(cast(Any, KINDS[kind]), restarts=1), count=3, frames=200_000, random_frames=0
    )
    with caplog.at_level(logging.WARNING):
        killed = False
        for _ in experience:
            numbers = len(rows()["observation"][:, 0].unique())
            if not killed and numbers == 3:  # its environments have rows, by which they are told from the new ones
                os.kill(worker_pids()[0], signal.SIGKILL)
                killed = True
            time.sleep(0.01)  # a learner's time, in which a new worker starts before all frames are made
            if numbers > 3 and experience.frames > 300:  # by then episodes have ended
                break
    assert experience.frames == len(rows()) < 200_000
    assert len(counting.check(rows(), environments=None)) in (4, 5)
    assert "was killed by SIGKILL" in caplog.text
    assert math.isfinite(experience.metrics()["train/length"])


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_every_worker_that_replaces_another_plays_episodes_of_its_own(kind: str) -> None:
    collector = dataclasses.replace(cast(Any, KINDS[kind]), workers=1, restarts=2)
    experience, rows = start(collector, count=1, frames=200_000, random_frames=0)
    kills = 0
    for _ in experience:
        if len(rows()["observation"][:, 0].unique()) == kills + 1:
            if kills == 2:
                break
            os.kill(worker_pids()[0], signal.SIGKILL)
            kills += 1
    counting.check(rows(), environments=3)


def test_a_policy_is_given_no_new_weights_before_it_has_taken_the_last() -> None:
    policy = Told()
    experience, _ = start(KINDS["async"], count=1, frames=1_000_000, policy=policy, random_frames=0)
    steps = iter(experience)
    next(steps)
    (acting,) = cast(Any, experience)._workers
    os.kill(acting.pid, signal.SIGSTOP)
    actor = cast(Any, experience)._job.actor
    for told in (0.5, 0.9):  # at the latest the second comes while others are on their way
        policy.told.data.fill_(told)
        acting.refresh(actor, learned=0)
    assert 0.9 not in [round(value.item(), 6) for value in acting._weights.state_dict().values()]
    os.kill(acting.pid, signal.SIGCONT)
    cast(Any, steps).close()


def test_policies_are_refreshed_no_sooner_than_asked() -> None:
    policy = Told()
    collector = dataclasses.replace(cast(Any, KINDS["async"]), refresh=10_000)
    experience, rows = start(collector, count=2, frames=400, policy=policy, random_frames=0)
    for _ in experience:
        policy.told.data.fill_(0.5)
    assert rows()["action"].abs().max() < 0.1


def test_a_worker_has_more_time_to_start_than_to_answer() -> None:
    plan = EnvConfig("Counting-v0", plugins=["counting"])
    worker = Worker(_serve, range(1), plan, env=plan, timeout=0.01)
    try:
        assert listen([worker]) == [worker]
        assert worker.receive() == (plan.open().observation_space, plan.open().action_space)
    finally:
        worker.kill()


def test_a_worker_that_takes_nothing_is_found() -> None:
    plan = EnvConfig("Counting-v0", plugins=["counting"])
    worker = Worker(_serve, range(1), plan, env=plan, timeout=0.5)
    listen([worker])
    worker.receive()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    try:
        with pytest.raises(WorkerDied, match=r"did not answer for 0\.5 s"):
            worker.send(bytes(10_000_000))
    finally:
        worker.kill()


def working(experience: Experience) -> Iterator[int]:
    """The steps of an experience once all its workers are at work; `async` begins with the first that is."""
    steps = iter(experience)
    next(steps)
    while not all(acting.ready for acting in getattr(experience, "_workers", [])):
        next(steps)
    return steps


@pytest.mark.parametrize("kind", KINDS)
def test_environments_are_closed_at_the_end(kind: str, faulty: Callable[..., EnvConfig], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    env = faulty(at_close=f"with open({str(closed)!r}, 'a') as file: file.write('x')")
    experience, _ = start(KINDS[kind], count=2, frames=1_000_000, env=env)
    closed.write_text("")
    cast(Any, working(experience)).close()
    assert closed.read_text() == "xx"


@pytest.mark.parametrize("kind", ["processes", "pipelined", "async"])
def test_a_worker_that_stands_still_is_found_without_spinning(kind: str) -> None:
    experience, _ = start(dataclasses.replace(cast(Any, KINDS[kind]), timeout=5), count=2, frames=1_000_000)
    steps = working(experience)
    os.kill(worker_pids()[0], signal.SIGSTOP)
    began, busy = time.monotonic(), time.process_time()
    with pytest.raises(SacError, match=r"did not answer for 5 s"):
        list(steps)
    assert time.monotonic() - began < 10
    assert kind == "async" or time.process_time() - busy < 1, "the other worker of async goes on"


PLUGIN = """
import os, time
from pathlib import Path
from typing import Any, cast
import gymnasium as gym, numpy as np

class Faulty(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        {at_reset}
        self.steps = 0
        return np.full(1, {observation}, np.float32), {{}}
    def step(self, action):
        self.steps += 1
        {at_step}
        return np.full(1, {observation}, np.float32), 1.0, False, self.steps == 5, {{}}
    def close(self):
        {at_close}

gym.register("{name}-v0", Faulty)
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., EnvConfig]:
    def make(
        *,
        at_reset: str = "pass",
        at_step: str = "pass",
        at_close: str = "pass",
        observation: str = "0.0",
        count: int = 2,
    ) -> EnvConfig:
        name = re.sub(r"\W", "", request.node.name).title()[:40]
        tmp_path.joinpath(f"{name}_plugin.py").write_text(
            PLUGIN.format(name=name, at_reset=at_reset, at_step=at_step, at_close=at_close, observation=observation)
        )
        monkeypatch.syspath_prepend(tmp_path)
        return EnvConfig(f"{name}-v0", count, plugins=[f"{name}_plugin"])

    return make


def test_what_an_environment_raises_when_it_is_reset_names_it(faulty: Callable[..., EnvConfig]) -> None:
    env = faulty(at_reset=f"assert seed != {counting.seeds(3, 3)[1]}", count=3)
    experience, _ = start(Processes(workers=1, timeout=100), count=3, frames=102, env=env)
    with pytest.raises(SacError, match=r"environment 1 of .* raised AssertionError"):
        list(experience)


def test_what_an_environment_raises_arrives_with_its_name_and_traceback(faulty: Callable[..., EnvConfig]) -> None:
    env = faulty(
        at_reset="self.seed = seed if seed is not None else self.seed",
        at_step=f"if self.seed == {counting.seeds(3, 3)[1]} and self.steps == 4: raise ValueError('the arm is stuck')",
        count=3,
    )
    experience, rows = start(Processes(workers=1, timeout=100), count=3, frames=102, env=env)
    with pytest.raises(SacError, match=r"environment 1 of .* raised ValueError: the arm is stuck") as caught:
        list(experience)
    (note,) = caught.value.__notes__
    assert re.search(r"_plugin\.py\", line 1\d, in step", note)
    assert experience.frames == len(rows()) == 9


def test_a_crash_loop_ends_with_the_budget(faulty: Callable[..., EnvConfig], tmp_path: Path) -> None:
    env = faulty(at_reset=f"assert not Path({str(tmp_path / 'broken')!r}).exists()", count=1)
    experience, _ = start(Processes(workers=1, restarts=2, timeout=100), count=1, frames=100, env=env)
    steps = iter(experience)
    next(steps)
    tmp_path.joinpath("broken").touch()
    began = time.monotonic()
    with pytest.raises(SacError, match="AssertionError"):
        list(steps)
    assert time.monotonic() - began < 200


def test_a_slack_below_one_step_of_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"collector\.slack=2: give at least 3"):
        start(Async(slack=2), count=3, frames=30)


def test_there_are_as_many_workers_as_the_process_has_cores() -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
