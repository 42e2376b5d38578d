"""Gymnasium environments stepped together in one process."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from torchrl.envs import EnvBase, GymWrapper


def wrapped(envs: VectorEnv[Any, Any, Any]) -> EnvBase:
    """A vector environment, its autoreset disabled, as TorchRL's."""
    plain = isinstance(envs.single_observation_space, (Box, Discrete))
    env: EnvBase = (GymWrapper if plain else LeafWrapper)(envs, categorical_action_encoding=True)  # type: ignore[no-untyped-call]
    space = envs.single_action_space
    if isinstance(space, MultiDiscrete):  # TorchRL takes a batch of them for bounded integers
        spec: Any = MultiCategorical(space.nvec.tolist())
        env.action_spec = spec.expand(envs.num_envs, *spec.shape)
    return env


class LeafWrapper(GymWrapper):
    """GymWrapper with the leaves of a Dict by their names below `observation`, and MultiDiscrete as MultiCategorical.

    TorchRL's own renames a leaf `state`, puts leaves beside `reward` and `done`, and has another spec for a
    MultiDiscrete with equal counts.
    """

    def _make_specs(self, env: Any, batch_size: Any = None) -> None:
        super()._make_specs(env, batch_size)
        observation = leaf_spec(env.single_observation_space)
        self.observation_spec = Composite(observation=observation).expand(env.num_envs)

    def read_obs(self, observations: Any) -> dict[str, Any]:
        """The tensors of what was observed."""
        return {"observation": as_tensors(observations)}


def leaf_spec(space: Space[Any]) -> TensorSpec:
    """The spec of an observation that an adapter gives."""
    if isinstance(space, gym.spaces.Dict):
        return Composite({name: leaf_spec(leaf) for name, leaf in space.spaces.items()})
    if isinstance(space, Discrete):
        return Categorical(int(space.n), shape=torch.Size([]), dtype=torch.int64)
    if isinstance(space, MultiDiscrete):
        return MultiCategorical([int(count) for count in space.nvec], dtype=torch.int64)
    assert space.shape is not None
    return Unbounded(torch.Size(space.shape), dtype=torch.float32)


def as_tensors(observations: Any) -> Tensor | TensorDict:
    """What a vector environment observes as tensors on the same memory, a Dict as a TensorDict `(count,)`."""
    if not isinstance(observations, dict):
        return torch.from_numpy(observations)
    leaves = {name: torch.from_numpy(leaf) for name, leaf in observations.items()}
    # Checks of tensors that are known to fit would take longer than a step of a small environment.
    made: TensorDict = TensorDict._new_unsafe(leaves, batch_size=next(iter(leaves.values())).shape[:1])
    return made


def arrays(observations: Any) -> list[Any]:
    """The arrays that an observation is made of, in the order of its leaves."""
    return list(observations.values()) if isinstance(observations, dict) else [observations]


def put(observations: Any, place: Any, observation: Any) -> None:
    """Write what one environment, or some, observe into what all of them do."""
    if isinstance(observations, dict):
        for name, leaf in observations.items():
            leaf[place] = observation[name]
    else:
        observations[place] = observation


def copied(observations: Any) -> Any:
    """A copy of what all environments observe."""
    if isinstance(observations, dict):
        return {name: leaf.copy() for name, leaf in observations.items()}
    return observations.copy()


def seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed an environment, far apart: Gymnasium's own `seed + i` makes the runs of neighboring seeds overlap.

    They are below 2^31: some simulators keep them in 32 bits with a sign.
    """
    return [int(word) & (2**31 - 1) for word in np.random.SeedSequence(seed).generate_state(count)]


class SequentialVectorEnv(VectorEnv[Any, Any, Any]):
    """Gymnasium environments of the same spaces, stepped one after the other.

    Gymnasium's SyncVectorEnv takes twice the time, most of it when nothing is in the processor's caches, as after an
    update. TorchRL resets the finished ones itself, by mask: every mode of Gymnasium's own autoreset either replaces
    the final observation or inserts a transition that never happened.
    """

    autoreset_mode = AutoresetMode.DISABLED

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self.envs = envs
        self.num_envs = len(envs)
        self.metadata = envs[0].metadata | {"autoreset_mode": self.autoreset_mode}
        self.render_mode = envs[0].render_mode
        self.native_spaces: tuple[Any, Any] = envs[0].get_wrapper_attr("native_spaces")
        self.single_observation_space = envs[0].observation_space
        self.single_action_space = envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observations: Any = create_empty_array(self.single_observation_space, self.num_envs)
        # Whether the last step of each says that its task was done; NaN where it says nothing.
        self.success = np.full(self.num_envs, np.nan)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes, those of `options["reset_mask"]` or all; `seed` is a list of one for each, or for all."""
        given = list(seeds(seed, self.num_envs)) if isinstance(seed, int) else seed or [None] * self.num_envs
        mask = [True] * self.num_envs if options is None else options["reset_mask"]
        for number, (env, wanted, own) in enumerate(zip(self.envs, mask, given, strict=True)):
            if wanted:
                put(self._observations, number, env.reset(seed=own)[0])
        return copied(self._observations), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take an action in every environment."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        for number, env in enumerate(self.envs):
            observation, rewards[number], terminated[number], truncated[number], info = env.step(actions[number])
            put(self._observations, number, observation)
            self.success[number] = info.get("is_success", np.nan)
        return copied(self._observations), rewards, terminated, truncated, {}

    def render(self) -> tuple[Any, ...]:
        """Draw every one."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **options: Any) -> None:
        """Close them."""
        for env in self.envs:
            env.close()
