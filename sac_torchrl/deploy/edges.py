"""From the agent's actions to the environment's, as modules of tensors."""

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, Space, Tuple
from torch import Tensor, nn

from sac_torchrl.agents.hybrid import discrete_values
from sac_torchrl.agents.layout import Layout
from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.masks import action_counts
from sac_torchrl.envs.observations import every_leaf, leaf_name


class LeafEdge(nn.Module):
    """Numbers in [-1, 1] rescaled to the bounds of a Box, of which `bins` are chosen from, or indices shifted."""

    low: Tensor
    high: Tensor
    first: Tensor

    def __init__(self, space: Space[Any], *, bins: int | None = None) -> None:
        super().__init__()
        self._bins = bins
        self._dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        self._shape = space.shape or ()
        self._flat = isinstance(space, Discrete) or len(self._shape) == 1
        if isinstance(space, Box):
            for name, bound in (("low", space.low), ("high", space.high)):
                self.register_buffer(name, torch.from_numpy(bound.astype(np.float64)), persistent=False)
        else:
            first = np.asarray(getattr(space, "start", 0), np.int64)
            self.register_buffer("first", torch.from_numpy(first), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        """Map the agent's actions `(..., n)`, or `(...)` of one discrete action, to those of the space."""
        if not self._flat:
            action = action.reshape((*action.shape[:-1], *self._shape))
        if hasattr(self, "first"):
            return (action + self.first).to(self._dtype)
        if self._bins is not None:
            action = 2.0 * action.to(torch.float64) / (self._bins - 1) - 1.0
        # In float64 and in this form, as in training, both bounds come out exactly.
        t = (action.to(torch.float64) + 1.0) / 2.0
        return torch.minimum(torch.maximum(self.low * (1.0 - t) + self.high * t, self.low), self.high).to(self._dtype)


class LeavesEdge(nn.Module):
    """The agent's vector, or indices, as the leaves of a Dict or Tuple, in their order: see `specs.HybridAction`."""

    def __init__(self, space: "Dict | Tuple[Any]") -> None:
        super().__init__()
        leaves = [leaf for _, leaf in every_leaf(space)]
        self.edges = nn.ModuleList(LeafEdge(leaf) for leaf in leaves)
        self._single = [isinstance(leaf, Discrete) for leaf in leaves]
        self._boxes = [isinstance(leaf, Box) for leaf in leaves]
        counts = [[] if isinstance(leaf, Box) else action_counts(adapt_action(leaf, "")[0]) for leaf in leaves]
        self._layout = Layout([n for one in counts for n in one]) if any(counts) else None
        self._widths = [
            int(np.prod(leaf.shape)) if isinstance(leaf, Box) else len(one)
            for leaf, one in zip(leaves, counts, strict=True)
        ]

    def forward(self, action: Tensor) -> tuple[Tensor, ...]:
        """Map the agent's actions `(..., n)`."""
        count = 0 if self._layout is None else len(self._layout.sizes)
        discrete, continuous = action.split_with_sizes([count, action.shape[-1] - count], -1)
        if self._layout is not None and action.is_floating_point():
            discrete = discrete_values(discrete, self._layout)
        places = {True: 0, False: 0}
        parts = list[Tensor]()
        for edge, box, single, width in zip(self.edges, self._boxes, self._single, self._widths, strict=True):
            part = (continuous if box else discrete).narrow(-1, places[box], width)
            places[box] += width
            parts.append(edge(part.squeeze(-1) if single else part))
        return tuple(parts)


def edge_of(space: Space[Any], *, bins: int | None = None) -> LeafEdge | LeavesEdge:
    """The module for the action space of an environment."""
    return LeavesEdge(space) if isinstance(space, (Dict, Tuple)) else LeafEdge(space, bins=bins)


def output_names(space: Space[Any]) -> list[str]:
    """The names of an exported policy's outputs: `action`, or `action.LEAF` for each leaf of a Dict or Tuple."""
    return [".".join(filter(None, ("action", leaf_name(path)))) for path, _ in every_leaf(space)]
