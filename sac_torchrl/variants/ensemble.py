"""What the descendants of SAC share: a squashed Gaussian policy, an ensemble of critics with targets, a temperature."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.data import Categorical
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import LossModule, SACLoss

from sac_torchrl.agent import Agent, Specs
from sac_torchrl.errors import ConfigError
from sac_torchrl.prioritised import WeighsCritics
from sac_torchrl.variants.base import Variant, assemble, check


@dataclass
class Ensemble(Variant):
    """What every descendant has: `critics` Q networks with discount `gamma`, and targets that move by `tau`.

    The temperature starts at `alpha` and is learned so that the policy's entropy in the [-1, 1] action space meets
    `target_entropy` (null: minus the number of action dimensions), or stays at `alpha` where `fixed_alpha` is true.
    """

    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    fixed_alpha: bool = False
    target_entropy: float | None = None

    def __post_init__(self) -> None:
        check(self.critics, self.gamma, self.tau, self.alpha)

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and loss; raises ConfigError where actions are discrete."""
        return self._build(specs, device, entropy=-float(continuous_actions(specs, type(self).__name__.lower())))

    def _build(self, specs: Specs, device: torch.device, *, entropy: float) -> Agent:
        """Put the parts together, with `entropy` for a target that is null."""
        actions = specs.action.shape[-1]
        actor = self._actor(specs, actions, device)
        critics = [self._critic(specs, actions, device) for _ in range(self.critics)]
        loss = self._loss(
            actor,
            critics[0],
            num_qvalue_nets=self.critics,
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy=entropy if self.target_entropy is None else self.target_entropy,
            deactivate_vmap=True,
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)

    @abstractmethod
    def _actor(self, specs: Specs, actions: int, device: torch.device) -> ProbabilisticActor: ...

    @abstractmethod
    def _critic(self, specs: Specs, actions: int, device: torch.device) -> ValueOperator: ...

    def _loss(self, actor: ProbabilisticActor, critic: ValueOperator, **fields: Any) -> LossModule:
        return EnsembleLoss(actor, critic, loss_function="l2", **fields)


def continuous_actions(specs: Specs, name: str) -> int:
    """Count the action's dimensions; raises ConfigError where actions are discrete."""
    if isinstance(specs.action, Categorical):
        raise ConfigError(
            f"variant={name} needs continuous actions, and this environment has {specs.action.space.n} discrete "
            "ones: use recipes/discrete.py."
        )
    return int(specs.action.shape[-1])


class EnsembleLoss(WeighsCritics, SACLoss):
    """SACLoss whose weights of prioritised rows are the critics' alone."""


class SubsetSACLoss(SACLoss):
    """SACLoss with a random part of the ensemble in the target and all of it in the actor's loss (arXiv 2101.05982).

    The target takes the smallest of `sampled` target critics, drawn anew at every call from torch's global generator
    (algorithm 1, line 8); the actor climbs the mean of all critics (line 13).
    """

    def __init__(self, *args: Any, sampled: int, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.sampled = sampled

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of alpha log pi(a|s) - (1/N) sum_i Q_i(s, a), and the log-probabilities `(batch,)`."""
        action, log_prob = sample(self, tensordict)
        value = values(self, tensordict, action, self._cached_detached_qvalue_params).mean(0).squeeze(-1)
        return (self._alpha * log_prob - value).mean(), {"log_prob": log_prob.detach()}

    @torch.no_grad()
    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        following = tensordict.get("next")
        action, log_prob = sample(self, following)
        targets = self.target_qvalue_network_params
        if self.sampled < self.num_qvalue_nets:
            drawn = torch.rand(self.num_qvalue_nets, device=log_prob.device).topk(self.sampled).indices
            targets = targets[drawn]
        smallest = values(self, following, action, targets).amin(0)
        soft = smallest - self._alpha * log_prob.unsqueeze(-1)
        target: Tensor = self.value_estimator.value_estimate(tensordict, next_value=soft).squeeze(-1)
        return target


class SubsetLoss(WeighsCritics, SubsetSACLoss):
    """SubsetSACLoss whose weights of prioritised rows are the critics' alone."""


def sample(loss: LossModule, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Reparameterised actions `(batch, n)` of the loss's actor and their log-probabilities `(batch,)`."""
    with loss.actor_network_params.to_module(loss.actor_network, preserve_module_state=False):
        distribution = loss.actor_network.get_dist(tensordict)
        action, log_prob = distribution.rsample_and_log_prob()
    return action, log_prob


def values(loss: LossModule, tensordict: TensorDictBase, action: Tensor, critics: TensorDictParams) -> Tensor:
    """What critics with these stacked parameters say of `action`, `(critics, batch, outputs)`."""
    inputs = tensordict.select(*loss.qvalue_network.in_keys, strict=False).set("action", action)
    found: Tensor = loss._vmap_qnetworkN0(inputs, critics).get("state_action_value")
    return found
