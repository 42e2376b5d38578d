"""Randomized ensembled double Q-learning."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.modules import MLP

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.ensemble import Ensemble
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, SACv2Loss, Terms
from sac_torchrl.agents.networks import Init, NetworkConfig
from sac_torchrl.fields import field
from sac_torchrl.specs import Specs


@dataclass
class REDQ(Ensemble):
    """Many critics, a random few of them in each target, many updates a frame (Chen et al. 2021, arXiv 2101.05982).

    The smallest of the drawn critics' targets enters the TD target; the actor climbs the mean of all. Numbers: appendix
    B.1 of the paper, which uses MBPO's entropy targets: Hopper -1, HalfCheetah -3, Walker2d -3, Ant -4, Humanoid -2;
    the initial weights are those of the authors' code.
    """

    training: ClassVar[Mapping[str, Any]] = {"replay_ratio": 20.0, "learner": {"actor_every": 20}}

    network: NetworkConfig = field(NetworkConfig(init=Init.xavier_uniform), "the networks of actor and critics")
    critics: int = field(10, "Q networks", least=1)
    sampled: int = field(2, "critics that are drawn for each target", least=1)
    alpha_form: AlphaForm = field(AlphaForm.log_alpha, "factor of the temperature's loss: log_alpha or alpha itself")
    dropout: float = field(0.0, "probability that a unit of a critic is dropped (DroQ)", least=0, below=1)
    layer_norm: bool = field(False, "layer norm behind the critics' linear layers (DroQ, RLPD)")

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield (
            self.sampled <= self.critics,
            f"variant.sampled={self.sampled}: give 1 to {self.critics}, the variant.critics.",
        )

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and SubsetLoss; raises ConfigError where actions are discrete."""
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

        def critic(actions: int) -> nn.Module:
            return self.network.build(
                self.critic_sees(specs), inputs=actions, outputs=1, device=device, perceptron=perceptron
            )

        terms = Terms(actor_q=CriticReduction.mean, alpha_form=self.alpha_form)
        return self._build(
            specs,
            device,
            actor=lambda actions: self.network.build(self.actor_sees(specs), outputs=2 * actions, device=device),
            critic=critic,
            loss=partial(SubsetLoss, sampled=self.sampled, loss_function="l2", terms=terms),
        )


class SubsetLoss(SACv2Loss):
    """SACv2Loss with `sampled` of the target critics in each target (algorithm 1, line 8).

    Each call draws them from torch's global generator, without replacement.
    """

    def __init__(self, *networks: Any, sampled: int, **options: Any) -> None:
        super().__init__(*networks, **options)
        self.sampled = sampled

    def _of_target(self, parameters: TensorDictBase) -> TensorDictBase:
        if self.sampled == self.num_qvalue_nets:
            return parameters
        drawn = torch.rand(self.num_qvalue_nets, device=self.log_alpha.device).topk(self.sampled).indices
        return parameters[drawn]
