"""Truncated quantile critics."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import TQCLoss

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.ensemble import Ensemble
from sac_torchrl.agents.losses import WeightedCritics
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.variant import with_hidden
from sac_torchrl.fields import field
from sac_torchrl.specs import Specs


@dataclass
class TQC(Ensemble):
    """Distributional critics without the largest quantiles in the target (Kuznetsov et al. 2020, arXiv 2005.04269).

    The target is the pool of all critics' quantiles without the largest; critics fit it by quantile regression with a
    Huber loss; the actor maximizes the mean of all quantiles (equations 9 to 13). Numbers: table 2 of the paper. The
    targets and the actor's loss are TorchRL's.
    """

    network: NetworkConfig = field(NetworkConfig(), "the networks of actor and critics")
    critic_hidden: list[int] = field([512, 512, 512], "widths of the critics' hidden layers", least=1)
    critics: int = field(5, "Q networks", least=1)
    quantiles: int = field(25, "quantiles of a critic", least=1)
    dropped: int = field(
        2, "largest quantiles left out for each critic (table 2: Hopper 5, HalfCheetah 0, the others 2)", least=0
    )

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield (
            self.dropped < self.quantiles,
            f"variant.dropped={self.dropped}: give 0 to below {self.quantiles}, variant.quantiles.",
        )

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and TruncatedLoss; raises ConfigError where actions are discrete."""
        critic = with_hidden(self.network, self.critic_hidden)
        return self._build(
            specs,
            device,
            actor=lambda actions: self.network.build(self.actor_sees(specs), outputs=2 * actions, device=device),
            critic=lambda actions: critic.build(
                self.critic_sees(specs), inputs=actions, outputs=self.quantiles, device=device
            ),
            loss=partial(TruncatedLoss, top_quantiles_to_drop_per_net=self.dropped),
        )


class TruncatedLoss(WeightedCritics, TQCLoss):
    """TQCLoss that applies importance weights to the critics alone and takes half the passes over its errors."""

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over critics and quantiles of the quantile Huber loss, and each row's largest mean error, `(batch,)`."""
        target = self.compute_target(tensordict)
        asked = self._vmap_qnetworkN0(
            tensordict.select(*self.qvalue_network.in_keys, strict=False), self.qvalue_network_params
        )
        quantiles = asked.get(self.tensor_keys.state_action_value)
        count = quantiles.shape[-1]
        fractions = ((torch.arange(count, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / count).unsqueeze(-1)
        # Of every predicted quantile from every target: (critics, batch, quantiles, targets).
        error = target.unsqueeze(-2) - quantiles.unsqueeze(-1)
        # Huber's function is the largest of all c u - c^2 / 2 with c in [-1, 1]. With the best c held fixed, value and
        # gradient are its own.
        with torch.no_grad():
            slope = error.clamp(-1, 1)
            pull = torch.where(error < 0, 1 - fractions, fractions) * slope
        loss = (pull * torch.sub(error, slope, alpha=0.5)).mean((-1, -2)).mean(0)
        weights = self._maybe_get_priority_weight(tensordict)
        reduced: Tensor = self._reduce_loss(loss, tensordict=tensordict, weights=weights)
        return reduced, {"td_error": error.detach().abs().mean((-1, -2)).amax(0)}
