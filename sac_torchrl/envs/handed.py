"""Environments that users make themselves: `EnvConfig(make=...)` and ids that a plugin registered."""

import pickle
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from torchrl.envs import EnvBase, SerialEnv

from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.autoreset import AutoresetEnv, resets_itself
from sac_torchrl.envs.contained import Contained
from sac_torchrl.envs.masks import MaskSource, WrongMask, find_mask
from sac_torchrl.envs.observations import adapt_observation
from sac_torchrl.envs.torchrl import TorchRLEnv
from sac_torchrl.envs.vector import AgentVectorEnv, put, wrapped
from sac_torchrl.errors import ConfigError, EnvironmentFault, short
from sac_torchrl.specs import MASK

Make = Callable[..., Any]


class Kind(Enum):
    """What a function makes: one environment, several together, or a simulator that resets its environments itself."""

    one = "one"
    together = "together"
    autoreset = "autoreset"


# The ids of EnvConfig(make=...), which say in config.yaml what made the environment.
MADE = "python/"

_registered: dict[str, Make] = {}
_kinds: dict[Make, Kind] = {}
# Simulators of env.single=true: one in this process, as long as it lasts.
_kept: dict[Make, Any] = {}


def register(id: str, make: Make) -> None:
    """Have `env.id=ID` call `make(**env.kwargs)`; a module that does so is named as a plugin on the command line.

    `make` returns a Gymnasium environment, a Gymnasium vector environment, an environment of TorchRL, or a simulator
    with the interface of Isaac Lab and MJLab.
    """
    _registered[id] = make


def made_id(make: Make) -> str:
    """The id of an environment that a function makes."""
    name = getattr(make, "__qualname__", type(make).__qualname__)
    return f"{MADE}{getattr(make, '__module__', None) or 'main'}.{name}"


def find_make(id: str, make: Make | None) -> Make | None:
    """What makes the environments of an id, None where they are known by name.

    Raises ConfigError for the id of a function that is not there: it cannot be saved with a run.
    """
    if make is None and id.startswith(MADE):
        raise ConfigError(
            f"env.id={id}: a function in Python made this environment, and no file holds it: give it again, as in "
            "sac.train(..., env=make), or register it in a plugin with sac_torchrl.register(ID, make)."
        )
    return make or _registered.get(id)


def open_made(make: Make, id: str, arguments: dict[str, Any], *, single: bool = False) -> Any:
    """What `make` returns; raises ConfigError for what is no environment of one agent, whatever `make` raises.

    Where `single`, a simulator that resets itself is made once and kept.
    """
    if make in _kept:
        return _kept[make]
    try:
        with Contained(id):
            made = make(**arguments)
    except Exception as error:
        raise ConfigError(f"env.id={id} cannot be made: {type(error).__name__}: {short(error)}") from error
    # A SerialEnv that was not started yet hangs when an attribute that it does not have is read.
    if vars(made).get("group_map") if isinstance(made, EnvBase) else hasattr(made, "possible_agents"):
        raise ConfigError(f"env.id={id}: {type(made).__name__} is of several agents, and SAC here trains one.")
    if resets_itself(made) and not isinstance(made, VectorEnv):
        _kinds[make] = Kind.autoreset
        if single:
            _kept[make] = made
        return made
    if not isinstance(made, (gym.Env, VectorEnv, EnvBase)):
        raise ConfigError(
            f"env.id={id}: what made it returned {short(repr(made))}: return an environment of Gymnasium, a vector "
            "environment of Gymnasium, an environment of TorchRL or a simulator such as Isaac Lab's."
        )
    if isinstance(made, VectorEnv) and made.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
        made.close()
        raise ConfigError(
            f"env.id={id}: its vector environment resets itself, which hides final observations: make it with "
            "autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED."
        )
    _kinds[make] = Kind.one if isinstance(made, gym.Env) else Kind.together
    return made


def open_together(
    make: Make,
    id: str,
    arguments: dict[str, Any],
    count: int,
    single: bool,
    bounds: tuple[float, float] | None,
    ignore: list[str],
    mask: MaskSource,
) -> EnvBase:
    """Environments that `make` makes together, or `count` times one of TorchRL's, with the agent's spaces."""
    made = open_made(make, id, arguments, single=single)
    if _kinds[make] is Kind.autoreset:
        made = AutoresetEnv(made, id, bounds=bounds, keep_open=single)
    if isinstance(made, VectorEnv):
        return wrapped(VectorAdapter(made, id, ignore=ignore, mask=mask))
    if not made.batch_size:
        made.close()
        made = SerialEnv(count, partial(make, **arguments))
    return TorchRLEnv(made, id, ignore=ignore, mask=mask)


def kind_of(make: Make, id: str, arguments: dict[str, Any], *, single: bool) -> Kind:
    """What `make` makes; calls it once to find out."""
    if make not in _kinds:
        made = open_made(make, id, arguments, single=single)
        # A SerialEnv is closed until it is reset.
        if make not in _kept and not (isinstance(made, EnvBase) and made.is_closed):
            made.close()
    return _kinds[make]


def refuse_unpicklable(make: Make | None, id: str) -> None:
    """Raise ConfigError for a function that cannot be sent to a worker."""
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"env.id={id} cannot be sent to workers ({short(error)}): make it by a function of a module, or use "
            "collector=direct."
        ) from error


class _First(gym.Env[Any, Any]):
    """As much of the first of several environments as shows where its masks are."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space
        self.reset = envs.reset  # type: ignore[method-assign]


class VectorAdapter(AgentVectorEnv):
    """A Gymnasium vector environment without autoreset, at the agent's edge; raises EnvironmentFault.

    Masks of legal actions are in the observation or in `info["action_mask"]` `(count, n)`.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], id: str, *, ignore: list[str], mask: MaskSource) -> None:
        self._envs, self._id = envs, id
        self.metadata = envs.metadata
        self.render_mode = envs.render_mode
        self.native_spaces = envs.single_observation_space, envs.single_action_space
        taken, self._taken = adapt_action(envs.single_action_space, id)
        self._first = _First(envs)
        self._mask = find_mask(self._first, id, mask, taken, ignore)
        if self._mask is not None and self._mask.source is MaskSource.observation:
            ignore = [*ignore, MASK]
        observed, self._observed = adapt_observation(envs.single_observation_space, id, ignore)
        if self._mask is not None:
            observed = self._mask.with_leaf(observed, id)
        super().__init__(envs.num_envs, observed, taken)

    def close_extras(self, **options: Any) -> None:
        """Close them."""
        self._envs.close()

    def _reset(self, seeds: list[int | None] | None, mask: Any) -> None:
        given: Any = seeds  # Gymnasium's declaration has no list
        observations, infos = self._envs.reset(seed=given, options=None if mask.all() else {"reset_mask": mask})
        self._see(observations, infos, mask, terminated=np.zeros_like(mask))

    def _step(self, actions: Any) -> tuple[Any, Any, Any]:
        space = self._envs.single_action_space
        empty: Any = create_empty_array(space, self.num_envs)
        chosen = concatenate(space, [self._taken(action) for action in actions], empty)
        observations, given, terminated, truncated, infos = self._envs.step(chosen)
        rewards = np.asarray(given)
        if rewards.dtype.kind not in "fiub" or rewards.shape != (self.num_envs,) or not np.isfinite(rewards).all():
            raise EnvironmentFault(
                f"env.id={self._id} returned the rewards {short(repr(given))}, not {self.num_envs} finite numbers."
            )
        terminated, truncated = self._flags("terminated", terminated), self._flags("truncated", truncated)
        self._see(observations, infos, np.ones_like(terminated), terminated=terminated)
        return rewards.astype(np.float64), terminated, truncated

    def _flags(self, name: str, given: Any) -> Any:
        flags = np.asarray(given)
        if flags.dtype.kind not in "biu" or flags.shape != (self.num_envs,):
            raise EnvironmentFault(
                f"env.id={self._id} returned {name}={short(repr(given))}, not {self.num_envs} of True and False."
            )
        return flags.astype(np.bool_)

    def _see(self, observations: Any, infos: Any, which: Any, *, terminated: Any) -> None:
        """Take over what the environments of `which` `(count,)` observe."""
        masks = infos.get(MASK)
        for number, observation in enumerate(iterate(self._envs.observation_space, observations)):
            if not which[number]:
                continue
            try:
                seen = self._observed(observation)
                if self._mask is not None:
                    info = {} if masks is None else {MASK: masks[number]}
                    legal = self._mask.read(self._first, observation, info, ended=terminated[number])
                    seen = (seen if isinstance(seen, dict) else {"observation": seen}) | {
                        MASK: self._mask.stored(legal)
                    }
                put(self._observations, number, seen)
            except WrongMask as error:
                raise EnvironmentFault(
                    f"environment {number} of env.id={self._id} returned the mask {error}."
                ) from error
            except (TypeError, ValueError) as error:
                raise EnvironmentFault(
                    f"environment {number} of env.id={self._id} returned {short(repr(observation))}, {error}."
                ) from error
