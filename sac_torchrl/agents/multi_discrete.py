"""Several discrete actions at once: a policy of independent dimensions, and three kinds of critics for it."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import ClassVar

import torch
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.heads import Choices
from sac_torchrl.agents.layout import Layout
from sac_torchrl.agents.masks import is_legal, target_scale
from sac_torchrl.specs import Specs


class ActionCritic(Enum):
    """What a critic of several discrete actions is.

    `joint`: Q(s, a) of the one-hot actions, one number for one joint action. `decomposed`: one value for each value of
    each dimension, Q(s, a) = mean over dimensions of U_m(s, a_m) (DecQN: Seyde et al. 2023, arXiv 2210.12566), which
    cannot express what depends on two dimensions together. `enumerated`: that mean plus one value of each joint action,
    divided by their number (Tavakoli et al. 2021, arXiv 2010.14680: hyperedges of one dimension and of all). Adam steps
    equally far for every value, however rarely it is seen: undivided, many joint actions are overestimated for long.
    """

    joint = "joint"
    decomposed = "decomposed"
    enumerated = "enumerated"


class Factored(Distribution):
    """pi(a|s) = prod_m pi_m(a_m|s) over int64 actions `(..., M)`; `logits` `(..., sum of sizes)` lie side by side.

    Entropies are exact: those of the dimensions add up. What an expectation of the critics sums over depends on them:

    - `joint`: one dimension exact, the others drawn. For one draw a' of all dimensions the choices are, for each
      dimension m in turn, a' with each value of a_m, of weight pi_m(a_m) in the gradient:
      grad E_pi Q = sum_m E_{a'} sum_{a_m} grad pi_m(a_m) Q(a_m, a'_-m), and 1/M of it in the value. As a' itself is
      among them once for each dimension, it is one choice with the sum of its weights. The target sums over all joint
      actions where there are at most `enumerate_up_to`, and takes Q at one draw otherwise;
    - `decomposed`: the values of all dimensions, of weight pi_m / M: exact;
    - `enumerated`: all joint actions: exact.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        *,
        sizes: tuple[int, ...],
        critic: ActionCritic,
        enumerate_up_to: int,
        masked: bool = False,
    ) -> None:
        self._layout = Layout(sizes)
        self._critic = critic
        self._enumerate_up_to = enumerate_up_to
        self._masked = masked
        self._log_probs = self._layout.padded(logits).log_softmax(-1)
        super().__init__(logits.shape[:-1], torch.Size([len(sizes)]), validate_args=False)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw actions, int64 `(*sample_shape, ..., M)`."""
        probs = self._log_probs.exp()
        # The smallest of exponential variables of these rates is each with its probability.
        waited = -torch.log1p(-torch.rand((*sample_shape, *probs.shape), dtype=probs.dtype, device=probs.device))
        # A value without probability is not drawn where the time waited is 0 either.
        return (probs / waited).masked_fill(probs == 0, -1.0).argmax(-1)

    @property
    def mode(self) -> Tensor:
        """The most probable action, `(..., M)`."""
        return self._log_probs.argmax(-1)

    deterministic_sample = mode

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of actions `(..., M)`, `(...)` in nats."""
        return self._log_probs.gather(-1, value.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self) -> Tensor:
        """The sum of the dimensions' entropies, `(...)` in nats."""
        # The gradient of the lowest number is too large for a temperature above 1.
        log_probs = self._log_probs.masked_fill(~is_legal(self._log_probs), 0.0)
        return -(self._log_probs.exp() * log_probs).sum((-2, -1))

    def choices(self) -> Choices:
        """What the actor's loss sums over."""
        dimensions = len(self._layout.sizes)
        match self._critic:
            case ActionCritic.enumerated:
                return self._all_joint()
            case ActionCritic.decomposed:
                return self._every_value(self._log_probs.exp() / dimensions)
            case ActionCritic.joint:
                probs = self._log_probs.exp()
                # The value of pi_m / M, and the gradient of pi_m.
                return self._neighbors(probs - (1 - 1 / dimensions) * probs.detach())

    def target_choices(self) -> Choices:
        """What the critics' target sums over."""
        if self._critic is not ActionCritic.joint:
            return self.choices()
        if self._layout.joint <= self._enumerate_up_to:
            return self._all_joint()
        drawn = self.sample().unsqueeze(-2)
        return self._made(torch.ones_like(drawn[..., 0], dtype=self._log_probs.dtype), drawn)

    def _all_joint(self) -> Choices:
        table = self._layout.table(self._log_probs.device)
        actions = table.expand(*self.batch_shape, *table.shape)
        log_probs = self._layout.sums(self._layout.flat(self._log_probs))
        return self._listed(log_probs.exp(), actions, log_probs.unsqueeze(-1))

    def _every_value(self, weights: Tensor) -> Choices:
        """Each value of each dimension, the others drawn, with `weights` `(..., M, widest)`."""
        owners, levels = self._layout.owners(weights.device), self._layout.levels(weights.device)
        return self._made(self._layout.flat(weights), self._replaced(self.sample(), owners, levels))

    def _neighbors(self, weights: Tensor) -> Choices:
        """A draw, and all joint actions that differ from it in one dimension, with `weights` `(..., M, widest)`."""
        device, layout = weights.device, self._layout
        drawn = self.sample()
        owners, steps = layout.steps(device)
        others = (drawn[..., owners] + steps) % torch.tensor(layout.sizes, device=device)[owners]
        own_weight = weights.gather(-1, drawn.unsqueeze(-1)).sum(-2)
        other_weights = weights.flatten(-2).gather(-1, owners * layout.widest + others)
        actions = torch.cat([drawn.unsqueeze(-2), self._replaced(drawn, owners, others)], -2)
        return self._made(torch.cat([own_weight, other_weights], -1), actions)

    def _replaced(self, actions: Tensor, owners: Tensor, levels: Tensor) -> Tensor:
        """`actions` `(..., M)` with the value of one dimension, `owners` `(K,)`, set to `levels`: `(..., K, M)`."""
        own = owners.unsqueeze(-1) == torch.arange(len(self._layout.sizes), device=owners.device)
        return torch.where(own, levels.unsqueeze(-1), actions.unsqueeze(-2))

    def _made(self, weights: Tensor, actions: Tensor) -> Choices:
        spread = self._log_probs.unsqueeze(-3).expand(*weights.shape, *self._log_probs.shape[-2:])
        log_probs = spread.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1, keepdim=True)
        return self._listed(weights, actions, log_probs)

    def _listed(self, weights: Tensor, actions: Tensor, log_probs: Tensor) -> Choices:
        scale = None
        if self._masked:
            legal = self._layout.flat(is_legal(self._log_probs))
            scale = target_scale(legal.split_with_sizes(list(self._layout.sizes), -1))
        return Choices(weights, actions, log_probs, self.entropy().unsqueeze(-1), scale)


class OneHotActions(nn.Module):
    """A network of an observation and numbers, on actions `(..., M)` that enter as one-hot vectors side by side."""

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.sizes = tuple(sizes)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Map observations and actions, which share their batch dimensions, to `(..., outputs)`."""
        layout = Layout(self.sizes)
        levels, owners = layout.levels(action.device), layout.owners(action.device)
        chosen = (action.index_select(-1, owners) == levels).to(torch.get_default_dtype())
        output: Tensor = self.network(observation, chosen)
        return output


class JointValues(nn.Module):
    """A network from an observation to `(..., sum of sizes + joint actions)`, as values of joint actions."""

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.sizes = tuple(sizes)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations to `(..., joint)`."""
        layout = Layout(self.sizes)
        parts, own = self.network(observation).split_with_sizes([layout.total, layout.joint], -1)
        values: Tensor = layout.sums(parts) / len(self.sizes) + own / layout.joint
        return values


def stored_value(critic: ActionCritic, sizes: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How a critic with a value for each choice values a stored action; None for one that takes the action."""
    layout = Layout(sizes)

    def decomposed(values: Tensor, action: Tensor) -> Tensor:
        places = (action + torch.tensor(layout.offsets, device=action.device)).expand(len(values), *action.shape)
        return values.gather(-1, places).mean(-1)

    def enumerated(values: Tensor, action: Tensor) -> Tensor:
        place = (action * torch.tensor(layout.strides, device=action.device)).sum(-1, keepdim=True)
        return values.gather(-1, place.expand(len(values), *place.shape)).squeeze(-1)

    match critic:
        case ActionCritic.joint:
            return None
        case ActionCritic.decomposed:
            return decomposed
        case ActionCritic.enumerated:
            return enumerated


def factored_actor(
    network: nn.Module,
    specs: Specs,
    *,
    sizes: tuple[int, ...],
    critic: ActionCritic,
    enumerate_up_to: int,
    masked: bool = False,
) -> ProbabilisticActor:
    """A policy over several discrete actions, int64 `(..., M)`.

    `network` maps the observation to one logit for each value of each action, `(..., sum of sizes)`.
    """
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        spec=specs.action,
        distribution_class=Factored,
        distribution_kwargs={
            "sizes": sizes,
            "critic": critic,
            "enumerate_up_to": enumerate_up_to,
            "masked": masked,
        },
        default_interaction_type=InteractionType.RANDOM,
    )
