"""Small worlds whose optimum is known, learned end to end: environment, collector, replay, learner."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tensordict import TensorDict

from sac_torchrl import (
    REDQ,
    SAC,
    TQC,
    Agent,
    CrossQ,
    Direct,
    DiscreteSAC,
    DroQ,
    EnvConfig,
    FastSAC,
    LearnerConfig,
    NetworkConfig,
    ReplayConfig,
    ReplayRatio,
    SACv1,
    SimBa,
    Storage,
)
from sac_torchrl.agents.losses import CriticReduction
from sac_torchrl.agents.variant import Variant

CPU = torch.device("cpu")
SMALL = NetworkConfig(hidden=[32, 32])


class Aim(gym.Env[Any, Any]):
    """One step: the reward is -5 (action - target)^2, with the target half of what is observed."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(-1, 1, 1)
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        return self.seen, float(-5 * (action - self.seen / 2).item() ** 2), True, False, {}


class Corridor(gym.Env[Any, Any]):
    """Five states in a row; stepping right out of the last one pays 1 and terminates."""

    observation_space = Discrete(5)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(5))
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        end = self.state == 4 and action == 1
        self.state = min(4, max(0, self.state + 2 * int(action) - 1))
        return self.state, float(end), end, False, {}


class Forever(gym.Env[Any, Any]):
    """Pays 1 at every step; registered with a time limit of three steps, which is no end."""

    observation_space = Box(0, 1, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        return np.zeros(1), 1.0, False, False, {}


gym.register("Aim-v0", f"{__name__}:Aim")
gym.register("Corridor-v0", f"{__name__}:Corridor", max_episode_steps=20)
gym.register("Forever-v0", f"{__name__}:Forever", max_episode_steps=3)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Agent]:
    def run(variant: Variant, env: EnvConfig, *, frames: int, ratio: float = 1.0) -> Agent:
        torch.manual_seed(0)
        specs = replace(env.specs(), entropy=variant.needs_entropy)
        agent = variant.build(specs, device=CPU)
        learner = LearnerConfig(lr=3e-3).build(agent)
        buffer = ReplayConfig(storage=Storage.ram).build(
            tmp_path, specs, rows=frames, batch_size=64, seed=1, device=CPU
        )
        experience = Direct().build(
            env, agent.actor, buffer, specs=specs, total_frames=frames, random_frames=200, seed=2
        )
        replay_ratio = ReplayRatio(ratio, after=200)
        for new_frames in experience:
            for _ in range(replay_ratio.due(new_frames)):
                learner.update(buffer.sample())
        return agent

    return run


@pytest.mark.parametrize(
    "variant",
    [
        SAC(network=SMALL, alpha=0.1, fixed_alpha=True, tau=0.05),
        REDQ(network=SMALL, alpha=0.1, fixed_alpha=True, tau=0.05, critics=3),
        DroQ(network=SMALL, alpha=0.1, fixed_alpha=True, tau=0.05),
        CrossQ(network=SMALL, critic_hidden=[32, 32], alpha=0.1, fixed_alpha=True),
        TQC(network=SMALL, critic_hidden=[32, 32], critics=2, alpha=0.1, fixed_alpha=True, tau=0.05),
        SimBa(actor_width=16, critic_width=16, alpha=0.1, fixed_alpha=True, tau=0.05),
        FastSAC(
            network=SMALL, critic_hidden=[32, 32], alpha=0.1, fixed_alpha=True, tau=0.05, gamma=0.0, v_min=-3, v_max=0
        ),
        SACv1(network=SMALL, reward_scale=10.0, tau=0.05),
    ],
    ids=lambda variant: type(variant).__name__,
)
def test_a_continuous_policy_becomes_the_best_of_its_temperature(train: Callable[..., Agent], variant: Variant) -> None:
    agent = train(variant, EnvConfig("Aim-v0", 4), frames=4_000, ratio=0.4)
    seen = torch.linspace(-0.8, 0.8, 5).unsqueeze(-1)
    with torch.no_grad():
        actions = agent.actor.get_dist(TensorDict({"observation": seen}, [5])).sample((2_000,))
    # exp(reward / alpha) is a normal density around the target with variance alpha / 10.
    assert actions.mean(0) == pytest.approx(seen / 2, abs=0.08)
    assert actions.std(0) == pytest.approx(torch.full((5, 1), 0.1), abs=0.05)


def test_a_learned_temperature_meets_its_entropy(train: Callable[..., Agent]) -> None:
    agent = train(SAC(network=SMALL, alpha=0.2, tau=0.05), EnvConfig("Aim-v0", 4), frames=6_000, ratio=0.4)
    seen = torch.linspace(-0.8, 0.8, 9).unsqueeze(-1)
    distribution = agent.actor.get_dist(TensorDict({"observation": seen}, [9]))
    with torch.no_grad():
        _, log_prob = distribution.rsample_and_log_prob((2_000,))
    # One action dimension: the target is -1.
    assert -log_prob.mean().item() == pytest.approx(-1, abs=0.2)


@pytest.mark.parametrize(
    "fields",
    [{}, {"actor_q": CriticReduction.mean, "target_q": CriticReduction.mean, "q_clip": 0.5, "entropy_penalty": 0.5}],
    ids=["minimum", "sd_sac"],
)
def test_a_discrete_policy_is_that_of_soft_value_iteration(fields: dict[str, Any], train: Callable[..., Agent]) -> None:
    alpha, gamma = 0.1, 0.8
    variant = DiscreteSAC(SMALL, alpha=alpha, fixed_alpha=True, gamma=gamma, tau=0.05, **fields)
    agent = train(variant, EnvConfig("Corridor-v0", 4), frames=5_000, ratio=0.4)
    values = np.zeros((5, 2))
    for _ in range(200):
        state = alpha * np.log(np.exp(values / alpha).sum(1))
        values[:, 0] = [gamma * state[max(0, s - 1)] for s in range(5)]
        values[:, 1] = [gamma * state[s + 1] for s in range(4)] + [1.0]
    policy = np.exp(values / alpha) / np.exp(values / alpha).sum(1, keepdims=True)
    states = TensorDict({"observation": torch.arange(5)}, [5])
    with torch.no_grad():
        learned = agent.actor.get_dist(states).probs
    assert learned.numpy() == pytest.approx(policy, abs=0.1)


@pytest.mark.parametrize(
    "variant",
    [
        SAC(network=SMALL, alpha=1e-6, fixed_alpha=True, gamma=0.8, tau=0.1),
        SACv1(network=SMALL, alpha=1e-6, gamma=0.8, tau=0.1),
    ],
    ids=["sac", "sac_v1"],
)
def test_a_time_limit_does_not_end_the_value(variant: Variant, train: Callable[..., Agent]) -> None:
    agent = train(variant, EnvConfig("Forever-v0", 4), frames=4_000, ratio=0.4)
    # Against a reward of 0 at an end, the error of the larger critic is its value.
    nothing = {
        "observation": torch.zeros(1, 1),
        "reward": torch.zeros(1, 1),
        "terminated": torch.ones(1, 1).bool(),
    }
    batch = TensorDict({"observation": torch.zeros(1, 1), "action": torch.zeros(1, 1), "next": nothing}, [1])
    agent.loss(batch)
    # 1 + 0.8 + 0.64 + ...; with an end after three steps it would be at most 2.44.
    assert batch["td_error"].item() == pytest.approx(5.0, abs=0.3)
