"""Importing this registers environments whose spaces a deployed policy has to get right; returns tell actions apart."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete, Space

from sac_torchrl.agents.normalization import Normalizer
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.deploy.saved import SavedPolicy
from sac_torchrl.envs.config import EnvConfig

VARIANTS = {name: kind for options in TrainConfig.variants.values() for name, kind in options.items()}


class Drift(gym.Env[Any, Any]):
    """Observations are drawn from `observation_space`, a reward is the sum of the action; ten frames an episode."""

    def __init__(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.time += 1
        return self._observe(), total(action), False, self.time >= 10, {}

    def _observe(self) -> Any:
        return draw(self.observation_space, self.np_random)


def total(action: Any) -> float:
    """The sum of all numbers of an action."""
    if isinstance(action, (dict, tuple)):
        return sum(total(part) for part in (action.values() if isinstance(action, dict) else action))
    return float(np.sum(action))


def draw(space: Space[Any], generator: np.random.Generator) -> Any:
    """A random observation, of numbers that are not small."""
    match space:
        case spaces.Dict():
            return {name: draw(part, generator) for name, part in space.items()}
        case spaces.Tuple():
            return tuple(draw(part, generator) for part in space)
        case Discrete():
            return int(generator.integers(space.n) + space.start)
        case spaces.MultiDiscrete():
            return generator.integers(space.nvec) + space.start
        case spaces.MultiBinary():
            return generator.integers(0, 2, space.shape).astype(np.int8)
        case Box():
            return generator.normal(0.0, 3.0, space.shape).astype(space.dtype)
    return "go"  # a Text, or what a policy knows of one


def stack(rows: list[Any]) -> Any:
    """A batch of observations, leaf by leaf."""
    if isinstance(rows[0], dict):
        return {name: stack([row[name] for row in rows]) for name in rows[0]}
    if isinstance(rows[0], tuple):
        return tuple(stack(list(parts)) for parts in zip(*rows, strict=True))
    return np.array(rows)


VECTOR = Box(-np.inf, np.inf, (3,), np.float64)
UNEVEN = Box(np.array([-3.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32))
WORLDS: dict[str, tuple[Space[Any], Space[Any]]] = {
    "Uneven-v0": (VECTOR, UNEVEN),
    "UnevenStates-v0": (Discrete(4, start=2), UNEVEN),
    "Shifted-v0": (Discrete(4, start=-1), Discrete(3, start=3)),
    "ShiftedVector-v0": (VECTOR, Discrete(3, start=3)),
    "Leaves-v0": (
        spaces.Dict(
            {
                "matrix": Box(-9, 9, (2, 2)),
                "place": Discrete(4, start=2),
                "many": spaces.MultiDiscrete([2, 3], start=[1, -1]),
                "several": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
                "pair": spaces.Tuple([Box(0, 9, (), np.float64), spaces.MultiBinary(2)]),
            }
        ),
        UNEVEN,
    ),
    "Told-v0": (spaces.Dict(mission=spaces.Text(9), pair=spaces.Tuple([spaces.Text(9), VECTOR])), UNEVEN),
    "Buttons3-v0": (VECTOR, spaces.MultiBinary(3)),
    "Grid-v0": (VECTOR, spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[5, -1], [0, 0]]))),
    "Matrix-v0": (VECTOR, Box(np.array([[-3.0], [0.0]], np.float32), np.array([[1.0], [0.5]], np.float32))),
    "Several-v0": (VECTOR, spaces.MultiDiscrete([2, 3], start=[5, -1])),
    "Platform-v0": (VECTOR, spaces.Tuple([Discrete(3, start=1), *(Box(0, size, (1,)) for size in (30, 720, 430))])),
    "Hybrid-v0": (
        Discrete(4, start=2),
        spaces.Dict(
            {
                "arm": Box(-2, 2, (2, 2), np.float64),
                "grip": Discrete(2),
                "head": spaces.Tuple([spaces.MultiBinary(2), Box(0, 1, ())]),
            }
        ),
    ),
    "Boxes-v0": (VECTOR, spaces.Dict(left=UNEVEN, right=Box(0, 1, (1,)))),
    "Switches-v0": (VECTOR, spaces.Tuple([Discrete(3, start=2), spaces.MultiBinary(2)])),
    "TupleOfStates-v0": (spaces.Tuple([Discrete(3), Discrete(2, start=7)]), Discrete(3, start=3)),
}

for _name, _spaces in WORLDS.items():
    if _name not in gym.registry:
        gym.register(_name, lambda spaces=_spaces, **_: Drift(*spaces))


def save_policy(
    folder: Path, variant: str, id: str, *, normalize: bool = False, env: dict[str, Any] | None = None, **fields: Any
) -> Path:
    """Save a policy with fresh weights as a run does; its normalizer has seen numbers other than 0 and 1."""
    opened = EnvConfig(id, plugins=[__name__] if id in WORLDS else [], **env or {})
    config = TrainConfig(variant=VARIANTS[variant](**fields), env=opened, normalize=normalize, device="cpu")
    specs = config.specs()
    torch.manual_seed(3)
    actor = config.agent(specs, device=torch.device("cpu")).actor
    for part in actor.modules():
        if isinstance(part, Normalizer):
            part.mean += torch.linspace(-1, 2, len(part.mean))
            part.var *= 5.0
    return SavedPolicy.of(actor, config, specs, frames=12).write(folder / f"{variant}-{id}").parent
