"""The seam between policies and their loss: policies list weighted actions, and the loss sums over them."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Categorical
from torchrl.data import Categorical as CategoricalSpec, MultiCategorical, TensorSpec

from sac_torchrl.agents.policies import SquashedNormal
from sac_torchrl.errors import ConfigError
from sac_torchrl.specs import Specs


class Head(Enum):
    """What kind of actions a policy chooses; `auto` takes the kind of the environment's action space."""

    auto = "auto"
    gaussian = "gaussian"
    discrete = "discrete"
    multi_discrete = "multi_discrete"
    hybrid = "hybrid"


class PolicyForm(Enum):
    """What a policy over continuous actions is: a squashed Gaussian, a mixture of Gaussians, or a normalizing flow."""

    gaussian = "gaussian"
    mixture = "mixture"
    flow = "flow"


class Prior(Enum):
    """The prior over actions that the entropy is relative to: none but the action space, or a standard normal one."""

    uniform = "uniform"
    normal = "normal"


def head_of(specs: Specs) -> Head:
    """The head for an action space: continuous, discrete, several discrete actions at once, or both kinds."""
    if specs.hybrid is not None:
        return Head.hybrid
    if isinstance(specs.action, MultiCategorical):  # it is a Categorical too
        return Head.multi_discrete
    return Head.discrete if isinstance(specs.action, CategoricalSpec) else Head.gaussian


def choose_head(head: Head, specs: Specs) -> Head:
    """The head that `variant.head` asks for; raises ConfigError where the action space needs another one."""
    fitting = head_of(specs)
    if head not in (Head.auto, fitting):
        raise ConfigError(
            f"variant.head={head.value} does not fit the action space of this environment, which needs "
            f"{fitting.value}: give variant.head=auto."
        )
    return fitting


def action_sizes(action: TensorSpec) -> tuple[int, ...]:
    """How many values each discrete action can take, of a Categorical or MultiCategorical space."""
    spaces: list[Any] = getattr(action.space, "boxes", [action.space])
    return tuple(space.n for space in spaces)


@dataclass(frozen=True)
class Choices:
    """K actions of each of B states such that E f(s, a) is the sum over k of `weights` times f(s, `actions`).

    This is so in expectation over the draws behind them, for the value and for its gradient with respect to the
    policy. `weights` is `(B, K)`, `actions` `(B, K)` int64, `(B, K, M)` int64 or `(B, K, D)`. `log_probs`
    `(B, K, kinds)` has the log-probability of each action, in nats, for each kind of action that has a temperature of
    its own. `exact_entropies` `(B, kinds)` is there where the policy knows its entropies without these draws. Where
    some actions are illegal, `target_scale` `(B, kinds)` is the largest entropy of a state's legal actions as a part
    of that of all actions: what the entropy target is multiplied by in each state, 0 where there is no choice. Where
    parameters belong to discrete values, it is the mean part of them that belongs to the policy's value.
    """

    weights: Tensor
    actions: Tensor
    log_probs: Tensor
    exact_entropies: Tensor | None = None
    target_scale: Tensor | None = None

    @property
    def entropies(self) -> Tensor:
        """The entropy of each kind of action, `(B, kinds)` in nats: exact, or the mean of -log pi over the choices."""
        if self.exact_entropies is not None:
            return self.exact_entropies
        return -(self.weights.unsqueeze(-1) * self.log_probs).sum(-2)


class Enumerable(Protocol):
    """A distribution over actions that the loss on the seam can train."""

    def choices(self) -> Choices:
        """What the actor's loss sums over; its gradient is that of the expectation."""

    def target_choices(self) -> Choices:
        """What the critics' target sums over; it needs no gradient."""


class EnumeratedNormal(SquashedNormal):
    """The squashed Gaussian: one reparameterized action of weight 1."""

    def choices(self) -> Choices:
        """One draw, `(B, 1, D)`."""
        action, log_prob = self.rsample_and_log_prob()
        return Choices(torch.ones_like(log_prob).unsqueeze(-1), action.unsqueeze(-2), log_prob[..., None, None])

    target_choices = choices


class EnumeratedCategorical(Categorical):
    """A discrete policy: every action, with its probability for a weight."""

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable action, `(B,)`."""
        mode: Tensor = self.mode
        return mode

    def choices(self) -> Choices:
        """All actions, `(B, n)`; nothing is drawn."""
        actions = torch.arange(self.logits.shape[-1], device=self.logits.device).expand_as(self.logits)
        return Choices(self.probs, actions, self.logits.unsqueeze(-1))

    target_choices = choices
