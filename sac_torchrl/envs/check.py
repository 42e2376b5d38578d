"""Problems of an environment, found by stepping it."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from torchrl.data import Composite

from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.findings import Finding, Kind
from sac_torchrl.envs.resume_check import resume_finding
from sac_torchrl.errors import ConfigError, EnvironmentFault, short
from sac_torchrl.specs import MASK, Specs

FRAMES = 10_000
EPISODES = 3
REPEATED = 300
LARGE = 100.0  # numbers that a network takes as they are lie around 1


class _Seen(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the environment's own last observation."""

    observation: Any = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**options)
        self.observation = result[0]
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self.observation = result[0]
        return result


def check_env(plan: EnvConfig) -> Iterator[Finding]:
    """Open the environments of `plan`, take random actions, and yield each finding when it is made."""
    try:
        specs = plan.specs()
        edge: Any = None if plan.in_one else plan.open()
    except ConfigError as error:
        yield Finding(Kind.fault, str(error))
        return
    if edge is None:
        yield Finding(Kind.note, f"{plan.id} steps all its environments at once: none can be checked alone")
        return
    yield Finding(Kind.note, f"observes {short(edge.env.observation_space)}, acts in {short(edge.env.action_space)}")
    yield Finding(
        Kind.note,
        f"the agent observes {_described(specs)} and chooses {specs.action.dtype} {tuple(specs.action.shape)}",
    )
    try:
        try:
            yield from _play(edge)
        finally:
            edge.close()
        yield from _repeat(plan)
        if plan.single:
            yield Finding(Kind.note, "the resume test needs two that are open, and env.single=true: not tried")
        else:
            yield resume_finding(plan)[0]
    except EnvironmentFault as fault:
        yield Finding(
            Kind.fault, str(fault).partition(" `sac-torchrl check-env")[0].partition(" sac_torchrl.envs.check")[0]
        )


def _play(edge: Any) -> Iterator[Finding]:
    """Random actions until a few episodes are over."""
    edge.env = seen = _Seen(edge.env)
    space, strange = seen.observation_space, False
    edge.action_space.seed(0)
    edge.reset(seed=0)
    lengths, length = list[int](), 0
    rewards, largest, reported = set[float](), dict[str, Any](), False
    for _ in range(FRAMES):
        before = seen.observation
        if not strange and (what := _outside(space, seen.observation)):
            strange = True
            yield Finding(Kind.warning, what)
        observation, reward, terminated, truncated, _ = edge.step(edge.random_action())
        rewards.add(reward)
        if not reported and (what := _same_in_float32(before, seen.observation)):
            reported = True
            yield Finding(Kind.warning, what)
        for name, leaf in _leaves(observation).items():
            if name != MASK:
                largest[name] = np.maximum(largest.get(name, 0.0), np.abs(leaf))
        length += 1
        if terminated or truncated:
            lengths.append(length)
            length = 0
            if len(lengths) == EPISODES:
                break
            edge.reset()
    if lengths:
        yield Finding(Kind.note, f"{len(lengths)} episodes of random actions took {lengths} frames")
    elif edge.spec is not None and edge.spec.max_episode_steps:
        yield Finding(Kind.note, f"no episode ended in {FRAMES:,} frames; the limit is {edge.spec.max_episode_steps:,}")
    else:
        yield Finding(
            Kind.fault,
            f"no episode ended in {FRAMES:,} frames and there is no time limit: set env.max_episode_steps, or register "
            "it with one",
        )
    if len(rewards) == 1:
        yield Finding(
            Kind.note,
            f"the reward was {rewards.pop():g} in every frame: only when episodes end tells one action from another",
        )
    for name, most in largest.items():
        if isinstance(most, np.ndarray) and most.dtype.kind == "f" and most.ndim and most.max() > LARGE:
            yield Finding(
                Kind.note,
                f"observes up to {most.max():.3g} at {name} {most.argmax()}: try normalize=true, or scale it",
            )


def _described(specs: Specs) -> str:
    if not isinstance(specs.observation, Composite):
        return f"{specs.observation.dtype} {tuple(specs.observation.shape)}"
    return ", ".join(f"{key[-1]} {leaf.dtype} {tuple(leaf.shape)}" for key, leaf in specs.leaves.items())


def _leaves(observation: Any) -> dict[str, Any]:
    return observation if isinstance(observation, dict) else {"index": observation}


def _same_in_float32(before: Any, after: Any) -> str:
    """Which two numbers, one after the other, are one to the agent; of observations that are one array."""
    one, other = (value if isinstance(value, np.ndarray) else np.empty(0) for value in (before, after))
    if one.shape != other.shape or one.dtype.kind not in "fiu" or one.dtype.itemsize < 4:
        return ""
    lost = (one != other) & (one.astype(np.float32) == other.astype(np.float32))
    if not lost.any():
        return ""
    index = int(lost.argmax())
    return (
        f"observes {one.flat[index]!r} and then {other.flat[index]!r} at index {index}, which are one number in "
        "float32: subtract an offset, or scale it"
    )


def _outside(space: Any, observation: Any) -> str:
    if space.contains(observation):
        return ""
    if space.shape is None or not isinstance(space, Box):
        return f"observes {short(repr(observation))}, which is outside of its space {short(space)}"
    array = np.asarray(observation)
    if array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
        return f"observes {array.dtype} {array.shape} and its space says {space.dtype} {space.shape}"
    if array.dtype != space.dtype and space.contains(array.astype(space.dtype)):
        return f"observes {array.dtype} and its space says {space.dtype}; the agent sees float32"
    return f"observes {short(repr(observation))}, which is outside of its space {short(space)}"


def _repeat(plan: EnvConfig) -> Iterator[Finding]:
    """The same seed and actions twice, and once more where another episode was played before."""
    first, second, third = (_trajectory(plan, seed=1, used=used) for used in (False, False, True))
    if first != second:
        yield Finding(
            Kind.warning,
            "the same seed and actions give another episode: draw from self.np_random, which reset(seed=...) seeds; "
            "runs cannot be repeated",
        )
    elif first != third:
        yield Finding(
            Kind.warning,
            "an episode depends on what was played before it: have reset(seed=...) put everything back",
        )


def _trajectory(plan: EnvConfig, *, seed: int, used: bool) -> list[Any]:
    env: Any = plan.open()
    try:
        if used:
            env.reset(seed=seed + 1)
            for _ in range(REPEATED // 10):
                if any(env.step(env.random_action())[2:4]):
                    break
        env.action_space.seed(seed)
        seen = [env.reset(seed=seed)[0]]
        for _ in range(REPEATED):
            observation, reward, terminated, truncated, _ = env.step(env.random_action())
            seen += [observation, reward, terminated, truncated]
            if terminated or truncated:
                seen.append(env.reset()[0])
    finally:
        env.close()
    return [np.asarray(leaf).tobytes() for value in seen for leaf in _leaves(value).values()]
