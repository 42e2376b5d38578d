"""What SAC and most of its descendants share: a squashed Gaussian policy, critics with targets, a temperature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torchrl.objectives import LossModule

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.policies import StdForm
from sac_torchrl.agents.variant import Variant, actor_and_critics, assemble
from sac_torchrl.specs import Specs


@dataclass
class Ensemble(Variant):
    """What they have: `critics` Q networks with discount `gamma`, and targets that move by `tau`.

    The temperature starts at `alpha` and is learned so that the policy's entropy in the [-1, 1] action space meets
    `target_entropy` (null: minus the number of action dimensions), or stays at `alpha` where `fixed_alpha` is true.
    """

    entropy_per_dimension: ClassVar[float] = -1.0

    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    fixed_alpha: bool = False
    target_entropy: float | None = None

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
