import importlib.util
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import counting
import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import Categorical, TensorDictReplayBuffer

from sac_torchrl import (
    SAC,
    Direct,
    DiscreteSAC,
    EnvConfig,
    Experience,
    NetworkConfig,
    Processes,
    Ray,
    ReplayConfig,
    ReplayRatio,
    Storage,
    categorical_actor,
    tanh_normal_actor,
)
from sac_torchrl.agents.policies import acting
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.collectors.direct import GymnasiumExperience
from sac_torchrl.collectors.experience import Dropped, Job, Steps
from sac_torchrl.collectors.gymnasium import GymnasiumCollector
from sac_torchrl.collectors.stepping import DirectExperience
from sac_torchrl.envs.vector import as_arrays
from sac_torchrl.errors import CheckpointError
from sac_torchrl.replay.buffer import layout
from sac_torchrl.specs import SPAN

CPU = torch.device("cpu")


def collect(
    folder: Path,
    *,
    count: int,
    total_frames: int,
    capacity: int = 10_000,
    random_frames: int = 0,
    seed: int = 3,
) -> tuple[Experience, TensorDictReplayBuffer]:
    plan = EnvConfig("Counting-v0", count, plugins=["counting"])
    specs = plan.specs()
    buffer = ReplayConfig(capacity, Storage.disk).build(
        folder, specs, rows=total_frames, batch_size=1, seed=0, device=CPU
    )
    actor = tanh_normal_actor(counting.AlwaysUp(), specs)
    experience = Direct().build(
        plan,
        actor,
        buffer,
        specs=specs,
        total_frames=total_frames,
        random_frames=random_frames,
        seed=seed,
    )
    return experience, buffer


@pytest.mark.parametrize("count", [1, 7])
def test_no_transition_is_lost_doubled_or_torn(tmp_path: Path, count: int) -> None:
    found, frames, capacity = [], 20 * count, 18
    for size in (1_000, capacity):
        torch.manual_seed(0)
        experience, buffer = collect(tmp_path / str(size), count=count, total_frames=frames, capacity=size)
        assert list(experience) == [count] * 20
        found.append(buffer.storage[:])
    everything, ring = found
    assert len(everything) == frames
    assert len(counting.check(everything, environments=count)) == count
    numbers = everything["observation"][:, 0].reshape(20, count)
    assert (numbers == numbers[0]).all(), "one step of all environments after the other"
    # The ring has its oldest row at the cursor.
    assert (ring[torch.arange(frames - capacity, frames) % capacity] == everything[-capacity:]).all()


@pytest.mark.parametrize("count", [1, 7])
def test_the_first_actions_are_uniform_and_the_others_the_policys(tmp_path: Path, count: int) -> None:
    torch.manual_seed(0)
    experience, buffer = collect(tmp_path, count=count, total_frames=700, random_frames=350)
    for _ in experience:
        pass
    drawn, chosen = buffer.storage[:]["action"].split(350)
    assert (chosen == 1).all()
    assert drawn.abs().max() < 1
    assert drawn.mean().item() == pytest.approx(0, abs=0.1)
    assert drawn.var(correction=0).item() == pytest.approx(1 / 3, abs=0.06)


def test_episode_returns_and_lengths_are_means_over_those_that_ended(tmp_path: Path) -> None:
    experience, buffer = collect(tmp_path, count=2, total_frames=40)
    assert "train/return" not in experience.metrics()
    for _ in experience:
        pass
    lengths = []
    for number in buffer.storage[:2]["observation"][:, 0].int().tolist():
        episode, left = 1, 20
        while left >= counting.length(number, episode):
            lengths.append(counting.length(number, episode))
            left -= lengths[-1]
            episode += 1
    metrics = experience.metrics()
    assert metrics["train/length"] == pytest.approx(sum(lengths) / len(lengths))
    assert metrics["train/return"] == pytest.approx(sum(n * (n + 1) / 2 for n in lengths) / len(lengths))
    assert "train/return" not in experience.metrics()


@pytest.mark.parametrize("ratio", [0.25, 1, 4])
@pytest.mark.parametrize("count", [1, 8])
def test_updates_follow_frames_over_all_environments(tmp_path: Path, ratio: float, count: int) -> None:
    experience, _ = collect(tmp_path, count=count, total_frames=400, random_frames=80)
    replay_ratio, updates = ReplayRatio(ratio, after=80), 0
    for new_frames in experience:
        updates += replay_ratio.due(new_frames)
        assert updates == int(ratio * max(0, experience.frames - 80))
    assert experience.frames == 400
    assert updates == ratio * 320


def test_a_resumed_experience_continues_in_the_middle_of_its_episodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, rows = collect(tmp_path / "whole", count=2, total_frames=30, random_frames=24)
    taken: dict[str, Any] = {}
    for _ in whole:
        if whole.frames == 10:
            taken = whole.state_dict() | {"draws": torch.get_rng_state()}
    resumed, later = collect(tmp_path / "resumed", count=2, total_frames=30, random_frames=24, seed=4)
    began = monotonic()
    torch.set_rng_state(taken.pop("draws"))
    resumed.load_state_dict(taken)
    assert resumed.state_dict()["environments"] is taken["environments"], "nothing is lost before the first step"
    assert sum(resumed) == 20
    took = monotonic() - began
    assert resumed.finished
    for key in ("observation", "action", ("next", "reward")):
        assert torch.equal(later.storage[:20][key], rows.storage[10:30][key])
    # The seven steps that are left of the random ones, and then the policy's.
    assert (later.storage[:20]["action"].flatten() == 1).tolist() == [False] * 14 + [True] * 6
    told = [one.metrics() for one in (whole, resumed)]
    assert told[0]["train/return"] == told[1]["train/return"]
    assert told[1]["time/frames_per_second"] <= 20 / took, "of its own frames"


def test_environments_that_cannot_go_on_are_named(tmp_path: Path) -> None:
    first, _ = collect(tmp_path / "first", count=1, total_frames=5)
    list(first)
    state = first.state_dict()
    state["environments"]["state"]["envs"][0][-1]["class"] = "Calculating"  # as another version calls it
    resumed, buffer = collect(tmp_path / "resumed", count=1, total_frames=10)
    resumed.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"environments at 5 frames cannot go on: .*Calculating") as failure:
        list(resumed)
    assert "\n" not in str(failure.value)
    assert len(buffer) == 0


def test_a_finished_experience_collects_nothing(tmp_path: Path) -> None:
    first, _ = collect(tmp_path / "first", count=1, total_frames=5)
    for _ in first:
        pass
    experience, buffer = collect(tmp_path / "second", count=1, total_frames=5)
    experience.load_state_dict(first.state_dict())
    assert list(experience) == []
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("id", "count"), [("Pendulum-v1", 3), ("HalfCheetah-v5", 1), ("CartPole-v1", 2), ("FrozenLake-v1", 2)]
)
def test_the_shorter_way_collects_what_torchrls_collector_collects(id: str, count: int) -> None:
    """Bit for bit, through random actions, the policy's and the ends of episodes."""
    plan = EnvConfig(id, count)
    specs = plan.specs()
    network = NetworkConfig([16]).build
    torch.manual_seed(0)
    if isinstance(specs.action, Categorical):
        actor = categorical_actor(network(specs.observation, outputs=specs.action.space.n, device=CPU), specs)
    else:
        actor = tanh_normal_actor(network(specs.observation, outputs=2 * specs.action.shape[-1], device=CPU), specs)
    collected = []
    for kind in (Collector, GymnasiumCollector):
        torch.manual_seed(1)
        env = plan.build(seed=5)
        batches = kind(
            env,
            acting(actor),
            frames_per_batch=count,
            total_frames=-1,
            init_random_frames=20 * count,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
        )
        columns = layout(specs)
        collected.append([batch.select(*columns).reshape(-1) for batch, _ in zip(batches, range(250), strict=False)])
        batches.shutdown()
    ended = 0
    for expected, found in zip(*collected, strict=True):
        assert all(torch.equal(value, expected[key]) for key, value in found.items(True, True))
        ended += int(expected["next", "terminated"].sum())
    assert ended or id in ("Pendulum-v1", "HalfCheetah-v5")


@pytest.mark.parametrize(
    ("kind", "n_steps", "random"),
    [
        (Direct(), 1, 20),
        (Direct(), 3, 20),
        (Processes(workers=2, pipelined=True), 1, 20),
        pytest.param(
            *(Ray(workers=1, steps=4), 1, 24),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
                # Ray's, about itself.
                pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
                pytest.mark.filterwarnings("ignore::ResourceWarning"),
            ],
        ),
    ],
    ids=["direct", "three steps", "pipelined", "ray"],
)
def test_rows_hold_the_entropy_of_the_policy_that_chose_their_action(
    tmp_path: Path, kind: CollectorConfig, n_steps: int, random: int
) -> None:
    plan = EnvConfig("FrozenLake-v1", 2)
    specs = replace(plan.specs(), entropy=True, n_steps=n_steps)
    torch.manual_seed(0)
    network = NetworkConfig([16]).build(specs.observation, outputs=4, device=CPU)
    with torch.no_grad():
        for leaf in network.parameters():
            leaf.mul_(4)  # away from the uniform policy
    actor = categorical_actor(network, specs)
    buffer = ReplayConfig(storage=Storage.ram).build(tmp_path, specs, rows=60, batch_size=1, seed=0, device=CPU)
    experience = kind.build(plan, actor, buffer, specs=specs, total_frames=60, random_frames=20, seed=1)
    for _ in experience:
        pass
    rows = buffer.storage[:]
    uniform = torch.isclose(rows["entropy"], torch.tensor(4.0).log())
    assert rows["entropy"].shape == (len(rows),)
    assert int(uniform.sum()) == random
    expected = actor.get_dist(TensorDict({"observation": rows["observation"]}, [len(rows)])).entropy()
    torch.testing.assert_close(rows["entropy"][~uniform], expected[~uniform])
    assert expected[~uniform].std() > 0.05


@pytest.mark.parametrize(
    ("id", "count"),
    [("Counting-v0", 1), ("CountingLeaves-v0", 3), ("FrozenLake-v1", 2), ("Masked-v0", 2), ("HalfCheetah-v5", 1)],
)
def test_rows_written_in_place_are_those_of_the_collectors_batches(tmp_path: Path, id: str, count: int) -> None:
    """Bit for bit: rows, round the end of the buffer, counters, what is saved, and new episodes after an evaluation."""
    plan = EnvConfig(id, count, plugins=["counting", "masked"])
    specs = plan.specs()
    torch.manual_seed(0)
    variant = (
        DiscreteSAC(NetworkConfig([16])) if isinstance(specs.action, Categorical) else SAC(network=NetworkConfig([16]))
    )
    actor = variant.build(replace(specs, entropy=False), device=CPU).actor
    found = []
    for kind in (DirectExperience, GymnasiumExperience):
        torch.manual_seed(1)
        buffer = ReplayConfig(70, Storage.ram).build(tmp_path, specs, rows=200, batch_size=4, seed=0, device=CPU)
        job = Job(plan, actor, buffer, specs, total_frames=40 * count, random_frames=12 * count, seed=5)
        assert GymnasiumExperience.stores(job)
        experience = kind(job, plan.build())
        saved = []
        for _ in experience:
            if experience.frames == 20 * count:
                experience.lend()
            if experience.frames in (15 * count, 30 * count):
                saved += [experience.state_dict()]
        metrics = experience.metrics()
        del metrics["time/frames_per_second"]
        leaves = [leaf for state in saved for leaf in torch.utils._pytree.tree_leaves(state)]
        found.append((buffer.storage[:], metrics, leaves, buffer.write_count))
    (rows, metrics, leaves, written), (others, counted, kept, count_written) = found
    assert all(torch.equal(others[key], value) for key, value in rows.items(True, True))
    assert (counted, count_written) == (metrics, written)
    assert len(kept) == len(leaves)
    assert all(same(*pair) for pair in zip(leaves, kept, strict=True))


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(np.array_equal(one, other))


def test_a_step_whose_flags_are_no_booleans_is_refused_before_it_is_stored() -> None:
    plan = EnvConfig("Counting-v0", 2, plugins=["counting"])
    specs = plan.specs()
    buffer = ReplayConfig(10, Storage.ram).build(Path(), specs, rows=10, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(counting.AlwaysUp(), specs)
    env = plan.build()
    experience = GymnasiumExperience(Job(plan, actor, buffer, specs, 10, 0, 0), env)
    collector = GymnasiumCollector(
        env, acting(actor), frames_per_batch=2, total_frames=-1, auto_register_policy_transforms=False
    )
    made = collector.step(as_arrays(collector._carrier.get("observation")))
    with pytest.raises(ValueError, match=r"'next.terminated' of rows .* torch.int64"):
        experience._write(made._replace(terminated=made.terminated.astype(np.int64)))
    assert len(buffer) == 0


def test_transitions_that_were_collected_are_not_overwritten_by_the_next() -> None:
    env = EnvConfig("Counting-v0", 2, plugins=["counting"])
    actor = tanh_normal_actor(counting.AlwaysUp(), env.specs())
    collector = GymnasiumCollector(
        env.build(), acting(actor), frames_per_batch=2, total_frames=-1, auto_register_policy_transforms=False
    )
    batches = iter(collector)
    first = next(batches)
    kept = first.clone()
    next(batches)
    assert (first == kept).all()


def test_the_state_of_another_number_of_environments_is_refused(tmp_path: Path) -> None:
    one, _ = collect(tmp_path / "one", count=1, total_frames=5)
    two, _ = collect(tmp_path / "two", count=2, total_frames=5)
    with pytest.raises(ValueError, match="1 environments were saved and there are 2"):
        two.load_state_dict(one.state_dict())


class Scripted(Experience):
    """Collects what it is told."""

    def __init__(self, job: Job, script: list[list[Steps | Dropped]]) -> None:
        super().__init__(job)
        self._script = script

    def _collect(self) -> Generator[list[Steps | Dropped], None, None]:
        yield from self._script


def scripted(
    script: list[list[Steps | Dropped]], *, n_steps: int, frames: int
) -> tuple[TensorDictBase, dict[str, float]]:
    plan = EnvConfig("Counting-v0", 3, plugins=["counting"])
    specs = replace(plan.specs(), n_steps=n_steps, gamma=0.9)
    buffer = ReplayConfig(storage=Storage.ram).build(Path(), specs, rows=100, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(counting.AlwaysUp(), specs)
    experience = Scripted(Job(plan, actor, buffer, specs, total_frames=frames, random_frames=0, seed=0), script)
    list(experience)
    metrics = experience.metrics()
    del metrics["time/frames_per_second"]
    return buffer.storage[:], metrics


def a_script(steps: int, *, n_steps: int) -> tuple[TensorDict, torch.Tensor]:
    """Rows `(steps * 3,)` of three environments and `done` `(steps, 3)`: a frame knows its environment and its step."""
    times = torch.arange(steps).repeat_interleave(3)
    observation = torch.stack([torch.arange(3).repeat(steps), torch.zeros(3 * steps), times], -1).float()
    following = observation + torch.tensor([0.0, 0.0, 1.0])
    reward, done = torch.rand(3 * steps, 1), torch.zeros(steps, 3, dtype=torch.bool)
    done[2, 1] = done[5, 0] = True
    columns: dict[str, Any] = {
        "observation": observation,
        "action": torch.rand(3 * steps, 1),
        "next": {"observation": following, "reward": reward, "terminated": done.reshape(-1, 1)},
    }
    if n_steps > 1:
        columns[SPAN] = torch.ones(3 * steps, 1, dtype=torch.int32)
    return TensorDict(columns, batch_size=[3 * steps]), done


@pytest.mark.parametrize("n_steps", [1, 3])
def test_steps_that_come_together_are_as_those_that_come_one_by_one(n_steps: int) -> None:
    rows, done = a_script(8, n_steps=n_steps)
    everyone = slice(0, 3)
    one_by_one: list[list[Steps | Dropped]] = [
        [Steps(part, ended.unsqueeze(0), everyone)] for part, ended in zip(rows.split(3), done, strict=True)
    ]
    together: list[list[Steps | Dropped]] = [
        [Steps(rows[:12], done[:4], everyone)],
        [Steps(rows[12:], done[4:], everyone)],
    ]
    # Twenty frames are seven whole steps, in the middle of what came together.
    (first, numbers), (second, others) = (
        scripted(script, n_steps=n_steps, frames=20) for script in (one_by_one, together)
    )
    assert (first == second).all()
    assert len(first) == (21 if n_steps == 1 else 21 - 4 - 1)
    assert numbers == pytest.approx(others)
    assert numbers["train/length"] == pytest.approx((3 + 6) / 2)


def test_no_row_spans_the_loss_of_a_worker() -> None:
    rows, done = a_script(8, n_steps=3)
    done[7, 2] = True  # of an episode that began after the loss
    lost = Dropped(torch.tensor([1, 2]))
    script: list[list[Steps | Dropped]] = [
        [Steps(rows[:12], done[:4], slice(0, 3)), lost],
        [Steps(rows[12:], done[4:], slice(0, 3))],
    ]
    stored, metrics = scripted(script, n_steps=3, frames=24)
    start, end = stored["observation"], stored["next", "observation"]
    assert (end[:, 2] - start[:, 2] == stored[SPAN].squeeze(-1)).all()
    crossing = (start[:, 2] < 4) & (end[:, 2] > 4)
    assert sorted(start[crossing, 0].tolist()) == [0, 0]
    # All frames but those that wait for others: of environments 0 to 2 the last ones.
    assert {(whose, step) for whose, _, step in start.int().tolist() if step < 6} == {
        (whose, step) for whose in range(3) for step in range(6)
    }
    assert metrics["train/length"] == pytest.approx((3 + 6 + 4) / 3)
