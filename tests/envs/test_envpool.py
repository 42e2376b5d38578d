import importlib.util
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tensordict import TensorDictBase

from sac_torchrl import (
    Async,
    Direct,
    EnvConfig,
    NetworkConfig,
    Processes,
    ReplayConfig,
    SacError,
    Storage,
    evaluate,
    tanh_normal_actor,
)
from sac_torchrl.agents.policies import categorical_actor
from sac_torchrl.collectors.config import CollectorConfig

pytestmark = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="needs envpool")
CPU = torch.device("cpu")


class AlwaysLeft(torch.nn.Module):
    """A policy over two actions that takes the first."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(50.0))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.logit, -self.logit]).expand(len(observation), 2)


def collect(id: str, *, count: int, steps: int, random_steps: int = 0, seed: int = 3) -> TensorDictBase:
    torch.manual_seed(1)
    env = EnvConfig(id, count)
    specs = env.specs()
    buffer = ReplayConfig(storage=Storage.ram).build(
        Path(), specs, rows=count * steps, batch_size=1, seed=0, device=CPU
    )
    actor = (
        categorical_actor(AlwaysLeft(), specs)
        if specs.action.dtype == torch.int64
        else tanh_normal_actor(
            NetworkConfig([8]).build(specs.observation, outputs=2 * specs.action.shape[0], device=CPU), specs
        )
    )
    experience = Direct().build(
        env, actor, buffer, specs=specs, total_frames=count * steps, random_frames=count * random_steps, seed=seed
    )
    assert list(experience) == [count] * steps
    rows: TensorDictBase = buffer.storage[:].reshape(steps, count)
    return rows


def test_an_episode_ends_with_its_true_last_observation() -> None:
    rows = collect("envpool/CartPole-v1", count=5, steps=40)
    terminated = rows["next", "terminated"].squeeze(-1)
    assert terminated.any(0).all()
    angles = rows["next", "observation"][..., 2].abs()
    # Pushed to one side the pole falls past 12 degrees, and a terminated step is the one in which it did.
    assert ((angles > 12 * math.pi / 180) == terminated).all()
    before, after = rows["next", "observation"][:-1], rows["observation"][1:]
    went_on = ~terminated[:-1]
    assert (before[went_on] == after[went_on]).all()
    assert after[~went_on].abs().max() <= 0.05


def test_a_time_limit_truncates_and_seeds_differ_by_environment_and_run() -> None:
    first, again, other = (collect("envpool/Pendulum-v1", count=3, steps=201, seed=seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert len({round(float(row), 4) for rows in (first, other) for row in rows["observation"][0, :, 0]}) == 6
    assert not first["next", "terminated"].any()
    assert (first["next", "observation"][198] == first["observation"][199]).all()
    assert (first["next", "observation"][199] != first["observation"][200]).any(-1).all()


def test_actions_reach_the_bounds_of_the_environment() -> None:
    env = EnvConfig("envpool/Pendulum-v1", 2).build(seed=0)
    start = env.reset()
    speed = start["observation"][:, 2]
    gravity = 15 * start["observation"][:, 1]
    for action in (-1.0, 1.0):
        seen = cast(Any, env._env).step(torch.full((2, 1), action).numpy())[0]
        # Gymnasium's pendulum: 3 g / (2 l) sin + 3 / (m l^2) torque, for 0.05 s, with a torque of 2 times the action.
        expected = (speed + 0.05 * (gravity + 3 * 2 * action)).clamp(-8, 8)
        assert torch.from_numpy(seen)[:, 2].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        speed, gravity = torch.from_numpy(seen)[:, 2], 15 * torch.from_numpy(seen)[:, 1]
    env.close()


def test_a_policy_is_evaluated_on_whole_episodes() -> None:
    plan = EnvConfig("envpool/CartPole-v1", 4)
    env = plan.build()
    found = evaluate(categorical_actor(AlwaysLeft(), plan.specs()), env, episodes=4, seed=0)
    assert all(8 <= length <= 11 for length in found.lengths)
    assert found.returns == found.lengths
    env.close()


def test_tasks_that_are_not_there_and_pictures_are_refused() -> None:
    with pytest.raises(SacError, match=r"envpool/HalfCheeta-v5 is not a task of EnvPool.*HalfCheetah-v5"):
        EnvConfig("envpool/HalfCheeta-v5").specs()
    with pytest.raises(SacError, match="cannot be rendered"):
        EnvConfig("envpool/Pendulum-v1").build(render_mode="rgb_array")


@pytest.mark.parametrize("collector", [Processes(), Async()])
def test_workers_refuse_a_pool(collector: CollectorConfig) -> None:
    plan = EnvConfig("envpool/Pendulum-v1", 2)
    specs = plan.specs()
    buffer = ReplayConfig(storage=Storage.ram).build(Path(), specs, rows=4, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(NetworkConfig([8]).build(specs.observation, outputs=2, device=CPU), specs)
    with pytest.raises(SacError, match="use collector=direct"):
        collector.build(plan, actor, buffer, specs=specs, total_frames=4, random_frames=0, seed=0)
