"""FastSAC: critics of the return's distribution, for thousands of environments at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import MLP

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.ensemble import Ensemble
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, SACv2Loss, Terms, draw
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import BoundedLogStd
from sac_torchrl.agents.variant import with_hidden
from sac_torchrl.fields import field
from sac_torchrl.specs import SPAN, Specs


@dataclass
class FastSAC(Ensemble):
    """SAC with categorical critics and an initially narrow policy (amazon-far/holosoma, FastSACConfig).

    Each critic gives probabilities to `atoms` returns from `v_min` to `v_max` and learns from its own target (C51:
    Bellemare et al. 2017, arXiv 1707.06887); the actor climbs the mean of their expectations. All have layer
    normalization and SiLU. The policy's last layer begins at zero and its logarithms of standard deviations lie in
    [-5, 0], so that they begin at -2.5. `train/clipped` is the part of the targets beyond the bounds. A null
    `target_entropy` is 0. Numbers: holosoma's configuration and code.
    """

    training: ClassVar[Mapping[str, Any]] = {
        "normalize": True,
        "learner": {"betas": [0.9, 0.95], "weight_decay": 1e-3, "actor_every": 4, "order": "critics_first"},
    }

    network: NetworkConfig = field(NetworkConfig([512, 256, 128]), "the networks of the actor")
    critic_hidden: list[int] = field([768, 384, 192], "widths of the critics' hidden layers", least=1)
    gamma: float = field(0.97, "discount", least=0, most=1)
    tau: float = field(0.125, "part of the critics that enters the target networks at a step", above=0, most=1)
    alpha: float = field(0.001, "temperature, the first one where it is learned", above=0)
    entropy_per_dimension: float = field(
        0.0, "entropy for each action dimension, in nats, where target_entropy is null"
    )
    alpha_form: AlphaForm = field(AlphaForm.alpha, "factor of the temperature's loss: log_alpha or alpha itself")
    reward_scale: float = field(1.0, "factor of rewards, so that returns lie from v_min to v_max", above=0)
    atoms: int = field(101, "returns that a critic gives probabilities to", least=2)
    v_min: float = field(-20.0, "smallest return of the critics")
    v_max: float = field(20.0, "largest return of the critics")

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield (
            -torch.inf < self.v_min < self.v_max < torch.inf,
            f"variant.v_min={self.v_min}: give less than variant.v_max={self.v_max}.",
        )

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and CategoricalLoss; raises ConfigError where actions are discrete."""

        def network(plan: NetworkConfig, observation: TensorSpec, *, inputs: int = 0, outputs: int) -> nn.Module:
            return plan.build(
                observation,
                inputs=inputs,
                outputs=outputs,
                device=device,
                perceptron=lambda inputs, outputs: _normed(inputs, list(plan.hidden), outputs),
            )

        def actor(actions: int) -> nn.Module:
            policy = network(self.network, self.actor_sees(specs), outputs=2 * actions)
            *_, head = (layer for layer in policy.modules() if isinstance(layer, nn.Linear))
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            return nn.Sequential(policy, BoundedLogStd(-5.0, 0.0))

        critic = with_hidden(self.network, self.critic_hidden)
        return self._build(
            specs,
            device,
            actor=actor,
            critic=lambda actions: network(critic, self.critic_sees(specs), inputs=actions, outputs=self.atoms),
            loss=partial(
                CategoricalLoss,
                support=torch.linspace(self.v_min, self.v_max, self.atoms),
                terms=Terms(actor_q=CriticReduction.mean, alpha_form=self.alpha_form, reward_scale=self.reward_scale),
            ),
        )


def _normed(inputs: int, hidden: list[int], outputs: int) -> nn.Module:
    return MLP(
        in_features=inputs,
        out_features=outputs,
        num_cells=hidden,
        activation_class=nn.SiLU,
        norm_class=nn.LayerNorm,
        norm_kwargs=[{"normalized_shape": width} for width in hidden],
    )


class CategoricalLoss(SACv2Loss):
    """SACv2Loss for critics with one logit for each return in `support`, `(atoms,)`, which is evenly spaced.

    With probabilities p of the target critic i at (s', a'), the entropy's part of the return is the reward's:

    - the target moves p_j from z_j to r + gamma (1 - terminated) (z_j - alpha log pi(a'|s')), clipped to the support,
      and shares it between its two neighbors there (Bellemare et al. 2017, algorithm 1);
    - `loss_qvalue`: the sum over critics of the mean cross-entropy from their own targets;
    - `loss_actor`: mean [alpha log pi(a|s) - Q(s, a)], Q the critics' expectations as `actor_q` combines them.

    `clipped` is how much of the targets' probability was beyond the support.
    """

    support: Tensor

    def __init__(self, *networks: Any, support: Tensor, terms: Terms, **options: Any) -> None:
        super().__init__(*networks, terms=terms, **options)
        self.register_buffer("support", support, persistent=False)
        self.out_keys = [*self.out_keys, "clipped"]

    @dispatch  # type: ignore[untyped-decorator]  # tensordict is not seen by mypy
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return SACLoss's losses and metrics, and `clipped`."""
        return super().forward(tensordict).set("clipped", self._clipped)

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over critics of the mean cross-entropy, and each row's largest error of expectations, `(batch,)`."""
        target = self.target(tensordict)
        asked = self._every_critic(tensordict.select(*self.qvalue_network.in_keys), self.qvalue_network_params)
        log_probs = asked.get(self.tensor_keys.state_action_value).log_softmax(-1)
        loss: Tensor = self._reduce_loss(
            -(target * log_probs).sum(-1).sum(0),
            tensordict=tensordict,
            weights=self._maybe_get_priority_weight(tensordict),
        )
        error = ((target - log_probs.detach().exp()) * self.support).sum(-1)
        return loss, {"td_error": error.abs().amax(0)}

    @torch.no_grad()
    def target(self, tensordict: TensorDictBase) -> Tensor:
        """The probabilities that every critic learns, `(critics, batch, atoms)`; notes how much was clipped."""
        scaled = self._scaled(tensordict)
        following = scaled.get("next")
        action, log_prob = draw(self, following)
        asked = self._every_critic(
            following.select(*self.qvalue_network.in_keys, strict=False).set(self.tensor_keys.action, action),
            self.target_qvalue_network_params,
        )
        probabilities = asked.get(self.tensor_keys.state_action_value).softmax(-1)
        soft = self.support - self._alpha * log_prob.unsqueeze(-1)
        keys = ("next", self.tensor_keys.reward), ("next", self.tensor_keys.terminated), SPAN
        for key in keys:  # TorchRL wants all of them as wide as the values
            if (column := scaled.get(key, None)) is not None:
                scaled.set(key, column.expand_as(soft))
        moved = self.value_estimator.value_estimate(scaled, next_value=soft)
        lowest, highest = self.support[0], self.support[-1]
        outside = ((moved < lowest) | (moved > highest)).to(probabilities.dtype)
        self.__dict__["_clipped"] = (probabilities * outside).sum(-1).mean()
        last = len(self.support) - 1
        place = (moved.clamp(lowest, highest) - lowest) * last / (highest - lowest)
        lower = place.floor().clamp(max=last - 1)
        share = place - lower
        below = lower.long().expand_as(probabilities)
        projected = torch.zeros_like(probabilities).scatter_add(-1, below, probabilities * (1 - share))
        return projected.scatter_add(-1, below + 1, probabilities * share)

    def _combined(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> TensorDictBase:
        asked: TensorDictBase = self._every_critic(tensordict, parameters)
        key = self.tensor_keys.state_action_value
        values = (asked.get(key).softmax(-1) * self.support).sum(-1, keepdim=True)
        return asked[:1].set(key, self.terms.actor_q(values).unsqueeze(0))
