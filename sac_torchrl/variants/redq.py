"""Randomized ensembled double Q-learning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives import LossModule

from sac_torchrl.actors import tanh_normal_actor
from sac_torchrl.agent import Specs
from sac_torchrl.critics import state_action_critic
from sac_torchrl.errors import ConfigError
from sac_torchrl.networks import Network
from sac_torchrl.variants.ensemble import Ensemble, SubsetLoss


@dataclass
class REDQ(Ensemble):
    """Many critics, a random few of them in each target, many updates a frame (Chen et al. 2021, arXiv 2101.05982).

    Of `critics` Q networks, `sampled` are drawn at every update, and the smallest of their targets enters the TD
    target; the actor climbs the mean of all. Numbers: appendix B.1 of the paper, which uses MBPO's entropy targets:
    Hopper -1, HalfCheetah -3, Walker2d -3, Ant -4, Humanoid -2. Critics may have dropout and layer norm between
    their linear layers and activations (DroQ, RLPD).
    """

    training: ClassVar[Mapping[str, Any]] = {"replay_ratio": 20.0, "learner": {"actor_every": 20}}

    network: Network = field(default_factory=Network)
    critics: int = 10
    sampled: int = 2
    dropout: float = 0.0
    layer_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.sampled <= self.critics:
            raise ConfigError(f"variant.sampled={self.sampled}: give 1 to {self.critics}, the variant.critics.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"variant.dropout={self.dropout}: give a probability from 0 to below 1.")

    def _actor(self, specs: Specs, actions: int, device: torch.device) -> ProbabilisticActor:
        return tanh_normal_actor(self.network.build(specs.observation, outputs=2 * actions, device=device), specs)

    def _critic(self, specs: Specs, actions: int, device: torch.device) -> ValueOperator:
        hidden = list(self.network.hidden)

        def perceptron(inputs: int, outputs: int) -> nn.Module:
            return MLP(
                in_features=inputs,
                out_features=outputs,
                num_cells=hidden,
                activation_class=nn.ReLU,
                dropout=self.dropout or None,
                norm_class=nn.LayerNorm if self.layer_norm else None,
                norm_kwargs=[{"normalized_shape": width} for width in hidden] if self.layer_norm else None,
            )

        network = self.network.build(specs.observation, inputs=actions, outputs=1, device=device, perceptron=perceptron)
        return state_action_critic(network)

    def _loss(self, actor: ProbabilisticActor, critic: ValueOperator, **fields: Any) -> LossModule:
        return SubsetLoss(actor, critic, sampled=self.sampled, loss_function="l2", **fields)
