"""A trained policy that acts: takes what an environment returns, returns what it takes."""

import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from sac_torchrl.deploy.inputs import leaves_of, mask_leaf
from sac_torchrl.deploy.module import PolicyModule
from sac_torchrl.deploy.policies import find_policy
from sac_torchrl.deploy.saved import SavedPolicy
from sac_torchrl.envs.actions import adapt_action, composed
from sac_torchrl.envs.masks import MaskSource
from sac_torchrl.envs.observations import every_leaf, leaf_at
from sac_torchrl.learner.capture import Captured
from sac_torchrl.specs import MASK

_NEEDS_MASK = (
    'this policy chooses among legal actions: give action_mask, the environment\'s info["action_mask"] or what its '
    "action_masks() returns."
)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy takes and returns: the spaces of environment `env`, as the environment declares them."""

    env: str
    observation: Space[Any]
    action: Space[Any]


class Policy:
    """Acts in the spaces of the environment that it was trained on, without that environment.

    `actor` is the ProbabilisticActor, on the CPU, `spec` the spaces, `leaves` the parts of an observation
    that it uses, `saved` the policy with facts of its training. It `takes_mask` where it chooses among legal actions
    and the observation does not say which these are.
    """

    def __init__(self, saved: SavedPolicy) -> None:
        self.saved = saved
        self.spec = PolicySpec(saved.env["id"], saved.observation_space, saved.action_space)
        self.actor: ProbabilisticActor = saved.build()
        ignore, observed = saved.env["ignore"], saved.mask is MaskSource.observation
        self.takes_mask = saved.mask not in (MaskSource.none, MaskSource.observation)
        self.leaves = leaves_of(self.spec.observation, [*ignore, MASK] if observed else ignore)
        if (keys := saved.variant["actor_keys"]) is not None:
            self.leaves = [leaf for leaf in self.leaves if leaf.name in keys]
        if saved.mask is not MaskSource.none:
            self.leaves.append(mask_leaf(self.spec.action, observed=observed))
        bins = saved.env.get("bins")
        self.module = PolicyModule(self.actor, self.leaves, self.spec.action, bins=bins).eval()
        # One observation at a time is where overhead counts; the recording is equal bit for bit.
        self._captured = Captured(
            torch.no_grad()(lambda *observations: (self.module.choose(*observations),)), scripted=False
        )
        self._edge = _edge(self.spec.action, self.spec.env, bins=bins)
        self._generator = torch.Generator().manual_seed(secrets.randbits(63)).get_state()

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Load the policy of a run, of one of its checkpoints or `policies/`, or of an exported folder.

        That of a run is its newest. No pickle is read, and neither the environment nor its package is needed. Raises
        ConfigError where there is no policy and CheckpointError where it is damaged.
        """
        return cls(find_policy(Path(path).expanduser()))

    def __call__(
        self, observation: Any, *, deterministic: bool = True, seed: int | None = None, action_mask: Any = None
    ) -> Any:
        """Choose an action for one observation, or for each of a batch `(batch, ...)`.

        `observation` is of `spec.observation`, and the result of `spec.action`, as NumPy's, or as a torch tensor on the
        same device where the observation is one. Actions that are not `deterministic` are drawn with a generator of
        the policy's own, which `seed` restarts. A policy that `takes_mask` needs `action_mask`, `(n,)` or `(batch, n)`
        of 0 and 1: the environment's `info["action_mask"]` or `action_masks()`. Raises ValueError or TypeError for what
        is no such observation or mask.
        """
        leaves = self.leaves
        if self.takes_mask != (action_mask is not None):
            raise ValueError(_NEEDS_MASK if self.takes_mask else "this policy takes no action_mask: leave it out.")
        seen = [leaf.read(action_mask if leaf.is_mask and self.takes_mask else observation) for leaf in leaves]
        batch = seen[0].shape[: seen[0].dim() - leaves[0].dimensions]
        if len(seen) > 1:
            batches = {one.shape[: one.dim() - leaf.dimensions] for one, leaf in zip(seen, leaves, strict=True)}
            if len(batches) > 1:
                raise ValueError(f"the leaves of the observation have batches of different shapes: {sorted(batches)}.")
        first = leaf_at(observation, leaves[0].path)
        parts = every_leaf(self.spec.action)
        if deterministic and not batch:
            action = self._one(seen)
            if not isinstance(first, Tensor):
                return action
            tensors = (torch.as_tensor(leaf_at(action, path), device=first.device) for path, _ in parts)
            return composed(self.spec.action, tensors)
        if deterministic:
            with torch.no_grad():
                action = self.module(*seen)
        else:
            with torch.no_grad(), self._drawing(seed):
                action = self.module.sample(*seen)
        actions = [action] if isinstance(action, Tensor) else action
        if not all(math.isfinite(one.sum()) for one in actions):
            raise ValueError("the policy has no finite action for this observation.")
        if isinstance(first, Tensor):
            return composed(self.spec.action, (one.to(first.device) for one in actions))
        # One discrete action without a batch is a number.
        arrays = (
            one.numpy()[()] if isinstance(space, Discrete) else one.numpy()
            for one, (_, space) in zip(actions, parts, strict=True)
        )
        return composed(self.spec.action, arrays)

    def _one(self, seen: list[Tensor]) -> Any:
        """The action for one observation, in the environment's own space."""
        # As a batch of one: networks would make one of it at each layer.
        (chosen,) = self._captured(*(one.unsqueeze(0) for one in seen))
        return self._edge(chosen)

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


def _edge(space: Space[Any], env: str, *, bins: int | None) -> Callable[[Tensor], Any]:
    """From the agent's action, `(1, ...)`, to the environment's, with the operations and the bits of `envs.actions`.

    Python's own numbers take half the time of NumPy's for the few of an action.
    """
    if not isinstance(space, Box) or bins is not None or len(space.shape) != 1:
        _, shifted = adapt_action(space, env, bins=bins)
        return lambda chosen: shifted(chosen.numpy()[0])
    bounds = list(zip(space.low.astype(np.float64).tolist(), space.high.astype(np.float64).tolist(), strict=True))
    dtype = space.dtype

    def rescaled(chosen: Tensor) -> Any:
        (values,) = chosen.tolist()
        if not math.isfinite(sum(values)):
            raise ValueError("the policy has no finite action for this observation.")
        steps = ((value + 1.0) / 2.0 for value in values)
        action = [
            min(max(low * (1.0 - step) + high * step, low), high)
            for (low, high), step in zip(bounds, steps, strict=True)
        ]
        return np.array(action, dtype)

    return rescaled
