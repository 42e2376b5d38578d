"""Observations recorded from an environment, as the environment itself returns them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sac_torchrl.config.compose import from_layer, refuse_modules, with_environment
from sac_torchrl.config.layers import Setting, layer
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.deploy.policy import Policy
from sac_torchrl.deploy.saved import SavedPolicy
from sac_torchrl.deploy.spaces import environment_spaces
from sac_torchrl.envs.adapter import SpaceAdapter
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.masks import METHOD, MaskSource
from sac_torchrl.envs.observations import leaf_at
from sac_torchrl.errors import ConfigError, short
from sac_torchrl.specs import MASK


def environment_of(saved: SavedPolicy, plugins: Sequence[str] = (), settings: Sequence[Setting] = ()) -> EnvConfig:
    """The environment that a policy was trained on, with some keys `env.` changed.

    Modules are code: name them as `plugins`. Raises ConfigError for a key or a value that is wrong.
    """
    env = {key: value for key, value in saved.env.items() if key != "plugins"}
    content = layer({"variant": saved.variant, "collector": "direct", "device": "cpu", "env": env})
    refuse_modules(content, Path("the policy"))
    named = [Setting("env.plugins", list(plugins), f"--plugin {' '.join(plugins)}")] if plugins else []
    return with_environment(from_layer(TrainConfig(), content, named), settings).env


def check_spaces(policy: Policy, env: EnvConfig) -> None:
    """Raise ConfigError where an environment has other spaces than the policy was trained on."""
    for name, own, other in zip(
        ("observation", "action"),
        (policy.spec.observation, policy.spec.action),
        environment_spaces(env.specs(), env),
        strict=True,
    ):
        # Bounds of observations are often wrong, and nothing was trained on them.
        if _form(own) != _form(other):
            raise ConfigError(
                f"env.id={env.id}: its {name} space is {short(other)}, and the policy was trained on {short(own)}."
            )


def _form(space: gym.Space[Any]) -> Any:
    if isinstance(space, gym.spaces.Box):
        return space.shape, space.dtype
    if isinstance(space, gym.spaces.Dict):
        return {name: _form(part) for name, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return [_form(part) for part in space]
    return space


def native_environment(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """What `EnvConfig.open` adapts for the agent: the environment with its wrappers, in its own spaces."""
    while not isinstance(env, SpaceAdapter):
        assert isinstance(env, gym.Wrapper)
        env = env.env
    return env.env


def mask_for(policy: Policy, env: gym.Env[Any, Any], info: dict[str, Any]) -> Any:
    """The `action_mask` that a policy takes in a state of `env` with this `info`; None where it takes none."""
    if not policy.takes_mask:
        return None
    if policy.saved.mask is not MaskSource.info and env.has_wrapper_attr(METHOD):
        return env.get_wrapper_attr(METHOD)()
    return info[MASK]


def record_observations(policy: Policy, env: EnvConfig, count: int, *, seed: int) -> list[Any]:
    """Play with the policy's random actions and return `count` observations, for each leaf `(count, *shape)`.

    Leaves have the types of their spaces.
    """
    if env.in_one:
        return _record_batch(policy, env, count, seed=seed)
    played = native_environment(env.open())
    rows: list[list[Any]] = []
    try:
        observation, info = played.reset(seed=seed)
        policy(observation, deterministic=False, seed=seed, action_mask=mask_for(policy, played, info))
        while len(rows) < count:
            mask = mask_for(policy, played, info)
            sources = [mask if leaf.is_mask and policy.takes_mask else observation for leaf in policy.leaves]
            rows.append(
                [
                    np.asarray(leaf_at(source, leaf.path), leaf.space.dtype)
                    for source, leaf in zip(sources, policy.leaves, strict=True)
                ]
            )
            action = policy(observation, deterministic=False, action_mask=mask)
            observation, _, terminated, truncated, info = played.step(action)
            if terminated or truncated:
                observation, info = played.reset()
    finally:
        played.close()
    return [np.stack(leaf) for leaf in zip(*rows, strict=True)]


def _record_batch(policy: Policy, env: EnvConfig, count: int, *, seed: int) -> list[Any]:
    """From a simulator of tensors or a pool, with random actions: their spaces are the agent's, or shifted from it."""
    (leaf,) = policy.leaves
    played = env.build(count=1 if env.single else 8, seed=seed)
    try:
        steps = played.rollout(-(-count // 8), break_when_any_done=False)
        seen = steps["observation"].cpu().numpy().reshape(-1, *leaf.space.shape or ())
    finally:
        played.close()
    return [(seen[:count] + getattr(leaf.space, "start", 0)).astype(leaf.space.dtype)]
