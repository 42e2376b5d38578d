"""Masks of legal actions: where an environment has them, and the leaf `action_mask` that they become."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from sac_torchrl.envs import generators
from sac_torchrl.envs.contained import Contained
from sac_torchrl.errors import ConfigError, short
from sac_torchrl.specs import MASK

# The method of the environment or of a wrapper, as sb3-contrib's MaskablePPO has it.
METHOD = "action_masks"
# Masks of more actions are stored as bits.
_MOST_BOOLS = 64


class MaskSource(Enum):
    """Where the mask of a state's legal actions is.

    `info`: `info["action_mask"]` of reset and step (Gymnasium's Taxi). `observation`: the key `action_mask` of a Dict
    observation (PettingZoo, OpenSpiel). `method`: `action_masks()` of the environment or a wrapper (sb3-contrib).
    `auto`: the first of observation, method and info that a Discrete, MultiDiscrete or MultiBinary environment has;
    the info is that of one reset when it is opened.
    """

    auto = "auto"
    info = "info"
    observation = "observation"
    method = "method"
    none = "none"


class WrongMask(ValueError):
    """An environment gave a mask that says nothing about its actions; the message begins with what it gave."""


class Mask:
    """Reads and checks the masks of one environment.

    A mask has one entry an action, those of several discrete actions side by side, as in sb3-contrib. Its leaf in
    the observation is bool `(n,)` or, of more than 64 entries, uint8 `(n / 8,)` as numpy.packbits makes them.
    """

    def __init__(self, source: MaskSource, sizes: Sequence[int]) -> None:
        self.source = source
        self._ends = np.cumsum(np.array(sizes, np.int64))
        self._starts = self._ends - np.array(sizes, np.int64)
        self._count = int(self._ends[-1])
        self._packed = self._count > _MOST_BOOLS

    def with_leaf(self, observation: Space[Any], id: str) -> Dict:
        """The agent's observation space with the mask's leaf; raises ConfigError where it has a leaf of that name."""
        spaces = dict(observation.spaces) if isinstance(observation, Dict) else {"observation": observation}
        if MASK in spaces:
            raise ConfigError(
                f"env.mask={self.source.value}: env.id={id} observes a leaf {MASK} as well: give env.mask=observation, "
                f"or env.ignore=[{MASK}]."
            )
        bools: Any = np.bool_  # Box takes it, and its annotation says otherwise
        leaf = Box(0, 255, (-(-self._count // 8),), np.uint8) if self._packed else Box(0, 1, (self._count,), bools)
        return Dict({**spaces, MASK: leaf})

    def read(self, env: gym.Env[Any, Any], observation: Any, info: Any, *, ended: bool) -> Any:
        """The legal actions of a state, bool `(n,)`; raises WrongMask.

        Where the episode has `ended`, which is by termination, there may be none.
        """
        match self.source:
            case MaskSource.method:
                value = env.get_wrapper_attr(METHOD)()
            case MaskSource.info:
                value = info.get(MASK) if isinstance(info, dict) else None
            case _:
                value = observation[MASK]
        if value is None:
            raise WrongMask("None, which is none")
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
            raise WrongMask(f"{short(repr(value))}, which holds other things than 0 and 1")
        if array.shape != (self._count,):
            raise WrongMask(f"{short(repr(value))}, of shape {array.shape}, not {(self._count,)}")
        legal = array.astype(np.bool_)
        if not ended and not np.logical_or.reduceat(legal, self._starts).all():
            raise WrongMask(f"{short(repr(value))}, which leaves no legal action and the state is not terminal")
        return legal

    def stored(self, legal: Any) -> Any:
        """The leaf for legal actions `(n,)`."""
        return np.packbits(legal) if self._packed else legal

    def allows(self, legal: Any, action: Any) -> bool:
        """Whether the agent's action, an index or one for each dimension, is legal."""
        return bool(legal[self._starts + np.asarray(action, np.int64)].all())

    def sample(self, legal: Any, space: Space[Any]) -> Any:
        """Draw from the legal actions of an adapter's `space` uniformly, with its generator."""
        parts = tuple(legal[start:end].astype(np.int8) for start, end in zip(self._starts, self._ends, strict=True))
        return space.sample(parts[0] if isinstance(space, Discrete) else parts)


def find_mask(
    env: gym.Env[Any, Any], id: str, source: MaskSource, choices: Space[Any], ignore: Sequence[str]
) -> Mask | None:
    """The masks of `env`, of which the agent has the action space `choices`; None without.

    Raises ConfigError where `source` has none.
    """
    if not isinstance(env.action_space, (Discrete, MultiDiscrete, MultiBinary)):
        if source is MaskSource.auto and isinstance(env.action_space, (Dict, Tuple)):
            _refuse_masks(env, id, ignore)
        if source in (MaskSource.auto, MaskSource.none):
            return None
        raise ConfigError(
            f"env.mask={source.value}: masks are for discrete actions, and env.id={id} has "
            f"{short(env.action_space)}: give env.mask=auto."
        )
    sizes = action_counts(choices)
    if source is MaskSource.none:
        return None
    sources = [MaskSource.observation, MaskSource.method, MaskSource.info]
    if source is not MaskSource.auto:
        if _has(env, id, source):
            return Mask(source, sizes)
        others = [other.value for other in sources if other is not source and _has(env, id, other)]
        place = {
            MaskSource.observation: f"its observation has no key {MASK}",
            MaskSource.method: f"it has no method {METHOD}",
            MaskSource.info: f"the info of a reset has no {MASK}",
        }[source]
        raise ConfigError(
            f"env.mask={source.value}: env.id={id} has none there, {place}: give env.mask={[*others, 'none'][0]}."
        )
    if MASK in ignore:
        sources.remove(MaskSource.observation)
    return next((Mask(found, sizes) for found in sources if _has(env, id, found)), None)


def _refuse_masks(env: gym.Env[Any, Any], id: str, ignore: Sequence[str]) -> None:
    found = [source for source in (MaskSource.observation, MaskSource.method, MaskSource.info) if _has(env, id, source)]
    if MASK not in ignore and found:
        raise ConfigError(
            f"env.id={id} has masks of actions ({found[0].value}), and its actions are {short(env.action_space)}: "
            "masks of a Dict or Tuple are not read; give env.mask=none where every action may be taken."
        )


def action_counts(choices: Space[Any]) -> list[int]:
    """How many values each action of the agent's discrete action space has."""
    assert isinstance(choices, (Discrete, MultiDiscrete))
    return [int(choices.n)] if isinstance(choices, Discrete) else [int(count) for count in choices.nvec]


def _has(env: gym.Env[Any, Any], id: str, source: MaskSource) -> bool:
    match source:
        case MaskSource.observation:
            return isinstance(env.observation_space, Dict) and MASK in env.observation_space.spaces
        case MaskSource.method:
            return env.has_wrapper_attr(METHOD) and callable(env.get_wrapper_attr(METHOD))
        case _:
            return _in_info(env, id)


def _in_info(env: gym.Env[Any, Any], id: str) -> bool:
    try:
        with generators.preserve(), Contained(id):
            result: Any = env.reset()
    except (Exception, SystemExit, GeneratorExit):  # noqa: BLE001 - the run's own reset raises it, and names it
        return False
    return isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict) and MASK in result[1]
