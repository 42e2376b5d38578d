"""Policies over the legal actions of a state, by the leaf `action_mask` of the observation."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from sac_torchrl.agents.heads import Choices, EnumeratedCategorical
from sac_torchrl.specs import MASK, legal_actions


class MaskedLogits(nn.Module):
    """A network that maps an observation to logits `(..., sum of sizes)`, with those of illegal actions at the minimum.

    Their probabilities and gradients are then exactly 0, and no state gives NaN. A discrete action without any legal
    value, as in some terminal states, has all of them.
    """

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.sizes = list(sizes)

    def forward(self, observation: TensorDictBase) -> Tensor:
        """Map observations with the leaf `action_mask`."""
        logits: Tensor = self.network(observation)
        legal = legal_actions(observation.get(MASK), sum(self.sizes))
        parts = [part | ~part.any(-1, keepdim=True) for part in legal.split_with_sizes(self.sizes, -1)]
        return torch.where(torch.cat(parts, -1), logits, torch.finfo(logits.dtype).min)


def is_legal(log_probs: Tensor) -> Tensor:
    """Whether log-probabilities, of any shape, are those of legal actions."""
    return log_probs > torch.finfo(log_probs.dtype).min / 2


def target_scale(legal: Sequence[Tensor]) -> Tensor:
    """What a state's entropy target is multiplied by, `(B, 1)`, for the legal values `(B, n)` of each discrete action.

    That is the sum of log(number of legal values) over the sum of log n.
    """
    largest = sum(part.sum(-1, keepdim=True).log() for part in legal)
    assert isinstance(largest, Tensor)
    return largest / max(sum(math.log(part.shape[-1]) for part in legal), math.log(2))


class MaskedCategorical(EnumeratedCategorical):
    """A discrete policy on `MaskedLogits`: an illegal action has the weight 0, and a log-probability of 0 in sums."""

    def choices(self) -> Choices:
        """All actions, `(B, n)`; nothing is drawn."""
        legal = is_legal(self.logits)
        every = super().choices()
        log_probs = every.log_probs.masked_fill(~legal.unsqueeze(-1), 0.0)
        return replace(every, log_probs=log_probs, target_scale=target_scale([legal]))

    target_choices = choices
