"""Which continuous numbers of a Dict or Tuple of actions belong to which discrete value."""

import math
from collections.abc import Sequence
from typing import Any

from gymnasium.spaces import Box, Dict, Space, Tuple

from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.masks import action_counts
from sac_torchrl.envs.observations import every_leaf
from sac_torchrl.errors import ConfigError
from sac_torchrl.specs import MOST_ENUMERATED, HybridAction


def hybrid_action(
    space: Space[Any] | None, id: str, parameters: Sequence[Sequence[int]] | None = None
) -> HybridAction | None:
    """How a vector holds an action of a Dict or Tuple with discrete and continuous leaves; None for another space.

    `parameters` are those of `HybridAction`. Without any, Boxes belong to values where there is one Discrete and as
    many Boxes as it has values, side by side in one Tuple: the first Box to its first value, and so on. Otherwise every
    Box belongs to every value. Raises ConfigError for parameters that do not fit.
    """
    sizes, boxes = list[int](), list[tuple[Any, range]]()
    dimensions = 0
    for path, leaf in every_leaf(space) if isinstance(space, (Dict, Tuple)) else ():
        if isinstance(leaf, Box):
            boxes.append((path, range(dimensions, dimensions + math.prod(leaf.shape))))
            dimensions += math.prod(leaf.shape)
        else:
            sizes += action_counts(adapt_action(leaf, id)[0])
    if not sizes or not boxes:
        if parameters is not None:
            raise ConfigError(
                f"env.parameters={_lists(parameters)}: env.id={id} has no discrete actions with continuous "
                "parameters: leave it out."
            )
        return None
    joint = math.prod(sizes)
    if joint > MOST_ENUMERATED:
        raise ConfigError(
            f"env.id={id} has {joint:,} joint values of its discrete actions beside continuous ones, and at most "
            f"{MOST_ENUMERATED:,} are summed over: give a wrapper from env.plugins with fewer as env.wrappers=[NAME]."
        )
    if parameters is None:
        beside = len({path[:-1] for path, _ in boxes}) == 1 and isinstance(boxes[0][0][-1], int)
        owned = sizes == [len(boxes)] and beside
        own = [tuple(numbers) for _, numbers in boxes] if owned else [tuple(range(dimensions))] * joint
    else:
        _check_parameters(parameters, id, joint, dimensions)
        own = [tuple(numbers) for numbers in parameters]
    return HybridAction(tuple(sizes), dimensions, tuple(own))


def _check_parameters(parameters: Sequence[Sequence[int]], id: str, joint: int, dimensions: int) -> None:
    every = [number for own in parameters for number in own]
    repeated = any(len(set(own)) < len(own) for own in parameters)
    if len(parameters) != joint or repeated or set(every) != set(range(dimensions)):
        raise ConfigError(
            f"env.parameters={_lists(parameters)}: give a list for each of the {joint} discrete values of env.id={id}, "
            f"with those of its continuous numbers 0 to {dimensions - 1} that belong to it, each of them at least once."
        )


def _lists(parameters: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(own) for own in parameters]
