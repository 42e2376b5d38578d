"""Truncated quantile critics."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import LossModule, TQCLoss

from sac_torchrl.actors import tanh_normal_actor
from sac_torchrl.agent import Specs
from sac_torchrl.critics import state_action_critic
from sac_torchrl.errors import ConfigError
from sac_torchrl.networks import Network
from sac_torchrl.prioritised import WeighsCritics
from sac_torchrl.variants.ensemble import Ensemble


@dataclass
class TQC(Ensemble):
    """Critics of the return's distribution, the largest values left out (Kuznetsov et al. 2020, arXiv 2005.04269).

    Each of `critics` networks, `critic_hidden`, predicts `quantiles` of them. The target is their pool without the
    `dropped` largest for each critic, and quantile regression with a Huber loss follows it; the actor (`network`)
    climbs the mean of all quantiles (equations 9 to 13). Numbers: table 2 of the paper, where tasks differ in
    `dropped`: Hopper 5, HalfCheetah 0, the others 2. The loss is TorchRL's.
    """

    network: Network = field(default_factory=Network)
    critic_hidden: list[int] = field(default_factory=lambda: [512, 512, 512])
    critics: int = 5
    quantiles: int = 25
    dropped: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width < 1 for width in self.critic_hidden):
            raise ConfigError(f"variant.critic_hidden={list(self.critic_hidden)}: every layer needs a width above 0.")
        if self.quantiles < 1:
            raise ConfigError(f"variant.quantiles={self.quantiles}: give at least 1.")
        if not 0 <= self.dropped < self.quantiles:
            raise ConfigError(f"variant.dropped={self.dropped}: give 0 to below {self.quantiles}, variant.quantiles.")

    def _actor(self, specs: Specs, actions: int, device: torch.device) -> ProbabilisticActor:
        return tanh_normal_actor(self.network.build(specs.observation, outputs=2 * actions, device=device), specs)

    def _critic(self, specs: Specs, actions: int, device: torch.device) -> ValueOperator:
        network = Network(self.critic_hidden, self.network.embedding)
        return state_action_critic(
            network.build(specs.observation, inputs=actions, outputs=self.quantiles, device=device)
        )

    def _loss(self, actor: ProbabilisticActor, critic: ValueOperator, **fields: Any) -> LossModule:
        return TruncatedLoss(actor, critic, top_quantiles_to_drop_per_net=self.dropped, **fields)


class TruncatedLoss(WeighsCritics, TQCLoss):
    """TQCLoss whose weights of prioritised rows are the critics' alone."""
