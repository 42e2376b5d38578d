"""Observations as an environment returns them, checked and turned into tensors, leaf by leaf."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete, Space
from torch import Tensor

from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.masks import action_counts
from sac_torchrl.envs.observations import leaf_at, observed_leaves
from sac_torchrl.errors import short
from sac_torchrl.specs import MASK

_FEW = 100


@dataclass(frozen=True)
class Leaf:
    """One part of an observation: its name, its path in a Dict or Tuple, and its space; or the mask of actions."""

    name: str
    path: tuple[str | int, ...]
    space: Space[Any]
    is_mask: bool = False

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """That of one observation, without a batch."""
        return self.space.shape or ()

    @property
    def dimensions(self) -> int:
        """Their number in one observation, without a batch."""
        return len(self.shape)

    def read(self, observation: Any) -> Tensor:
        """A copy, as float32 or int64, of the leaf in one observation or a batch; raises ValueError or TypeError.

        It lies in memory of torch's own: the last bits of a product depend on where its factors lie.
        """
        try:
            value = leaf_at(observation, self.path)
        except ValueError as error:
            raise ValueError(f"the observation is {short(observation)}, {error}.") from error
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        shape, own = array.shape, self.shape
        if shape != own and shape[1:] != own:
            raise ValueError(f"{self.name} has the shape {shape}: give {own}, or a batch {('batch', *own)}.")
        if isinstance(self.space, (Discrete, MultiDiscrete)):
            return self._indices(array)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{self.name} holds {array.dtype}, not real numbers.")
        tensor = torch.tensor(array, dtype=torch.float32)
        if not _finite(tensor):
            raise ValueError(f"{self.name} holds numbers that are not finite in float32.")
        if self.is_mask and not ((tensor == 0) | (tensor == 1)).all():
            raise ValueError(f"{self.name} holds other numbers than 0 and 1.")
        return tensor

    def _indices(self, array: Any) -> Tensor:
        if array.dtype.kind not in "iub":
            raise TypeError(f"{self.name} holds {array.dtype}, not indices.")
        space = self.space
        assert isinstance(space, (Discrete, MultiDiscrete))
        offset = array.astype(np.int64) - space.start
        if ((offset < 0) | (offset >= (space.n if isinstance(space, Discrete) else space.nvec))).any():
            raise ValueError(f"{self.name}={array.tolist()} is not within {space}.")
        return torch.tensor(array, dtype=torch.int64)


def _finite(tensor: Tensor) -> bool:
    if tensor.numel() < _FEW:  # Python adds few numbers sooner, and in float64, where float32 cannot overflow
        return math.isfinite(sum(tensor.tolist() if tensor.dim() == 1 else tensor.flatten().tolist()))
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def leaves_of(space: Space[Any], ignore: Sequence[str] = ()) -> list[Leaf]:
    """The leaves that an agent sees of an observation space, in their order; one where it is no Dict or Tuple."""
    return [Leaf(name, path, leaf) for name, (path, leaf) in observed_leaves(space, ignore).items()]


def mask_leaf(action: Space[Any], *, observed: bool) -> Leaf:
    """The mask of the actions of a space, an entry each, at the key `action_mask` where it is `observed`."""
    count = sum(action_counts(adapt_action(action, "")[0]))
    return Leaf(MASK, (MASK,) if observed else (), MultiBinary(count), is_mask=True)
