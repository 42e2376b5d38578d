"""Rows with goals of hindsight, against a derivation from the rows that are stored."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import goals as toys
import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from sac_torchrl import (
    SAC,
    Async,
    Direct,
    DiscreteSAC,
    EnvConfig,
    Hindsight,
    Processes,
    ReplayConfig,
    Storage,
    TrainConfig,
    train,
)
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.envs.goals import Goals
from sac_torchrl.errors import ConfigError, EnvironmentFault
from sac_torchrl.replay.hindsight import EpisodeSampler, HindsightReplayBuffer
from sac_torchrl.replay.n_step import NumberedEpisodes

CPU = torch.device("cpu")
CAPACITY = 97
ROWS = 20_000  # drawn
RATIO = 0.75

Row = tuple[float, int]  # the name of an episode, and the step within it


def plan(id: str = "Line-v0", count: int = 1, **fields: Any) -> EnvConfig:
    return EnvConfig(id, count, plugins=["goals"], **fields)


def collected(
    env: EnvConfig, collector: CollectorConfig, *, capacity: int = CAPACITY, frames: int = 294
) -> TensorDictReplayBuffer:
    """The buffer after a run of random actions."""
    specs = replace(env.specs(), episodes=True)
    config = ReplayConfig(capacity, Storage.ram, hindsight=Hindsight.future, hindsight_ratio=RATIO)
    made = config.build(Path(), specs, rows=frames, batch_size=64, seed=0, device=CPU, goals=Goals(env))
    actor = SAC().build(specs, device=CPU).actor
    experience = collector.build(env, actor, made, specs=specs, total_frames=frames, random_frames=frames, seed=3)
    assert sum(experience) >= frames
    return made


def names(rows: TensorDictBase) -> list[Row]:
    """The episode of every row, and the step that it is of, counted from 0."""
    return [(name, int(step)) for name, step in rows["observation", "observation"].double().tolist()]


def goals_of(rows: TensorDictBase) -> Tensor:
    goals: Tensor = rows["observation", "desired_goal"].flatten()
    return goals


def check(buffer: TensorDictReplayBuffer, environments: range) -> None:
    """Derive from the stored rows which may be drawn, with which goals, and compare with what is drawn.

    `environments` is how many environments the ring may hold rows of.
    """
    stored: Any = buffer.storage[:]
    rows = dict(zip(names(stored), range(len(stored)), strict=True))
    assert len(rows) == len(stored), "every transition is there once"
    achieved = stored["next", "observation", "achieved_goal"].flatten()
    oldest = buffer.write_count % len(stored) if buffer.write_count > len(stored) else 0
    by_environment: dict[int, list[Row]] = {}
    for at in torch.arange(oldest, oldest + len(stored)) % len(stored):
        by_environment.setdefault(int(stored["episode"][at, 0]), []).append(names(stored[at.view(1)])[0])
    assert len(by_environment) in environments
    for lane in by_environment.values():
        for (name, step), (following, at) in pairwise(lane):
            assert at == (step + 1 if following == name else 0), "a lane has the rows of one environment, in order"
    running = {lane[-1][0] for lane in by_environment.values()}
    finished = [row for row in rows if row[0] not in running]
    possible = {
        (rows[row], float(achieved[rows[other]]))
        for row in finished
        for other in finished
        if other[0] == row[0] and other[1] >= row[1]
    }
    batch: Any = torch.cat([buffer.sample() for _ in range(ROWS // 64)])
    index, own = batch["index"], goals_of(stored)[batch["index"]]
    assert set(index.tolist()) == {rows[row] for row in finished}
    counts = index.bincount(minlength=len(stored))[[rows[row] for row in finished]]
    expected = ROWS / len(finished)
    assert ((counts - expected).abs() < 6 * expected**0.5).all(), "rows are drawn uniformly"
    others = goals_of(batch) != own
    assert others.double().mean().item() == pytest.approx(RATIO, abs=0.02)
    pairs = list(zip(index[others].tolist(), goals_of(batch)[others].tolist(), strict=True))
    assert set(pairs) == possible
    for row in finished[:10]:
        later = [goal for at, goal in possible if at == rows[row]]
        found = [pairs.count((rows[row], goal)) for goal in later]
        assert np.allclose(found, np.mean(found), atol=6 * np.mean(found) ** 0.5), "goals are drawn uniformly"
    assert torch.equal(batch["next", "observation", "desired_goal"], batch["observation", "desired_goal"])
    away = (
        batch["next", "observation", "achieved_goal"].double() - batch["observation", "desired_goal"].double()
    ).abs()
    assert torch.equal(batch["next", "reward"][others], -away[others].float())
    assert torch.equal(batch["next", "terminated"][others], away[others] < toys.NEAR)
    relabeled = {("observation", "desired_goal"), ("next", "observation", "desired_goal")}
    relabeled |= {("next", "reward"), ("next", "terminated")}
    for key in stored.keys(include_nested=True, leaves_only=True):
        same = ~others if key in relabeled else slice(None)
        assert torch.equal(batch[key][same], stored[key][index][same]), key


COLLECTED: dict[str, tuple[int, CollectorConfig, dict[str, Any]]] = {
    "one": (1, Direct(), {}),
    "three": (3, Direct(), {}),
    "seven": (7, Direct(), {}),
    "faults": (3, Direct(), {"kwargs": {"fails": 17}, "faults": 100}),
    "restart": (3, Processes(workers=2, restarts=1, timeout=100), {"kwargs": {"dies": "died"}}),
    "pipelined": (3, Processes(workers=2, pipelined=True, timeout=100), {}),
    "async": (3, Async(workers=2, timeout=100), {}),
}


@pytest.mark.parametrize("kind", COLLECTED)
def test_goals_are_those_of_the_same_episode_from_the_row_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    count, collector, fields = COLLECTED[kind]
    # Which environment of an asynchronous collector is behind, and has no row among the newest, is a matter of timing.
    present = range(1 if kind == "async" else count, count + 1)
    check(collected(plan(count=count, **fields), collector), present)
    if kind == "restart":
        assert (tmp_path / "died").exists()


def test_rows_put_back_are_drawn_with_the_same_goals() -> None:
    """A resume fills the ring with the rows that were in it; of an episode that the ring has half of, the rest."""
    first = collected(plan(count=3), Direct())
    again = HindsightReplayBuffer(
        storage=first.storage,
        sampler=EpisodeSampler(CAPACITY, ratio=RATIO),
        writer=first.writer,
        batch_size=64,
        generator=torch.Generator().manual_seed(0),
        goals=first._goals,  # type: ignore[attr-defined]
    )
    written, rows = first.write_count, first.storage[:].clone()
    again.empty()
    again.writer.load_state_dict({"_cursor": (written - CAPACITY) % CAPACITY, "_write_count": written - CAPACITY})
    again.extend(rows[torch.arange(written, written + CAPACITY) % CAPACITY])
    assert (again.sample() == first.sample()).all()


def test_an_episode_ends_with_its_last_row_or_where_it_is_cut() -> None:
    number = NumberedEpisodes(3)
    rows, begun = TensorDict({"x": torch.zeros(2)}, [2]), torch.tensor([1, 2])

    def numbers(*done: bool) -> list[list[int]]:
        found: list[list[int]] = number(rows, torch.tensor(done), begun)["episode"].tolist()
        return found

    assert numbers(False, True) == [[1, 1], [2, 1]]
    assert numbers(False, False) == [[1, 1], [2, 2]]
    assert "episode" not in rows
    state = number.state_dict()
    number.cut(torch.tensor([1]))
    number.cut(torch.tensor([1]))
    assert numbers(False, False) == [[1, 2], [2, 2]]
    number.load_state_dict(state)
    number.cut()
    assert numbers(False, False) == [[1, 2], [2, 3]]


def test_environments_of_other_speeds_keep_their_order_in_a_ring_that_wraps() -> None:
    """After every row of three environments, one of them slow, its episodes long: all pairs of rows and goals."""
    random, speeds = np.random.default_rng(0), [0.6, 0.3, 0.1]
    for capacity in (7, 20, 33):
        sampler = EpisodeSampler(capacity, ratio=1)
        sampler._rng = torch.Generator().manual_seed(0)
        rows, episodes = list[tuple[int, int]](), [1, 1, 1]
        for row in range(300):
            lane = int(random.choice(3, p=speeds))
            episodes[lane] += random.random() < speeds[lane] / 3
            rows.append((lane, episodes[lane]))
            sampler.note(torch.tensor([rows[-1]]), row)
            held = range(max(0, len(rows) - capacity), len(rows))
            finished = [one for one in held if rows[one][1] < episodes[rows[one][0]]]
            if finished:
                index, info = sampler.sample(None, 64)
                drawn = set(zip(index.tolist(), info["goal"].tolist(), strict=True))
                pairs = ((one, other) for one in finished for other in held if other >= one)
                same = {(one % capacity, other % capacity) for one, other in pairs if rows[one] == rows[other]}
                assert drawn <= same
            else:
                with pytest.raises(EnvironmentFault):
                    sampler.sample(None, 64)


def test_nothing_is_drawn_before_an_episode_is_finished() -> None:
    sampler = EpisodeSampler(10, ratio=0.5)
    sampler._rng = torch.Generator()
    sampler.note(torch.tensor([[0, 1], [1, 1], [0, 1]]), 0)
    with pytest.raises(EnvironmentFault, match=r"no episode is finished among the newest 3 rows.*max_episode_steps"):
        sampler.sample(None, 4)
    sampler.note(torch.tensor([[1, 2]]), 3)
    index, info = sampler.sample(None, 4)
    assert index.tolist() == [1] * 4
    assert set(info["goal"].tolist()) <= {-1, 1}


def test_methods_that_take_one_step_are_called_for_each() -> None:
    achieved, desired = np.array([[0.0], [1.0], [3.0]], np.float32), np.array([[0.1], [3.0], [1.0]], np.float32)
    for id in ("Line-v0", "One-v0"):
        goals = Goals(plan(id))
        toys.One.calls = 0
        rewards, terminated = goals(achieved, desired)
        assert np.allclose(rewards, [-0.1, -2.0, -2.0])
        assert terminated is not None
        assert terminated.tolist() == [True, False, False]
        goals.close()
    assert toys.One.calls == 3


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no goals": ("Pendulum-v1", {}, r"it observes Box.* and no Dict with achieved_goal and desired_goal"),
    "an ignored goal": ("Line-v0", {"env": {"ignore": ["achieved_goal"]}}, "has achieved_goal in env.ignore"),
    "goals of two kinds": ("Wide-v0", {}, "achieved_goal is Box.* and desired_goal Box"),
    "no rewards": ("Rewardless-v0", {}, r"it has no compute_reward\(achieved_goal, desired_goal, info\)"),
    "another reward": (
        "Costly-v0",
        {},
        "compute_reward gives .* for step 1 of a trial, where the step itself returned",
    ),
    "rewards of the info": ("Informed-v0", {}, "compute_reward raised KeyError: 'cost'.*with an empty info"),
    "another end": ("Ending-v0", {}, "compute_terminated gives 0 for step .* of a trial, .* returned 1"),
    "a wrapper": (
        "Line-v0",
        {"env": {"wrappers": ["Halved"]}},
        "its wrapper Halved has no compute_reward.*leave Halved",
    ),
    "no limit": ("Limitless-v0", {}, "its episodes have no time limit: give env.max_episode_steps"),
    "tensors": ("torch/pendulum", {}, "its environments are stepped at once"),
    "one that is open": ("Line-v0", {"env": {"count": 1, "single": True}}, "leave out env.single=true"),
    "several frames": ("Line-v0", {"n_steps": 2}, "replay.hindsight=future: a row of several frames.*n_steps=1"),
    "priorities": ("Line-v0", {"replay": {"prioritized": True}}, "replay.hindsight=future: .*replay.prioritized=false"),
    "normalization": ("Line-v0", {"normalize": True}, "replay.hindsight=future: .*normalize=false"),
    "a dataset": ("Line-v0", {"offline": {"dataset": "line/x-v0"}}, "replay.hindsight=future: .*offline.dataset=null"),
    "unseen goals": (
        "Line-v0",
        {"variant": {"critic_keys": ["observation"]}},
        "add desired_goal to variant.actor_keys",
    ),
    "early updates": ("Line-v0", {"learning_starts": 17}, "may end after 18 frames .*learning_starts of at least that"),
    "few rows": ("Line-v0", {"replay": {"capacity": 18}}, r"may end after 18 frames .*\(they are 40, 240 and 18\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_hindsight_cannot_do_is_refused_before_a_file_is_made(case: str, tmp_path: Path) -> None:
    id, keys, said = REFUSED[case]
    settings: dict[str, Any] = {
        "env": {"id": id, "count": 3, "plugins": ["goals"]},
        "replay": {"hindsight": "future", "capacity": 97},
        "total_frames": 240,
        "random_frames": 40,
        "batch_size": 16,
        "device": "cpu",
        "run": {"folder": str(tmp_path / "run")},
    }
    for key, value in keys.items():
        settings[key] = settings[key] | value if isinstance(value, dict) and key in settings else value
    with pytest.raises(ConfigError, match=said):
        train("continuous", **settings)
    assert list(tmp_path.iterdir()) == []


def test_vector_rewards_and_stored_entropies_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"leave out env.reward_weights=\[1.0\]"):
        Goals(plan(reward_weights=[1.0]))
    with pytest.raises(ConfigError, match=r"hindsight=future: the stored entropy.*variant.entropy_penalty=0"):
        TrainConfig(DiscreteSAC(entropy_penalty=0.5), replay=ReplayConfig(hindsight=Hindsight.future))
