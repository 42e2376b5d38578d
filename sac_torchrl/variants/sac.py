"""Soft Actor-Critic for continuous actions."""

from dataclasses import dataclass, field

import torch
from torchrl.data import Categorical
from torchrl.objectives import SACLoss

from sac_torchrl.actors import tanh_normal_actor
from sac_torchrl.agent import Agent, Specs
from sac_torchrl.critics import state_action_critic
from sac_torchrl.errors import ConfigError
from sac_torchrl.networks import Network
from sac_torchrl.variants.base import Variant, assemble, check


@dataclass
class SAC(Variant):
    """Soft Actor-Critic for continuous actions, second version (Haarnoja et al. 2018b, arXiv 1812.05905).

    `critics` Q networks, the smallest value in target and actor loss (equations 5 to 9); discount `gamma`;
    targets move by `tau` after each update. The temperature starts at `alpha` and is learned so that the
    policy's entropy in the [-1, 1] action space meets `target_entropy` (equation 18; null: minus the number of
    action dimensions), or stays at `alpha` where `fixed_alpha` is true. Numbers: table 1 of the paper.
    """

    network: Network = field(default_factory=Network)
    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    fixed_alpha: bool = False
    target_entropy: float | None = None

    def __post_init__(self) -> None:
        check(self.critics, self.gamma, self.tau, self.alpha)

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and TorchRL's SACLoss; raises ConfigError where actions are discrete."""
        if isinstance(specs.action, Categorical):
            raise ConfigError(
                f"variant=sac needs continuous actions, and this environment has {specs.action.space.n} discrete "
                "ones: use recipes/discrete.py."
            )
        actions = specs.action.shape[-1]
        actor = tanh_normal_actor(self.network.build(specs.observation, outputs=2 * actions, device=device), specs)
        critics = [
            state_action_critic(self.network.build(specs.observation, inputs=actions, outputs=1, device=device))
            for _ in range(self.critics)
        ]
        loss = SACLoss(
            actor,
            critics[0],
            num_qvalue_nets=self.critics,
            loss_function="l2",
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy=-float(actions) if self.target_entropy is None else self.target_entropy,
            deactivate_vmap=True,
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
