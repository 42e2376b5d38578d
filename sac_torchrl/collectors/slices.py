"""A worker's slice of the environments, opened so that a failure names the environment that raised it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import gymnasium as gym

from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import SequentialVectorEnv
from sac_torchrl.errors import EnvironmentFault, short

T = TypeVar("T")


def split(count: int, workers: int) -> list[range]:
    """Deal `count` environments out to at most `workers` workers, evenly."""
    workers = min(count, workers)
    ends = [count * number // workers for number in range(workers + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def open_slice(env: EnvConfig, environments: range, busy: Any) -> SequentialVectorEnv:
    """Open a worker's environments; `busy.value` is the number of the one that runs. Raises EnvironmentFailed."""
    return SequentialVectorEnv([_Numbered(env, number, busy) for number in environments])


class EnvironmentFailed(Exception):
    """The environment `number` raised: the cause says what, `text` says it on one line."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number = number
        self.text = text

    def __str__(self) -> str:
        return self.text


class _Numbered(gym.Wrapper[Any, Any, Any, Any]):
    """One environment of a slice."""

    def __init__(self, env: EnvConfig, number: int, busy: Any) -> None:
        self._number = number
        self._busy = busy
        super().__init__(self._call(env.open, tolerate_faults=True))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        return self._call(self.env.reset, seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes an action."""
        return self._call(self.env.step, action)

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        self._busy.value = self._number
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise EnvironmentFailed(self._number, describe(error)) from error


def describe(error: BaseException) -> str:
    """The type and the text of an error on one line."""
    # A fault is a line already, and says at its end in which step.
    text = str(error) if isinstance(error, EnvironmentFault) else short(error)
    return f"{type(error).__name__}: {text}".rstrip(".: ")
