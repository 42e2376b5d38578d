"""Gymnasium environments stepped together in one process."""

from abc import ABC, abstractmethod
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
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from torchrl.envs import EnvBase, GymWrapper

from sac_torchrl.specs import MASK, legal_actions


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

    def rand_action(self, tensordict: Any = None) -> Any:
        """Draw actions uniformly, from those that the mask in `tensordict` allows where there are masks."""
        mask = None if tensordict is None else tensordict.get(("observation", MASK), None)
        if mask is None or mask.is_floating_point():
            return super().rand_action(tensordict)
        space = self._env.single_action_space
        sizes = [int(space.n)] if isinstance(space, Discrete) else space.nvec.tolist()
        return draw_legal(tensordict, sizes, self.action_spec.shape)

    def read_obs(self, observations: Any) -> dict[str, Any]:
        """The tensors of what was observed."""
        return {"observation": as_tensors(observations)}


def draw_legal(tensordict: Any, sizes: Sequence[int], shape: torch.Size) -> Any:
    """Draw `action` uniformly from the actions, of so many values each, that the leaf `action_mask` allows."""
    legal = legal_actions(tensordict.get(("observation", MASK)), sum(sizes)).float().split_with_sizes(list(sizes), -1)
    chosen = torch.cat([torch.multinomial(part, 1) for part in legal], -1)
    return tensordict.set("action", chosen.reshape(shape))


def leaf_spec(space: Space[Any]) -> TensorSpec:
    """The spec of an observation that an adapter gives."""
    if isinstance(space, gym.spaces.Dict):
        return Composite({name: leaf_spec(leaf) for name, leaf in space.spaces.items()})
    if isinstance(space, Discrete):
        return Categorical(int(space.n), shape=torch.Size([]), dtype=torch.int64)
    if isinstance(space, MultiDiscrete):
        return MultiCategorical([int(count) for count in space.nvec], dtype=torch.int64)
    assert space.shape is not None
    if space.dtype == np.bool_:
        return Binary(space.shape[0], dtype=torch.bool)
    # What is uint8 is the bits of a mask.
    return Unbounded(torch.Size(space.shape), dtype=torch.uint8 if space.dtype == np.uint8 else torch.float32)


def as_tensors(observations: Any) -> Tensor | TensorDict:
    """What a vector environment observes as tensors on the same memory, a Dict as a TensorDict `(count,)`."""
    if not isinstance(observations, dict):
        return torch.from_numpy(observations)
    leaves = {name: torch.from_numpy(leaf) for name, leaf in observations.items()}
    # Checks of tensors that are known to fit would take longer than a step of a small environment.
    made: TensorDict = TensorDict._new_unsafe(leaves, batch_size=next(iter(leaves.values())).shape[:1])
    return made


def as_arrays(observations: Tensor | TensorDict) -> Any:
    """What `as_tensors` was made of."""
    if isinstance(observations, Tensor):
        return observations.numpy()
    return {name: leaf.numpy() for name, leaf in observations.items()}


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


class AgentVectorEnv(VectorEnv[Any, Any, Any], ABC):
    """Environments of the same spaces, the agent's, that are stepped together and reset by mask.

    TorchRL resets the finished ones: every mode of Gymnasium's own autoreset either replaces the final observation or
    inserts a transition that never happened. A subclass writes what it observes into `_observations`.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as its base declares it
    autoreset_mode = AutoresetMode.DISABLED
    render_mode: str | None = None

    def __init__(self, count: int, observation_space: Space[Any], action_space: Space[Any]) -> None:
        self.num_envs = count
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, count)
        self.action_space = batch_space(action_space, count)
        self._observations: Any = create_empty_array(observation_space, count)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes, those of `options["reset_mask"]` or all; an integer seeds each environment differently."""
        own = list[int | None](seeds(seed, self.num_envs)) if isinstance(seed, int) else seed
        self._reset(own, np.ones(self.num_envs, np.bool_) if options is None else options["reset_mask"])
        return copied(self._observations), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take an action in every environment."""
        rewards, terminated, truncated = self._step(actions)
        return copied(self._observations), rewards, terminated, truncated, {}

    @abstractmethod
    def _reset(self, seeds: list[int | None] | None, mask: Any) -> None:
        """Start episodes where `mask` `(count,)`, with a seed for each environment or none at all."""

    @abstractmethod
    def _step(self, actions: Any) -> tuple[Any, Any, Any]:
        """Take an action in every environment: float64 rewards, terminations and truncations, all `(count,)`."""


class SequentialVectorEnv(AgentVectorEnv):
    """Gymnasium environments, stepped one after the other.

    Gymnasium's SyncVectorEnv takes twice the time, most of it when nothing is in the processor's caches, as after an
    update.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        super().__init__(len(envs), envs[0].observation_space, envs[0].action_space)
        self.envs = envs
        self.metadata = envs[0].metadata | {"autoreset_mode": self.autoreset_mode}
        self.render_mode = envs[0].render_mode
        self.native_spaces: tuple[Any, Any] = envs[0].get_wrapper_attr("native_spaces")
        # Whether the last step of each says that its task was done; NaN where it says nothing.
        self.success = np.full(self.num_envs, np.nan)

    def render(self) -> tuple[Any, ...]:
        """Draw every one."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **options: Any) -> None:
        """Close them."""
        for env in self.envs:
            env.close()

    def _reset(self, seeds: list[int | None] | None, mask: Any) -> None:
        for number, env in enumerate(self.envs):
            if mask[number]:
                put(self._observations, number, env.reset(seed=seeds[number] if seeds else None)[0])

    def _step(self, actions: Any) -> tuple[Any, Any, Any]:
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        for number, env in enumerate(self.envs):
            observation, rewards[number], terminated[number], truncated[number], info = env.step(actions[number])
            put(self._observations, number, observation)
            self.success[number] = info.get("is_success", np.nan)
        return rewards, terminated, truncated
