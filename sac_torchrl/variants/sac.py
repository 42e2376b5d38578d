"""Soft Actor-Critic for continuous actions."""

from dataclasses import dataclass, field

import torch
from torchrl.data import Categorical

from sac_torchrl.actors import Std, tanh_normal_actor
from sac_torchrl.agent import Agent, Specs
from sac_torchrl.critics import state_action_critic
from sac_torchrl.errors import ConfigError
from sac_torchrl.losses import AlphaForm, Combine, SACv2Loss, Terms
from sac_torchrl.networks import Network
from sac_torchrl.variants.base import Variant, assemble, check, sized


@dataclass
class SAC(Variant):
    """Soft Actor-Critic for continuous actions, second version (Haarnoja et al. 2018b, arXiv 1812.05905).

    `critics` Q networks, the smallest value in target and actor loss (equations 5 to 9); discount `gamma`;
    targets move by `tau` after each update. The temperature starts at `alpha` and is learned so that the
    policy's entropy in the [-1, 1] action space meets `target_entropy` (equation 18; null: minus the number of
    action dimensions), or stays at `alpha` where `fixed_alpha` is true. Numbers: table 1 of the paper.

    The other fields are what the systems of SAC differ in: `critic_hidden` (null: as the actor's), the `std` of the
    policy, `reward_scale`, and the terms of the loss, see `losses.Terms`.
    """

    network: Network = field(default_factory=Network)
    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    fixed_alpha: bool = False
    target_entropy: float | None = None
    critic_hidden: list[int] | None = None
    std: Std = Std.clip
    actor_q: Combine = Combine.min
    alpha_form: AlphaForm = AlphaForm.log_alpha
    reward_scale: float = 1.0
    critic_loss_scale: float = 1.0

    def __post_init__(self) -> None:
        check(
            self.critics,
            self.gamma,
            self.tau,
            self.alpha,
            reward_scale=self.reward_scale,
            critic_loss_scale=self.critic_loss_scale,
        )

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and SACv2Loss; raises ConfigError where actions are discrete."""
        if isinstance(specs.action, Categorical):
            raise ConfigError(
                f"variant=sac needs continuous actions, and this environment has {specs.action.space.n} discrete "
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
        loss = SACv2Loss(
            actor,
            critics[0],
            num_qvalue_nets=self.critics,
            loss_function="l2",
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy=-float(actions) if self.target_entropy is None else self.target_entropy,
            deactivate_vmap=True,
            terms=Terms(
                actor_q=self.actor_q,
                alpha_form=self.alpha_form,
                reward_scale=self.reward_scale,
                critic_loss_scale=self.critic_loss_scale,
            ),
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
