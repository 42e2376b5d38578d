"""SimBa: SAC on residual networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchrl.data import TensorSpec

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.ensemble import Ensemble
from sac_torchrl.agents.losses import AlphaForm, SACv2Loss, Terms
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import BoundedLogStd
from sac_torchrl.fields import field
from sac_torchrl.specs import Specs


@dataclass
class SimBa(Ensemble):
    """SAC on residual networks with layer norm and normalized observations (Lee et al. 2025, arXiv 2410.09754).

    A null `target_entropy` is minus half the number of action dimensions. Numbers: the paper's table of hyperparameters
    and the authors' code; their discount depends on the length of an episode, and they use one critic instead of two
    where episodes never terminate.
    """

    training: ClassVar[Mapping[str, Any]] = {
        "replay_ratio": 2.0,
        "normalize": True,
        "learner": {"lr": 1e-4, "weight_decay": 1e-2},
    }

    alpha: float = field(0.01, "temperature, the first one where it is learned", above=0)
    entropy_per_dimension: float = field(
        -0.5, "entropy for each action dimension, in nats, where target_entropy is null"
    )
    alpha_form: AlphaForm = field(AlphaForm.alpha, "factor of the temperature's loss: log_alpha or alpha itself")
    actor_width: int = field(128, "width of the actor's residual blocks", least=1)
    actor_blocks: int = field(1, "residual blocks of the actor", least=1)
    critic_width: int = field(512, "width of the critics' residual blocks", least=1)
    critic_blocks: int = field(2, "residual blocks of a critic", least=1)

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and SACv2Loss; raises ConfigError where actions are discrete."""

        def network(observation: TensorSpec, width: int, blocks: int, *, inputs: int = 0, outputs: int) -> nn.Module:
            return NetworkConfig().build(
                observation,
                inputs=inputs,
                outputs=outputs,
                device=device,
                perceptron=lambda inputs, outputs: Residual(inputs, width, blocks, outputs),
            )

        return self._build(
            specs,
            device,
            actor=lambda actions: nn.Sequential(
                network(self.actor_sees(specs), self.actor_width, self.actor_blocks, outputs=2 * actions),
                BoundedLogStd(-10.0, 2.0),
            ),
            critic=lambda actions: network(
                self.critic_sees(specs), self.critic_width, self.critic_blocks, inputs=actions, outputs=1
            ),
            loss=partial(SACv2Loss, loss_function="l2", terms=Terms(alpha_form=self.alpha_form)),
        )


class Residual(nn.Sequential):
    """Linear, `blocks` of x + W2 ReLU(W1 LayerNorm(x)) with four times the width inside, layer norm, linear.

    Linear layers start orthogonal, those of the blocks He normal, all biases at 0.
    """

    def __init__(self, inputs: int, width: int, blocks: int, outputs: int) -> None:
        first, last = nn.Linear(inputs, width), nn.Linear(width, outputs)
        for layer in (first, last):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        super().__init__(first, *(Block(width) for _ in range(blocks)), nn.LayerNorm(width), last)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate the inputs and map them."""
        output: Tensor = super().forward(torch.cat(inputs, -1))  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return output


class Block(nn.Module):
    """x + W2 ReLU(W1 LayerNorm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        for layer in self.inner:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., width)` to `(..., width)`."""
        output: Tensor = x + self.inner(x)
        return output
