"""Soft Actor-Critic for continuous actions."""

from dataclasses import dataclass, field
from functools import partial

import torch

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.ensemble import Ensemble
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, SACv2Loss, Terms
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import StdForm
from sac_torchrl.agents.variant import with_hidden
from sac_torchrl.specs import Specs


@dataclass
class SAC(Ensemble):
    """Soft Actor-Critic for continuous actions, second version (Haarnoja et al. 2018b, arXiv 1812.05905).

    `critics` Q networks, the smallest value in target and actor loss (equations 5 to 9); discount `gamma`;
    targets move by `tau` after each update. The temperature starts at `alpha` and is learned so that the
    policy's entropy in the [-1, 1] action space meets `target_entropy` (equation 18; null: minus the number of
    action dimensions), or stays at `alpha` where `fixed_alpha` is true. Numbers: table 1 of the paper.

    The other fields are what the systems of SAC differ in: `critic_hidden` (null: as the actor's), the `std` of the
    policy, `reward_scale`, and the terms of the loss, see `losses.Terms`.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    critic_hidden: list[int] | None = None
    std: StdForm = StdForm.clip
    actor_q: CriticReduction = CriticReduction.min
    alpha_form: AlphaForm = AlphaForm.log_alpha
    reward_scale: float = 1.0
    critic_loss_scale: float = 1.0

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and SACv2Loss; raises ConfigError where actions are discrete."""
        critic = with_hidden(self.network, self.critic_hidden)
        terms = Terms(
            actor_q=self.actor_q,
            alpha_form=self.alpha_form,
            reward_scale=self.reward_scale,
            critic_loss_scale=self.critic_loss_scale,
        )
        return self._build(
            specs,
            device,
            actor=lambda actions: self.network.build(self.actor_sees(specs), outputs=2 * actions, device=device),
            critic=lambda actions: critic.build(self.critic_sees(specs), inputs=actions, outputs=1, device=device),
            loss=partial(SACv2Loss, loss_function="l2", terms=terms),
            std=self.std,
        )
