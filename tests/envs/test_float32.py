"""What is checked is the number that is stored: float32, not what came."""

from typing import Any

import numpy as np
import pytest
import torch
from faulty import Sound
from gymnasium.spaces import Box
from tensordict.nn import TensorDictModule

from sac_torchrl.envs.adapter import SpaceAdapter
from sac_torchrl.envs.check import check_env
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.findings import Kind
from sac_torchrl.envs.observations import adapt_observation
from sac_torchrl.envs.tensors import Pendulum
from sac_torchrl.errors import EnvironmentFault
from sac_torchrl.runs.evaluation import evaluate

LARGEST = float(np.finfo(np.float32).max)


def stepped(reward: Any, **options: Any) -> float:
    env = EnvConfig("Steep-v0", plugins=["unruly"], kwargs={"reward": reward}, **options).open()
    env.reset(seed=0)
    action = np.zeros(1, np.float32)
    return [float(env.step(action)[1]) for _ in range(3)][-1]


@pytest.mark.parametrize(
    ("reward", "what"),
    [
        (-1e39, r"the reward -1e\+39, which is too large for float32"),
        (LARGEST * 1.01, "too large for float32"),
        (10**400, "no floating point number holds"),
        (float("inf"), "the reward inf, which is not finite"),
        (float("nan"), "the reward nan, which is not finite"),
    ],
)
def test_a_reward_that_float32_does_not_hold_is_a_fault(reward: Any, what: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"env.id=Steep-v0 returned .*{what}.*at step 3"):
        stepped(reward)


@pytest.mark.parametrize("reward", [LARGEST, -LARGEST, 10**38, np.float64(-3e38)])
def test_the_largest_rewards_are_taken(reward: Any) -> None:
    assert np.isfinite(np.float32(stepped(reward)))


def test_large_numbers_are_finite() -> None:
    # Their squares are not.
    _, observe = adapt_observation(Box(-np.inf, np.inf, (2,)), "Mine-v0")
    assert observe(np.array([1e30, -LARGEST])).tolist() == [float(np.float32(1e30)), -LARGEST]
    with pytest.raises(ValueError, match="not finite at index 1"):
        observe(np.array([1e30, np.inf]))


def test_a_weighted_reward_is_checked_after_its_weights() -> None:
    env = SpaceAdapter(_Vector(), "vector", reward_weights=[1e39, 1.0])
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="too large for float32"):
        env.step(np.zeros(1, np.float32))


class _Vector(Sound):
    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, np.ones(2), *rest


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_check_env_finds_observations_that_are_equal_in_float32(dtype: str) -> None:
    env = EnvConfig("Clock-v0", plugins=["unruly"], kwargs={"dtype": dtype})
    warnings = [finding.text for finding in check_env(env) if finding.kind is Kind.warning]
    assert len([text for text in warnings if "are one number in float32: subtract an offset" in text]) == 1
    sound = check_env(EnvConfig("Sound-v0", plugins=["unruly"]))
    assert not [finding for finding in sound if "one number in float32" in finding.text]


def test_returns_that_are_not_finite_are_no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    env = EnvConfig("torch/pendulum").build(count=2)
    assert isinstance(env, Pendulum)
    take = env.take

    def endless(action: Any) -> Any:
        observation, reward, terminated, truncated = take(action)
        return observation, reward / 0, terminated, truncated

    monkeypatch.setattr(env, "take", endless)
    actor = TensorDictModule(lambda seen: torch.zeros(len(seen), 1), ["observation"], ["action"])
    with pytest.raises(EnvironmentFault, match=r"the returns of an evaluation are .*inf.*not all are finite"):
        evaluate(actor, env, episodes=2, seed=0)
