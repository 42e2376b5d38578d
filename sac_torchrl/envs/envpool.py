"""EnvPool's environments, stepped by threads of C++, as one Gymnasium vector environment at the agent's edge."""

import warnings
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.observations import adapt_observation
from sac_torchrl.envs.vector import AgentVectorEnv
from sac_torchrl.errors import ConfigError, EnvironmentFault, nearest, short
from sac_torchrl.extras import require


class Pool(AgentVectorEnv):
    """`count` environments of EnvPool's task `name`: float32 vectors or indices in, actions in [-1, 1] or indices out.

    EnvPool resets an environment at the step after its last one, unless it is reset before, as it is here. Raises
    ConfigError for a task that is not there, and EnvironmentFault for numbers that are not finite.
    """

    def __init__(self, name: str, count: int) -> None:
        self._id = f"envpool/{name}"
        self._envpool: Any = require("envpool", f"env.id={self._id}")
        known = [f"envpool/{one}" for one in self._envpool.list_all_envs()]
        if self._id not in known:
            raise ConfigError(f"env.id={self._id} is not a task of EnvPool{nearest(self._id, known)}")
        self._name = name
        with _quiet():
            spec = self._envpool.make_spec(name)
            self._seen, self._moved = spec.gymnasium_observation_space, spec.gymnasium_action_space
        self.native_spaces = self._seen, self._moved
        observed, _ = adapt_observation(self._seen, self._id)
        if not isinstance(self._seen, (Box, Discrete)) or observed.shape != self._seen.shape:
            raise ConfigError(
                f"env.id={self._id}: it observes {short(self._seen)}, and of EnvPool's tasks only vectors and "
                "indices are taken: give the same task of Gymnasium, if there is one."
            )
        taken, self._rescale = adapt_action(self._moved, self._id)
        super().__init__(count, observed, taken)
        self._pool: Any = None

    def close_extras(self, **options: Any) -> None:
        """Close them."""
        if self._pool is not None:
            self._pool.close()

    def _reset(self, seeds: list[int | None] | None, mask: Any) -> None:
        if self._pool is None or seeds is not None:
            # Its seeds are those that it was made with, 31 bits each.
            given = seeds or [None] * self.num_envs
            random = np.random.SeedSequence().generate_state(self.num_envs)
            own = [int(word) if seed is None else seed for word, seed in zip(random, given, strict=True)]
            self.close_extras()
            with _quiet():
                self._pool = self._envpool.make_gymnasium(
                    self._name, num_envs=self.num_envs, env_seed=[seed % 2**31 for seed in own]
                )
                # It makes its spaces when they are first looked at, and keeps them.
                _ = self._pool.observation_space, self._pool.action_space
            mask = np.ones_like(mask)
        observations, information = self._pool.reset(np.flatnonzero(mask).astype(np.int32))
        self._see(observations, information["env_id"])

    def _step(self, actions: Any) -> tuple[Any, Any, Any]:
        discrete = isinstance(self._moved, Discrete)
        chosen = actions + self._moved.start if discrete else self._rescale(actions)
        observations, rewards, terminated, truncated, information = self._pool.step(chosen.astype(self._moved.dtype))
        indices = information["env_id"]
        self._see(observations, indices)
        self._check(rewards, indices, "reward")
        order = np.argsort(indices)
        return rewards[order].astype(np.float64), terminated[order], truncated[order]

    def _see(self, observations: Any, indices: Any) -> None:
        self._check(observations, indices, "observation")
        first = self._seen.start if isinstance(self._seen, Discrete) else 0
        self._observations[indices] = observations - first

    def _check(self, values: Any, indices: Any, what: str) -> None:
        finite = np.isfinite(values).reshape(len(indices), -1).all(-1)
        if not finite.all():
            raise EnvironmentFault(
                f"environment {indices[finite.argmin()]} of {self._id} returned an {what} that is not finite."
            )


class _quiet(warnings.catch_warnings):  # noqa: N801 - read as an adjective
    """Drops Gymnasium's remarks about bounds that EnvPool gives in another precision."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=r"\x1b\[33mWARN: ")
