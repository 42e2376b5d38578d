"""Soft Actor-Critic for continuous actions in its first version, with a state value network."""

from dataclasses import dataclass, field

import torch
from torchrl.data import Categorical

from sac_torchrl.actors import Std, tanh_normal_actor
from sac_torchrl.agent import Agent, Specs
from sac_torchrl.critics import state_action_critic, state_critic
from sac_torchrl.errors import ConfigError
from sac_torchrl.losses import Combine, SACv1Loss
from sac_torchrl.networks import Network
from sac_torchrl.variants.base import Variant, assemble, check, sized


@dataclass
class SACv1(Variant):
    """Soft Actor-Critic, first version (Haarnoja et al. 2018a, arXiv 1801.01290).

    A state value network V learns the soft value that the critics give the policy's actions, and its target,
    which moves by `tau`, is what the `critics` learn from. The temperature stays at `alpha`; rewards are multiplied
    by `reward_scale`, which is the paper's one hyperparameter per task (5, and 20 for Humanoid). The actor follows
    the critics combined by `actor_q`: min in the paper's text, first in haarnoja/sac. `critic_hidden` (null: as the
    actor's) is for the critics and V, `std` is the policy's.
    """

    network: Network = field(default_factory=Network)
    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    reward_scale: float = 1.0
    actor_q: Combine = Combine.min
    critic_hidden: list[int] | None = None
    std: Std = Std.clip

    def __post_init__(self) -> None:
        check(self.critics, self.gamma, self.tau, self.alpha, reward_scale=self.reward_scale)

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics, value network and SACv1Loss; raises ConfigError where actions are discrete."""
        if isinstance(specs.action, Categorical):
            raise ConfigError(
                f"variant=sac_v1 needs continuous actions, and this environment has {specs.action.space.n} discrete "
                "ones: use recipes/discrete.py."
            )
        actions = specs.action.shape[-1]
        actor = tanh_normal_actor(
            self.network.build(specs.observation, outputs=2 * actions, device=device), specs, std=self.std
        )
        critic_network = sized(self.network, self.critic_hidden)
        critics = [
            state_action_critic(critic_network.build(specs.observation, inputs=actions, outputs=1, device=device))
            for _ in range(self.critics)
        ]
        value = state_critic(critic_network.build(specs.observation, outputs=1, device=device))
        loss = SACv1Loss(
            actor,
            critics[0],
            value,
            critics=self.critics,
            alpha=self.alpha,
            reward_scale=self.reward_scale,
            actor_q=self.actor_q,
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
