import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import counting
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, TensorDictReplayBuffer, Unbounded

from sac_torchrl import (
    REDQ,
    SAC,
    TQC,
    CrossQ,
    Direct,
    DiscreteSAC,
    EnvConfig,
    Experience,
    FastSAC,
    NetworkConfig,
    ReplayConfig,
    Specs,
    Storage,
    tanh_normal_actor,
)
from sac_torchrl.agents.variant import Variant
from sac_torchrl.replay.n_step import DelayedNStep, NStep
from sac_torchrl.specs import SPAN

CPU = torch.device("cpu")
GAMMA = 0.5
Row = tuple[tuple[int, ...], tuple[int, ...], float, int, bool]


def collect(
    folder: Path, *, n_steps: int, count: int, frames: int, capacity: int = 10_000, seed: int = 3
) -> tuple[Experience, TensorDictReplayBuffer]:
    plan = EnvConfig("Counting-v0", count, plugins=["counting"])
    specs = replace(plan.specs(), n_steps=n_steps, gamma=GAMMA)
    buffer = ReplayConfig(capacity, Storage.disk).build(folder, specs, rows=frames, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(counting.AlwaysUp(), specs)
    experience = Direct().build(plan, actor, buffer, specs=specs, total_frames=frames, random_frames=0, seed=seed)
    return experience, buffer


def stored(rows: TensorDict) -> list[Row]:
    return [
        (
            tuple(row["observation"].int().tolist()),
            tuple(row["next", "observation"].int().tolist()),
            row["next", "reward"].item(),
            row[SPAN].item(),
            row["next", "terminated"].item(),
        )
        for row in rows
    ]


def expected(number: int, *, frames: int, n_steps: int) -> list[Row]:
    """The rows of one environment whose spans are over after `frames`, in the order of their first frames."""
    played, episode = 0, 1
    found: list[Row] = []
    while played < frames:
        last = counting.length(number, episode)
        for start in range(last):
            steps = range(start + 1, min(start + n_steps, last) + 1)
            if played + steps[-1] > frames:
                continue
            value = sum((GAMMA**power * reward for power, reward in enumerate(steps)), 0.0)
            terminated = steps[-1] == last and not counting.truncates(number, episode)
            found.append(((number, episode, start), (number, episode, steps[-1]), value, len(steps), terminated))
        played, episode = played + last, episode + 1
    return found


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("n_steps", [2, 3, 12])
@pytest.mark.parametrize("capacity", [1_000, 30])
def test_rows_span_n_frames_or_fewer_at_the_end_of_their_episode(
    tmp_path: Path, count: int, n_steps: int, capacity: int
) -> None:
    experience, buffer = collect(tmp_path, n_steps=n_steps, count=count, frames=40 * count, capacity=capacity)
    assert sum(experience) == experience.frames == 40 * count
    written = buffer.write_count
    newest = min(written, capacity)
    rows = stored(buffer.storage[:][torch.arange(written - newest, written) % capacity])
    numbers = {row[0][0] for row in rows}
    everything = {number: expected(number, frames=40, n_steps=n_steps) for number in numbers}
    for number in numbers:
        own = [row for row in rows if row[0][0] == number]
        assert own == everything[number][-len(own) :]
    if capacity == 1_000:
        assert len(numbers) == count
        assert len(rows) == written == sum(map(len, everything.values()))


@pytest.mark.parametrize("count", [1, 3])
def test_rows_held_back_are_saved_and_go_on_after_a_resume(tmp_path: Path, count: int) -> None:
    """A run that is stopped in the middle of episodes stores the rows of one that is not."""
    frames = 11 * count
    whole, undisturbed = collect(tmp_path / "whole", n_steps=3, count=count, frames=2 * frames)
    assert sum(whole) == 2 * frames
    first, before = collect(tmp_path / "first", n_steps=3, count=count, frames=frames)
    assert sum(first) == frames
    resumed, after = collect(tmp_path / "resumed", n_steps=3, count=count, frames=2 * frames)
    state = copy.deepcopy(first.state_dict())
    kept = copy.deepcopy(state["held"])
    resumed.load_state_dict(state)
    assert sum(resumed) == frames
    assert all(torch.equal(value, state["held"][name]) for name, value in kept.items()), "nothing is shared"
    assert stored(before.storage[:]) + stored(after.storage[:]) == stored(undisturbed.storage[:])
    assert len(before) < frames


def test_rows_held_back_of_another_span_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows of \(2, 4\) steps and environments do not fit"):
        NStep(4, gamma=GAMMA, count=4).load_state_dict(NStep(3, gamma=GAMMA, count=4).state_dict())


def test_environments_that_come_one_at_a_time_are_not_mixed() -> None:
    generator = torch.Generator().manual_seed(0)
    count, n_steps = 4, 3
    n_step = NStep(n_steps, gamma=GAMMA, count=count)
    played: list[list[tuple[float, bool]]] = [[] for _ in range(count)]
    found: list[TensorDict] = []
    for time in range(200):
        chosen = torch.randperm(count, generator=generator)[: int(torch.randint(1, count + 1, (), generator=generator))]
        done = torch.rand(len(chosen), generator=generator) < 0.25
        if time % 50 == 49:
            found.append(n_step.cut(chosen))
            for environment in chosen.tolist():
                if played[environment]:
                    played[environment][-1] = (played[environment][-1][0], True)
        reward = torch.rand(len(chosen), 1, generator=generator)
        index = torch.tensor([[len(played[environment])] for environment in chosen.tolist()]).float()
        for environment, value, ended in zip(chosen.tolist(), reward.flatten().tolist(), done.tolist(), strict=True):
            played[environment].append((value, ended))
        whose = chosen.unsqueeze(-1).float()
        rows = TensorDict(
            {
                "observation": torch.cat([whose, index], -1),
                SPAN: torch.ones(len(chosen), 1, dtype=torch.int32),
                "next": {
                    "observation": torch.cat([whose, index + 1], -1),
                    "reward": reward,
                    "terminated": done.unsqueeze(-1),
                },
            },
            batch_size=[len(chosen)],
        )
        found.append(n_step(rows, done, chosen))
    found.append(n_step.cut())
    rows = torch.cat(found)
    assert len(rows) == sum(map(len, played))
    for row in rows:
        environment, start = (int(value) for value in row["observation"])
        span = row[SPAN].item()
        part = played[environment][start : start + span]
        assert row["next", "observation"][1] == start + span
        assert row["next", "reward"].item() == pytest.approx(sum(GAMMA**i * r for i, (r, _) in enumerate(part)))
        assert not any(ended for _, ended in part[:-1])
        assert span == n_steps or part[-1][1] or start + span == len(played[environment])


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("variant", [SAC, DiscreteSAC, REDQ, CrossQ, TQC, FastSAC])
@pytest.mark.usefixtures("float64")
def test_a_row_that_spans_k_frames_is_discounted_by_gamma_to_the_k(variant: Callable[..., Variant]) -> None:
    discrete = variant is DiscreteSAC
    specs = Specs(Unbounded(shape=3), Categorical(4) if discrete else Bounded(-1, 1, shape=2))
    small = {"network": NetworkConfig([8])} | ({"critic_hidden": [8]} if variant in (CrossQ, TQC, FastSAC) else {})
    torch.manual_seed(1)
    batch = TensorDict(
        {
            "observation": torch.randn(6, 3),
            "action": torch.randint(4, (6,)) if discrete else torch.rand(6, 2),
            "next": {
                "observation": torch.randn(6, 3),
                "reward": torch.randn(6, 1),
                "terminated": torch.zeros(6, 1, dtype=torch.bool),
            },
        },
        batch_size=[6],
    )
    losses = []
    for gamma, span in ((0.9, 3), (0.9**3, 1)):
        torch.manual_seed(2)
        loss = variant(gamma=gamma, **small).build(specs, device=CPU).loss
        torch.manual_seed(3)
        losses.append(loss(batch.clone().set(SPAN, torch.full((6, 1), span, dtype=torch.int32)))["loss_qvalue"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_delayed_rows_are_the_sums_of_their_frames_and_come_at_a_fixed_delay(steps: int) -> None:
    """Against the sum written out, in float64, through a state that is saved and loaded halfway."""
    count, length, generator = 6, 40, torch.Generator().manual_seed(1)
    reward = torch.randn(length, count, 1, dtype=torch.float64, generator=generator)
    done = torch.rand(length, count, generator=generator) < 0.2
    terminated = done & (torch.rand(length, count, generator=generator) < 0.5)
    delayed = DelayedNStep(steps, gamma=GAMMA, count=count)
    found = []
    for time in range(length):
        frame = {"observation": torch.full((count, 1), time), "action": torch.full((count, 1), -time)}
        after = {"observation": torch.full((count, 1), time + 1), "reward": reward[time]}
        after["terminated"] = terminated[time].unsqueeze(-1)
        rows = {**frame, SPAN: torch.ones(count, 1, dtype=torch.int32), "next": after}
        found.append(delayed(TensorDict(rows, batch_size=[count]), done[time], slice(None)))
        if time == length // 2:
            state = copy.deepcopy(delayed.state_dict())
            delayed = DelayedNStep(steps, gamma=GAMMA, count=count)
            delayed.load_state_dict(state)
    for time, env in itertools.product(range(length - steps + 1), range(count)):
        span = next((k for k in range(1, steps) if done[time + k - 1, env]), steps)
        row, last = found[time + steps - 1][env], time + span - 1
        assert (row["observation"], row["action"], row[SPAN]) == (time, -time, span)
        assert row["next", "observation"] == last + 1
        assert row["next", "terminated"] == terminated[last, env]
        value = sum(GAMMA**k * reward[time + k, env] for k in range(span))
        torch.testing.assert_close(row["next", "reward"], value)
