"""A trained policy that acts: takes what an environment returns, returns what it takes."""

import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from sac_torchrl.deploy.module import PolicyModule
from sac_torchrl.deploy.saved import SavedPolicy, find_policy
from sac_torchrl.learner.capture import Captured


@dataclass(frozen=True)
class PolicySpec:
    """What a policy takes and returns: the spaces of environment `env`, as the environment declares them."""

    env: str
    observation: Space[Any]
    action: Space[Any]


class Policy:
    """Acts in the spaces of the environment that it was trained on, without that environment.

    `actor` is the ProbabilisticActor, on the CPU, `spec` the spaces, `saved` whatever is known of the training.
    """

    def __init__(self, saved: SavedPolicy) -> None:
        self.saved = saved
        self.spec = PolicySpec(saved.env["id"], saved.observation_space, saved.action_space)
        self.actor: ProbabilisticActor = saved.build()
        self.module = PolicyModule(self.actor, self.spec.observation, self.spec.action).eval()
        # One observation at a time is where the overhead of Python counts; the recording is equal bit for bit.
        self._captured = Captured(torch.no_grad()(lambda observation: (self.module(observation),)))
        self._generator = torch.Generator().manual_seed(secrets.randbits(63)).get_state()

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Load the policy of a run, of one of its checkpoints or `policies/`, or of an exported folder.

        That of a run is its newest. No pickle is read, and neither the environment nor its package is needed. Raises
        ConfigError where there is no policy and CheckpointError where it is damaged.
        """
        return cls(find_policy(Path(path).expanduser()))

    def __call__(self, observation: Any, *, deterministic: bool = True, seed: int | None = None) -> Any:
        """Choose an action for one observation, or for each of a batch `(batch, ...)`.

        `observation` is of `spec.observation`, and the result of `spec.action`, as NumPy's, or as a torch tensor on the
        same device where the observation is one. Actions that are not `deterministic` are drawn with a generator of
        the policy's own, which `seed` restarts. Raises ValueError or TypeError for what is no such observation.
        """
        space = self.spec.observation
        seen = _index(observation, space) if isinstance(space, Discrete) else _vector(observation, space)
        if deterministic and seen.dim() == len(space.shape or ()):
            (action,) = self._captured(seen)
        elif deterministic:
            with torch.no_grad():
                action = self.module(seen)
        else:
            with torch.no_grad(), self._drawing(seed):
                action = self.module.sample(seen)
        if action.is_floating_point() and not math.isfinite(action.sum()):
            raise ValueError("the policy has no finite action for this observation.")
        if isinstance(observation, Tensor):
            return action.clone().to(observation.device)  # made outside of inference mode, for whatever follows
        return action.numpy()[()]

    @contextmanager
    def _drawing(self, seed: int | None) -> Iterator[None]:
        """Let torch's global generator be this policy's for a moment."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._generator if seed is None else torch.Generator().manual_seed(seed).get_state())
        try:
            yield
        finally:
            self._generator = torch.get_rng_state()
            torch.set_rng_state(before)


def _vector(observation: Any, space: Space[Any]) -> Tensor:
    """A copy as float32, in memory of torch's own: the last bits of a product depend on where its factors lie."""
    array = observation.detach().cpu().numpy() if isinstance(observation, Tensor) else np.asarray(observation)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"the observation holds {array.dtype}, not real numbers.")
    shape = array.shape
    if shape != space.shape and shape[1:] != space.shape:
        batch = ("batch", *(space.shape or ()))
        raise ValueError(f"the observation has the shape {shape}: give one {space.shape}, or a batch {batch}.")
    seen = torch.tensor(array, dtype=torch.float32)
    # The sum of finite numbers may be infinite, so that it alone proves nothing.
    if not math.isfinite(seen.sum()) and not seen.isfinite().all():
        raise ValueError("the observation holds numbers that are not finite in float32.")
    return seen


def _index(observation: Any, space: Discrete) -> Tensor:
    array = observation.detach().cpu().numpy() if isinstance(observation, Tensor) else np.asarray(observation)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise TypeError(f"the observation is {array.dtype} of shape {array.shape}: give an index, or a vector of them.")
    first, last = int(space.start), int(space.start + space.n) - 1
    if array.size and not (first <= array.min() and array.max() <= last):
        raise ValueError(f"the observation {array.tolist()} is not one of {first} to {last}.")
    return torch.tensor(array, dtype=torch.int64)
