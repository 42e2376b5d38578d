"""What SAC and most of its descendants share: a squashed Gaussian policy, critics with targets, a temperature."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchrl.objectives import LossModule

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.policies import StdForm
from sac_torchrl.agents.variant import Variant, actor_and_critics, assemble
from sac_torchrl.fields import field
from sac_torchrl.specs import Specs


@dataclass
class Ensemble(Variant):
    """What variants with an ensemble of critics and a learned temperature share.

    The temperature is learned so that the policy's entropy in the [-1, 1] action space meets `target_entropy`.
    """

    critics: int = field(2, "Q networks", least=1)
    gamma: float = field(0.99, "discount", least=0, most=1)
    tau: float = field(0.005, "part of the critics that enters the target networks at a step", above=0, most=1)
    alpha: float = field(1.0, "temperature, the first one where it is learned", above=0)
    fixed_alpha: bool = field(False, "keep the temperature at alpha")
    target_entropy: float | None = field(
        None, "entropy that the temperature keeps, in nats; null: entropy_per_dimension times the number of actions"
    )
    entropy_per_dimension: float = field(
        -1.0, "entropy for each action dimension, in nats, where target_entropy is null (jaxrl, SimBa: -0.5)"
    )

    def _build(
        self,
        specs: Specs,
        device: torch.device,
        *,
        actor: Callable[[int], nn.Module],
        critic: Callable[[int], nn.Module],
        loss: Callable[..., LossModule],
        std: StdForm = StdForm.clip,
    ) -> Agent:
        """Put the parts together, with networks from the number of action dimensions and a loss like SACLoss."""
        policy, critics = actor_and_critics(
            type(self).__name__.lower(), specs, self.critics, actor=actor, critic=critic, std=std
        )
        entropy = self.entropy_per_dimension * specs.action.shape[-1]
        built = loss(
            policy,
            critics[0],
            num_qvalue_nets=self.critics,
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy=entropy if self.target_entropy is None else self.target_entropy,
            deactivate_vmap=True,
        ).to(device)
        return assemble(policy, built, critics, gamma=self.gamma, tau=self.tau)
