import dataclasses
import logging
import math
import multiprocessing
import os
import re
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
    Env,
    Experience,
    Processes,
    Replay,
    ReplayRatio,
    SacError,
    Storage,
    tanh_normal_actor,
)
from sac_torchrl.collectors import Collecting
from sac_torchrl.collectors.workers import split

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
    collector: Collecting,
    *,
    count: int,
    frames: int,
    env: Env | None = None,
    policy: nn.Module | None = None,
    random_frames: int | None = None,
) -> tuple[Experience, Callable[[], TensorDictBase]]:
    torch.manual_seed(0)
    env = env or Env("Counting-v0", count, plugins=["counting"])
    specs = env.specs()
    buffer = Replay(storage=Storage.ram).build(Path(), specs, rows=frames + count, batch_size=1, seed=0, device=CPU)
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


KINDS: dict[str, Collecting] = {
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
    # Free-running workers may have made all frames before one of them has begun.
    assert numbers == seeded or kind == "async"


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
def test_the_acting_policy_is_as_many_steps_old_as_stated(collector: Collecting, at_once: int, lag: int) -> None:
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
                patch.setattr("sac_torchrl.collectors.remote.default_workers", lambda: 4)
                steps = iter(start(collector, count=2, frames=1000)[0])
                next(steps)
                assert torch.get_num_threads() == left
                cast(Any, steps).close()
            assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(threads)


def test_a_pipelined_run_comes_out_again() -> None:
    taken = []
    for _ in range(2):
        experience, rows = start(Processes(workers=2, pipelined=True, timeout=100), count=3, frames=60)
        list(experience)
        taken.append(rows())
    assert (taken[0] == taken[1]).all()


def test_free_running_workers_stay_within_their_slack(faulty: Callable[..., Env], tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.touch()
    env = faulty(at_step=f"open({str(made)!r}, 'a').write('x')", count=3)
    policy = Told()
    experience, _ = start(
        Async(workers=2, slack=13, timeout=100), count=3, frames=1_000_000, env=env, policy=policy, random_frames=0
    )
    learned = checked = 0
    running = False
    for new_frames in experience:
        until = time.monotonic() + 100
        # Four steps of three environments: the fifth would be more than 13 frames.
        while running and made.stat().st_size < learned + 12 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made.stat().st_size <= learned + 12
        checked += running and made.stat().st_size == learned + 12
        learned += new_frames
        assert 0 <= experience.metrics()["train/policy_lag"] <= 13
        # One worker may have begun long before the other; from here on both have been told to run.
        running = all(acting.ready for acting in cast(Any, experience)._crew)
        if checked == 15:
            break


def test_a_slow_environment_holds_up_no_other_worker(faulty: Callable[..., Env]) -> None:
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
    behind = torch.tensor(stored) - told
    assert behind.min() >= 0
    assert behind.float().mean() < 30
    assert experience.metrics()["train/policy_lag"] == pytest.approx(behind.double().mean().item())


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
    assert "was killed by SIGKILL" in warning
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


@pytest.mark.parametrize("kind", ["processes", "pipelined", "async"])
def test_a_worker_that_stands_still_is_found_without_spinning(kind: str) -> None:
    experience, _ = start(dataclasses.replace(cast(Any, KINDS[kind]), timeout=5), count=2, frames=1_000_000)
    steps = iter(experience)
    next(steps)
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

gym.register("{name}-v0", Faulty)
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., Env]:
    def make(*, at_reset: str = "pass", at_step: str = "pass", observation: str = "0.0", count: int = 2) -> Env:
        name = re.sub(r"\W", "", request.node.name).title()[:40]
        tmp_path.joinpath(f"{name}_plugin.py").write_text(
            PLUGIN.format(name=name, at_reset=at_reset, at_step=at_step, observation=observation)
        )
        monkeypatch.syspath_prepend(tmp_path)
        return Env(f"{name}-v0", count, plugins=[f"{name}_plugin"])

    return make


def test_what_an_environment_raises_arrives_with_its_name_and_traceback(faulty: Callable[..., Env]) -> None:
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


def test_a_crash_loop_ends_with_the_budget(faulty: Callable[..., Env], tmp_path: Path) -> None:
    env = faulty(at_reset=f"assert not Path({str(tmp_path / 'broken')!r}).exists()", count=1)
    experience, _ = start(Processes(workers=1, restarts=2, timeout=100), count=1, frames=100, env=env)
    steps = iter(experience)
    next(steps)
    tmp_path.joinpath("broken").touch()
    began = time.monotonic()
    with pytest.raises(SacError, match="AssertionError"):
        list(steps)
    assert time.monotonic() - began < 200


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout": 0.0}, {"restarts": -1}])
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    ((key, _),) = wrong.items()
    with pytest.raises(SacError, match=f"collector.{key}="):
        Processes(**wrong)  # type: ignore[arg-type]  # one of them is a float
