"""From an observation of the environment to an action that it takes, as one module of tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiDiscrete, Space
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.hybrid import SquashedHybrid
from sac_torchrl.agents.policies import SquashedNormal
from sac_torchrl.deploy.edges import edge_of
from sac_torchrl.deploy.inputs import Leaf


class PolicyModule(nn.Module):
    """The actor between the environment's own spaces: casts and offsets, network, head, rescaling.

    `forward` takes a tensor for each of `leaves`, `(..., *shape)`, numbers of any real type or indices that begin at
    the space's start. It returns the actor's deterministic actions in the bounds and the type of `action_space`, of
    which `bins` are chosen from as env.bins has it; those of a Dict or Tuple as a tuple of its leaves.
    """

    def __init__(
        self, actor: ProbabilisticActor, leaves: Sequence[Leaf], action_space: Space[Any], *, bins: int | None = None
    ) -> None:
        super().__init__()
        module: Any = actor.module[0]
        head: Any = actor.module[-1]
        self.network: nn.Module = module.module
        self._leaves = list(leaves)
        self._names = list(head.in_keys)
        self._places = [module.out_keys.index(name) for name in self._names]
        self._distribution: type[Distribution] = head.distribution_class
        self._options: dict[str, Any] = dict(head.distribution_kwargs)
        self.edge = edge_of(action_space, bins=bins)

    def forward(self, *observations: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return deterministic actions, with the batch dimensions of `observations`."""
        actions: Tensor | tuple[Tensor, ...] = self.edge(self.choose(*observations))
        return actions

    def choose(self, *observations: Tensor) -> Tensor:
        """Return the agent's deterministic actions: in [-1, 1], or indices from 0."""
        parameters = self._head_inputs(observations)
        if issubclass(self._distribution, SquashedNormal):
            return parameters[0].tanh()
        if issubclass(self._distribution, Categorical):
            # As Categorical.mode: probabilities may tie where logits do not.
            logits = parameters[0]
            return (logits - logits.logsumexp(-1, keepdim=True)).softmax(-1).argmax(-1)
        distribution: Any = self._build(parameters)
        chosen: Tensor = distribution.deterministic_sample
        return chosen

    def sample(self, *observations: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return actions drawn from the policy with torch's global generator."""
        drawn: Tensor | tuple[Tensor, ...] = self.edge(self._build(self._head_inputs(observations)).sample())
        return drawn

    def margin(self, *observations: Tensor) -> Tensor:
        """How much likelier the likeliest action is than the next, `(...)`; infinite where actions are no choice."""
        logits = self._head_inputs(observations)[0]
        if not issubclass(self._distribution, (Categorical, SquashedHybrid)):
            return logits.new_full(logits.shape[:-1], torch.inf)
        best = logits.softmax(-1).topk(2, -1).values
        return best[..., 0] - best[..., 1]

    def _head_inputs(self, observations: Sequence[Tensor]) -> list[Tensor]:
        dtype = next(self.network.parameters()).dtype
        seen = [_seen(one, leaf, dtype) for one, leaf in zip(observations, self._leaves, strict=True)]
        named = self._leaves[0].path or self._leaves[-1].is_mask
        outputs = self.network(
            _Named(zip((leaf.name for leaf in self._leaves), seen, strict=True)) if named else seen[0]
        )
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return [outputs[place] for place in self._places]

    def _build(self, parameters: list[Tensor]) -> Distribution:
        return self._distribution(**dict(zip(self._names, parameters, strict=True)), **self._options)


class _Named(dict[str, Tensor]):
    """As much of a TensorDict as networks ask of an observation with leaves, in a form that can be exported."""

    def copy(self) -> "_Named":
        return _Named(self)

    def set(self, name: str, value: Tensor) -> "_Named":
        self[name] = value
        return self


def _seen(value: Tensor, leaf: Leaf, dtype: torch.dtype) -> Tensor:
    """What the agent sees of a leaf: a vector of numbers, an index from 0 or a vector of them."""
    space = leaf.space
    if leaf.is_mask:
        return value.to(torch.bool)
    if isinstance(space, Discrete):
        return value - int(space.start) if space.start else value
    if isinstance(space, MultiDiscrete):
        value = value - torch.from_numpy(space.start.astype(np.int64)) if space.start.any() else value
    else:
        value = value.to(dtype)
    return value if leaf.dimensions == 1 else value.reshape(*value.shape[: value.dim() - leaf.dimensions], -1)
