"""Episodes of a policy as a Minari dataset on this machine."""

import re
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from sac_torchrl.deploy.policy import Policy
from sac_torchrl.deploy.recorded import mask_for, native_environment
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.errors import ConfigError, EnvironmentFault
from sac_torchrl.extras import require
from sac_torchrl.runs.episodes import LONGEST

_NAME = re.compile(r"([\w-]+/)*[\w-]+-v\d+")


def record_episodes(
    policy: Policy, env: EnvConfig, name: str, *, episodes: int, seed: int, deterministic: bool = True
) -> list[float]:
    """Play whole episodes into the new Minari dataset `name`, as in `pendulum/expert-v0`; returns their returns.

    Observations and actions are the environment's own. The first episode is seeded with `seed`, and so are actions that
    are not `deterministic`. Raises ConfigError for a name that is wrong or taken.
    """
    minari: Any = require("minari", "sac-torchrl dataset")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name}: Minari's names are as in pendulum/expert-v0.")
    if name in minari.list_local_datasets():
        raise ConfigError(f"{name} is on this machine already: give another name, or `minari delete {name}`.")
    if episodes < 1:
        raise ConfigError(f"--episodes {episodes}: give 1 or more.")
    if env.in_one:
        raise ConfigError(f"env.id={env.id} steps environments together: Minari records single ones.")
    buffer: Any = require("minari.data_collector", "sac-torchrl dataset").EpisodeBuffer
    played = native_environment(env.open())
    recorded, returns = list[Any](), list[float]()
    try:
        for number in range(episodes):
            observation, info = played.reset(seed=seed if number == 0 else None)
            observations, actions, rewards, ends = [observation], list[Any](), list[float](), list[tuple[bool, bool]]()
            while not (ends and any(ends[-1])):
                first = seed if number == 0 and not actions else None
                mask = mask_for(policy, played, info)
                actions.append(policy(observation, deterministic=deterministic, seed=first, action_mask=mask))
                observation, reward, terminated, truncated, info = played.step(actions[-1])
                observations.append(observation)
                rewards.append(float(reward))
                ends.append((bool(terminated), bool(truncated)))
                if len(actions) >= LONGEST:
                    raise EnvironmentFault(f"an episode has no end after {LONGEST:,} steps: set env.max_episode_steps.")
            terminations, truncations = map(list, zip(*ends, strict=True))
            recorded.append(
                buffer(
                    id=number,
                    observations=observations,
                    actions=actions,
                    rewards=rewards,
                    terminations=terminations,
                    truncations=truncations,
                )
            )
            returns.append(float(np.sum(rewards)))
        minari.create_dataset_from_buffers(
            name,
            recorded,
            observation_space=_of(played.observation_space, observations[0]),
            action_space=played.action_space,
            algorithm_name=policy.saved.variant["name"],
            description=f"{episodes} episodes of {env.id} by a policy after {policy.saved.frames} frames.",
            author="sac_torchrl",
            author_email="none",
            code_permalink="none",
        )
    finally:
        played.close()
    return returns


def _of(space: Any, observation: Any) -> Any:
    """The space, in the type that the environment returns."""
    if isinstance(space, Box) and np.asarray(observation).dtype != space.dtype:
        kind: Any = np.asarray(observation).dtype
        return Box(space.low.astype(kind), space.high.astype(kind), dtype=kind)
    return space
