"""Soft Actor-Critic for continuous actions in its first version, with a state value network."""

from dataclasses import dataclass

import torch

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import state_critic
from sac_torchrl.agents.losses import CriticReduction, SACv1Loss
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import StdForm
from sac_torchrl.agents.variant import Variant, actor_and_critics, assemble, with_hidden
from sac_torchrl.fields import field
from sac_torchrl.specs import Specs


@dataclass
class SACv1(Variant):
    """Soft Actor-Critic, first version (Haarnoja et al. 2018a, arXiv 1801.01290).

    A state value network V learns the soft value that the critics give the policy's actions, and its target network is
    what the critics learn from. The temperature stays at `alpha`.
    """

    network: NetworkConfig = field(NetworkConfig(), "the networks of actor and critics")
    critics: int = field(2, "Q networks", least=1)
    gamma: float = field(0.99, "discount", least=0, most=1)
    tau: float = field(0.005, "part of the critics that enters the target networks at a step", above=0, most=1)
    alpha: float = field(1.0, "temperature", above=0)
    reward_scale: float = field(
        1.0, "factor of rewards, the paper's one hyperparameter per task (5; Humanoid: 20)", above=0
    )
    actor_q: CriticReduction = field(
        CriticReduction.min, "how the actor combines the critics: min in the paper, first in haarnoja/sac"
    )
    critic_hidden: list[int] | None = field(
        None, "widths of the hidden layers of critics and V; null: network.hidden", least=1
    )
    std: StdForm = field(StdForm.clip, "how the policy bounds its standard deviation")

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics, value network and SACv1Loss; raises ConfigError where actions are discrete."""
        critic = with_hidden(self.network, self.critic_hidden)
        actor, critics = actor_and_critics(
            "sac_v1",
            specs,
            self.critics,
            actor=lambda actions: self.network.build(self.actor_sees(specs), outputs=2 * actions, device=device),
            critic=lambda actions: critic.build(self.critic_sees(specs), inputs=actions, outputs=1, device=device),
            std=self.std,
        )
        loss = SACv1Loss(
            actor,
            critics[0],
            state_critic(critic.build(self.critic_sees(specs), outputs=1, device=device)),
            critics=self.critics,
            alpha=self.alpha,
            reward_scale=self.reward_scale,
            actor_q=self.actor_q,
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
