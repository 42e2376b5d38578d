"""EnvPool's environments, stepped by threads of C++, as one Gymnasium vector environment at the agent's edge."""

import warnings
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.observations import adapt_observation
from sac_torchrl.errors import ConfigError, EnvironmentFault, nearest, short
from sac_torchrl.extras import require


class Pool(VectorEnv[Any, Any, Any]):
    """`count` environments of EnvPool's task `name`: float32 vectors or indices in, actions in [-1, 1] or indices out.

    EnvPool resets an environment at the step after its last one, unless it is reset before: whoever steps this resets
    the finished ones by mask, so that every observation is true. Raises ConfigError for a task that is not there, and
    EnvironmentFault for numbers that are not finite.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as its base declares it
    autoreset_mode = AutoresetMode.DISABLED
    render_mode = None

    def __init__(self, name: str, count: int) -> None:
        self._id = f"envpool/{name}"
        self._envpool: Any = require("envpool", f"env.id={self._id}")
        known = [f"envpool/{one}" for one in self._envpool.list_all_envs()]
        if self._id not in known:
            raise ConfigError(f"env.id={self._id} is not a task of EnvPool{nearest(self._id, known)}")
        self.num_envs = count
        self._name = name
        with _quiet():
            spec = self._envpool.make_spec(name)
            self._seen, self._moved = spec.gymnasium_observation_space, spec.gymnasium_action_space
        self.native_spaces = self._seen, self._moved
        self.single_observation_space, _ = adapt_observation(self._seen, self._id)
        if not isinstance(self._seen, (Box, Discrete)) or self.single_observation_space.shape != self._seen.shape:
            raise ConfigError(
                f"env.id={self._id}: it observes {short(self._seen)}, and of EnvPool's tasks only vectors and "
                "indices are taken: give the same task of Gymnasium, if there is one."
            )
        self.single_action_space, self._rescale = adapt_action(self._moved, self._id)
        self.observation_space = batch_space(self.single_observation_space, count)
        self.action_space = batch_space(self.single_action_space, count)
        self._observations = np.zeros(self.observation_space.shape or (), self.observation_space.dtype)
        self._pool: Any = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes, those of `options["reset_mask"]` or all; an integer seeds each environment differently."""
        if self._pool is None or seed is not None:
            # Its seeds are those that it was made with, 31 bits each.
            words = np.random.SeedSequence(seed if isinstance(seed, int) else None).generate_state(self.num_envs)
            given = seed if isinstance(seed, list) else [None] * self.num_envs
            own = [int(word) if one is None else one for word, one in zip(words, given, strict=True)]
            self.close_extras()
            with _quiet():
                self._pool = self._envpool.make_gymnasium(
                    self._name, num_envs=self.num_envs, env_seed=[one % 2**31 for one in own]
                )
                # It makes its spaces when they are first looked at, and keeps them.
                _ = self._pool.observation_space, self._pool.action_space
            options = None
        mask = np.ones(self.num_envs, np.bool_) if options is None else options["reset_mask"]
        observations, information = self._pool.reset(np.flatnonzero(mask).astype(np.int32))
        self._see(observations, information["env_id"])
        return self._observations.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take an action in every environment."""
        discrete = isinstance(self._moved, Discrete)
        chosen = actions + self._moved.start if discrete else self._rescale(actions)
        observations, rewards, terminated, truncated, information = self._pool.step(chosen.astype(self._moved.dtype))
        indices = information["env_id"]
        self._see(observations, indices)
        self._check(rewards, indices, "reward")
        order = np.argsort(indices)
        return self._observations.copy(), rewards[order].astype(np.float64), terminated[order], truncated[order], {}

    def close_extras(self, **options: Any) -> None:
        """Close them."""
        if self._pool is not None:
            self._pool.close()

    def _see(self, observations: Any, indices: Any) -> None:
        self._check(observations, indices, "observation")
        first = self._seen.start if isinstance(self._seen, Discrete) else 0
        self._observations[indices] = observations - first

    def _check(self, numbers: Any, indices: Any, what: str) -> None:
        finite = np.isfinite(numbers).reshape(len(indices), -1).all(-1)
        if not finite.all():
            raise EnvironmentFault(
                f"environment {indices[finite.argmin()]} of {self._id} returned an {what} that is not finite."
            )


class _quiet(warnings.catch_warnings):  # noqa: N801 - read as an adjective
    """Drops Gymnasium's remarks about bounds that EnvPool gives in another precision."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=r"\x1b\[33mWARN: ")
