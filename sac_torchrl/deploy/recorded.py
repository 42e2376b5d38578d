"""Observations recorded from an environment, as the environment itself returns them."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sac_torchrl.deploy.policy import Policy
from sac_torchrl.deploy.saved import SavedPolicy
from sac_torchrl.envs.adapter import SpaceAdapter
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.observations import leaf_at
from sac_torchrl.errors import CheckpointError


def environment_of(saved: SavedPolicy, plugins: Sequence[str] = ()) -> EnvConfig:
    """The environment that a policy was trained on. Modules are code: name them as `plugins`."""
    bounds = saved.env.get("bounds")
    try:
        return EnvConfig(**{**saved.env, "bounds": bounds and tuple(bounds), "plugins": list(plugins)})
    except TypeError as error:
        raise CheckpointError(f"the environment of the policy has settings of another version: {error}.") from error


def native_environment(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """What `EnvConfig.open` adapts for the agent: the environment with its wrappers, in its own spaces."""
    while not isinstance(env, SpaceAdapter):
        assert isinstance(env, gym.Wrapper)
        env = env.env
    return env.env


def record_observations(policy: Policy, env: EnvConfig, count: int, *, seed: int) -> list[Any]:
    """Play with the policy's random actions and return `count` observations, for each leaf `(count, *shape)`.

    Leaves have the types of their spaces.
    """
    if env.in_one:
        return _record_batch(policy, env, count, seed=seed)
    played = native_environment(env.open())
    rows: list[list[Any]] = []
    try:
        observation, _ = played.reset(seed=seed)
        policy(observation, deterministic=False, seed=seed)
        while len(rows) < count:
            rows.append([np.asarray(leaf_at(observation, leaf.path), leaf.space.dtype) for leaf in policy.leaves])
            action = policy(observation, deterministic=False)
            observation, _, terminated, truncated, _ = played.step(action)
            if terminated or truncated:
                observation, _ = played.reset()
    finally:
        played.close()
    return [np.stack(leaf) for leaf in zip(*rows, strict=True)]


def _record_batch(policy: Policy, env: EnvConfig, count: int, *, seed: int) -> list[Any]:
    """From a simulator of tensors or a pool, with random actions: their spaces are the agent's, or shifted from it."""
    (leaf,) = policy.leaves
    played = env.build(count=8, seed=seed)
    try:
        steps = played.rollout(-(-count // 8), break_when_any_done=False)
        seen = steps["observation"].cpu().numpy().reshape(-1, *leaf.space.shape or ())
    finally:
        played.close()
    return [(seen[:count] + getattr(leaf.space, "start", 0)).astype(leaf.space.dtype)]
