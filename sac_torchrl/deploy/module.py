"""From an observation of the environment to an action that it takes, as one module of tensors."""

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.policies import SquashedNormal


class PolicyModule(nn.Module):
    """The actor between the environment's own spaces: cast, network, head, rescaling.

    `forward` takes observations `(..., n)` of any real type, or indices `(...)` that begin at the space's start. It
    returns the actor's deterministic actions in the bounds and the type of `action_space`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, actor: ProbabilisticActor, observation_space: Space[Any], action_space: Space[Any]) -> None:
        super().__init__()
        module: Any = actor.module[0]
        head: Any = actor.module[-1]
        self.network: nn.Module = module.module
        self._names = list(head.in_keys)
        self._places = [module.out_keys.index(name) for name in self._names]
        self._distribution: type[Distribution] = head.distribution_class
        self._options: dict[str, Any] = dict(head.distribution_kwargs)
        self._first_state = int(observation_space.start) if isinstance(observation_space, Discrete) else None
        self._first_action = int(action_space.start) if isinstance(action_space, Discrete) else None
        self._dtype = torch.from_numpy(np.zeros(0, action_space.dtype)).dtype
        if isinstance(action_space, Box):
            for name, bound in (("low", action_space.low), ("high", action_space.high)):
                self.register_buffer(name, torch.from_numpy(bound.astype(np.float64)), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        """Return deterministic actions, with the batch dimensions of `observation`."""
        parameters = self._head_inputs(observation)
        if self._distribution is SquashedNormal:
            return self._rescaled(parameters[0].tanh())
        if self._distribution is Categorical:
            # As Categorical.mode: probabilities may tie where logits do not.
            logits = parameters[0]
            return self._rescaled((logits - logits.logsumexp(-1, keepdim=True)).softmax(-1).argmax(-1))
        distribution: Any = self._build(parameters)
        return self._rescaled(distribution.deterministic_sample)

    def sample(self, observation: Tensor) -> Tensor:
        """Return actions drawn from the policy with torch's global generator."""
        drawn: Tensor = self._build(self._head_inputs(observation)).sample()
        return self._rescaled(drawn)

    def _head_inputs(self, observation: Tensor) -> list[Tensor]:
        if self._first_state is None:
            seen = observation.to(next(self.network.parameters()).dtype)
        else:
            seen = observation - self._first_state if self._first_state else observation
        outputs = self.network(seen)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return [outputs[place] for place in self._places]

    def _build(self, parameters: list[Tensor]) -> Distribution:
        return self._distribution(**dict(zip(self._names, parameters, strict=True)), **self._options)

    def _rescaled(self, action: Tensor) -> Tensor:
        if self._first_action is not None:
            return (action + self._first_action).to(self._dtype)
        # In float64 and in this form, as in training, both bounds come out exactly.
        t = (action.to(torch.float64) + 1.0) / 2.0
        return torch.minimum(torch.maximum(self.low * (1.0 - t) + self.high * t, self.low), self.high).to(self._dtype)
