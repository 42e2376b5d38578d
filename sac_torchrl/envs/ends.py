"""Whether episodes end."""

from typing import Any

from torchrl.envs import EnvBase

from sac_torchrl.envs import generators
from sac_torchrl.errors import ConfigError, EnvironmentFault

FRAMES = 10_000


def has_limit(env: Any) -> bool:
    """Whether a Gymnasium environment was made with a time limit."""
    return env.spec is not None and bool(env.spec.max_episode_steps)


def refuse_endless(env: EnvBase, id: str) -> None:
    """Raise ConfigError where the first environment of `env` has no time limit and random actions meet no end."""
    vector: Any = env._env  # TorchRL's wrapper has no public name for what it wraps
    first = vector.envs[0]
    if has_limit(first) or id.startswith("dmc/"):
        return
    with generators.preserve():
        first.action_space.seed(0)
        try:
            first.reset(seed=0)
            for _ in range(FRAMES):
                if any(first.step(first.get_wrapper_attr("random_action")())[2:4]):
                    return
        except EnvironmentFault:
            return  # The run will reach this fault itself, and handles it by env.faults.
    raise ConfigError(
        f"env.id={id}: no episode ended in {FRAMES:,} frames of random actions and there is no time limit: set "
        "env.max_episode_steps, or register it with one."
    )
