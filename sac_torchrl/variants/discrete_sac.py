"""Soft Actor-Critic for discrete actions."""

from dataclasses import dataclass, field

import torch
from torchrl.data import Categorical
from torchrl.objectives import DiscreteSACLoss

from sac_torchrl.actors import categorical_actor
from sac_torchrl.agent import Agent, Specs
from sac_torchrl.critics import action_value_critic
from sac_torchrl.errors import ConfigError
from sac_torchrl.networks import Network
from sac_torchrl.variants.base import Variant, assemble, check


@dataclass
class DiscreteSAC(Variant):
    """Soft Actor-Critic for discrete actions, with exact expectations (Christodoulou 2019, arXiv 1910.07207).

    As `SAC`, but the entropy target is `target_entropy_ratio` times log(number of actions), the entropy of the
    uniform policy. The paper's 0.98 keeps the policy almost uniform where few actions matter.
    """

    network: Network = field(default_factory=Network)
    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    fixed_alpha: bool = False
    target_entropy_ratio: float = 0.2

    def __post_init__(self) -> None:
        check(self.critics, self.gamma, self.tau, self.alpha)
        if not 0 <= self.target_entropy_ratio < 1:
            raise ConfigError(
                f"variant.target_entropy_ratio={self.target_entropy_ratio}: no policy is more random than uniform; "
                "give a number from 0 to below 1."
            )

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and TorchRL's DiscreteSACLoss; raises ConfigError where actions are continuous."""
        if not isinstance(specs.action, Categorical):
            raise ConfigError(
                f"variant=discrete_sac needs discrete actions, and this environment has {specs.action.shape[-1]} "
                "continuous dimensions: use recipes/continuous.py."
            )
        actions = specs.action.space.n
        actor = categorical_actor(self.network.build(specs.observation, outputs=actions, device=device), specs)
        critics = [
            action_value_critic(self.network.build(specs.observation, outputs=actions, device=device))
            for _ in range(self.critics)
        ]
        loss = DiscreteSACLoss(
            actor,
            critics[0],
            action_space="categorical",
            num_actions=actions,
            num_qvalue_nets=self.critics,
            loss_function="l2",
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy_weight=self.target_entropy_ratio,
            deactivate_vmap=True,
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
