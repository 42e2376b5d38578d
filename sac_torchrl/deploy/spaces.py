"""Gymnasium spaces as JSON, and the agent's specs for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, TensorSpec

from sac_torchrl.envs.actions import adapt_action, bounded
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.hybrid_actions import hybrid_action
from sac_torchrl.envs.masks import Mask, MaskSource, action_counts
from sac_torchrl.envs.observations import adapt_observation
from sac_torchrl.envs.vector import leaf_spec
from sac_torchrl.specs import MASK, Specs


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple space.

    Bounds are one number where all are the same; an infinite one is the string "inf" or "-inf", as JSON has none. Of
    any other space, which an agent can only leave out (`env.ignore`), it says that there is one.
    """
    kind = type(space).__name__
    match space:
        case spaces.Box():
            bounds = {"low": _bound_to_json(space.low), "high": _bound_to_json(space.high)}
            return {"type": kind, "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case spaces.Discrete():
            return {"type": kind, "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
        case spaces.MultiDiscrete():
            counts = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
            return {"type": kind, **counts, "dtype": str(space.dtype)}
        case spaces.MultiBinary():
            return {"type": kind, "shape": list(space.shape)}
        case spaces.Dict():
            return {"type": kind, "spaces": {name: space_to_json(part) for name, part in space.items()}}
        case spaces.Tuple():
            return {"type": kind, "spaces": [space_to_json(part) for part in space]}
    return {"type": "Space"}


def space_from_json(content: dict[str, Any]) -> spaces.Space[Any]:
    """Build the space that `space_to_json` described; raises ValueError for another type."""
    match content["type"]:
        case "Box":
            shape, dtype = tuple(content["shape"]), np.dtype(content["dtype"])
            low, high = (_bound_from_json(content[name], shape, dtype) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case "Discrete":
            return spaces.Discrete(content["n"], start=content["start"], dtype=np.dtype(content["dtype"]).type)
        case "MultiDiscrete":
            dtype = np.dtype(content["dtype"])
            return spaces.MultiDiscrete(np.array(content["nvec"]), dtype.type, start=np.array(content["start"]))
        case "MultiBinary":
            return spaces.MultiBinary(content["shape"])
        case "Dict":
            return spaces.Dict({name: space_from_json(part) for name, part in content["spaces"].items()})
        case "Tuple":
            return spaces.Tuple([space_from_json(part) for part in content["spaces"]])
        case "Space":
            return spaces.Space()
    raise ValueError(f"{content['type']} is not the type of a space")


def environment_spaces(specs: Specs, env: EnvConfig) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """The observation space of `env` as it declares it, the agent's where `specs` holds no other; its action space.

    The latter has the bounds that actions are rescaled to, which `env.bounds` may set.
    """
    observation, action = specs.observation_space, specs.action_space
    # Not `or`: Gymnasium warns where a matrix is asked for its length.
    observation = _agent_space(specs.observation) if observation is None else observation
    action = _agent_space(specs.action) if action is None else action
    return observation, action if env.bounds is None else bounded(action, env.id, env.bounds)


def agent_specs(
    observation: spaces.Space[Any],
    action: spaces.Space[Any],
    id: str,
    *,
    ignore: Sequence[str],
    bins: int | None,
    mask: MaskSource = MaskSource.none,
    parameters: Sequence[Sequence[int]] | None = None,
) -> Specs:
    """What an agent sees of the spaces of environment `id`; raises ConfigError where SAC cannot use them.

    Any `mask` but none means that there are masks, with `observation` in the observation.
    """
    chosen = adapt_action(action, id, bins=bins)[0]
    seen = adapt_observation(observation, id, [*ignore, MASK] if mask is MaskSource.observation else ignore)[0]
    if mask is not MaskSource.none:
        seen = Mask(mask, action_counts(chosen)).with_leaf(seen, id)
    if isinstance(chosen, spaces.Box):
        spec: TensorSpec = Bounded(-1.0, 1.0, torch.Size(chosen.shape), dtype=torch.float32)
    else:
        spec = leaf_spec(chosen)
    hybrid = hybrid_action(action, id, parameters)
    return Specs(leaf_spec(seen), spec, observation_space=observation, action_space=action, hybrid=hybrid)


def _agent_space(spec: TensorSpec) -> spaces.Space[Any]:
    if isinstance(spec, Composite):
        return spaces.Dict({str(name): _agent_space(leaf) for name, leaf in spec.items()})
    if isinstance(spec, MultiCategorical):
        return spaces.MultiDiscrete([int(count) for count in spec.nvec])
    if isinstance(spec, Categorical):
        return spaces.Discrete(int(spec.space.n))
    bound = 1.0 if isinstance(spec, Bounded) else np.inf
    return spaces.Box(-bound, bound, tuple(spec.shape), np.float32)


def _bound_to_json(bound: Any) -> Any:
    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(part) for part in value]
        return value if np.isfinite(value) else str(value)

    same = bound.size > 0 and (bound == bound.flat[0]).all()
    return number(bound.flat[0].item() if same else bound.tolist())


def _bound_from_json(content: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(part) for part in value]
        return float(value) if isinstance(value, str) else value

    return np.broadcast_to(np.array(number(content), dtype), shape).copy()
