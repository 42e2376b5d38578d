"""Rewards: one number, or a weighted sum of several."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Space

from sac_torchrl.errors import ConfigError, short


def adapt_reward(space: Space[Any] | None, id: str, weights: Sequence[float] | None) -> Callable[[Any], Any]:
    """The function from a reward to one number; raises ConfigError for `weights` that do not fit `space`.

    `space` is what environments of vector rewards declare as their `reward_space`, None for others.
    """
    shape = None if space is None else space.shape
    if weights is None:
        if shape:
            one = ",".join("1" * shape[0])
            raise ConfigError(
                f"env.id={id}: its reward is {short(space)}, a vector: weigh it, as in env.reward_weights=[{one}]."
            )
        return lambda reward: reward
    given = np.array(weights, np.float64)
    if shape is not None and shape != given.shape:
        raise ConfigError(
            f"env.reward_weights={list(weights)}: the reward of env.id={id} is {short(space)}: give as many."
        )

    def weighed(reward: Any) -> float:
        vector = np.asarray(reward, np.float64)
        if vector.shape != given.shape:
            raise ValueError(f"of shape {vector.shape}, not {given.shape}, that of env.reward_weights")
        return float(vector @ given)

    return weighed
