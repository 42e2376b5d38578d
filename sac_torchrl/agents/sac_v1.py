"""Soft Actor-Critic for continuous actions in its first version, with a state value network."""

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import SACLoss

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import state_critic
from sac_torchrl.agents.losses import CriticReduction, draw
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import StdForm
from sac_torchrl.agents.variant import Variant, actor_and_critics, assemble, with_hidden
from sac_torchrl.fields import field
from sac_torchrl.specs import Specs


@dataclass
class SACv1(Variant):
    """Soft Actor-Critic, first version (Haarnoja et al. 2018a, arXiv 1801.01290).

    A state value network V learns the soft value that the critics give the policy's actions, and its target network is
    what the critics learn from. The temperature stays at `alpha`.
    """

    network: NetworkConfig = field(NetworkConfig(), "the networks of actor and critics")
    critics: int = field(2, "Q networks", least=1)
    gamma: float = field(0.99, "discount", least=0, most=1)
    tau: float = field(0.005, "part of the critics that enters the target networks at a step", above=0, most=1)
    alpha: float = field(1.0, "temperature", above=0)
    reward_scale: float = field(
        1.0, "factor of rewards, the paper's one hyperparameter per task (5; Humanoid: 20)", above=0
    )
    actor_q: CriticReduction = field(
        CriticReduction.min, "how the actor combines the critics: min in the paper, first in haarnoja/sac"
    )
    critic_hidden: list[int] | None = field(
        None, "widths of the hidden layers of critics and V; null: network.hidden", least=1
    )
    std: StdForm = field(StdForm.clip, "how the policy bounds its standard deviation")

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics, value network and SACv1Loss; raises ConfigError where actions are discrete."""
        critic = with_hidden(self.network, self.critic_hidden)
        actor, critics = actor_and_critics(
            "sac_v1",
            specs,
            self.critics,
            actor=lambda actions: self.network.build(self.actor_sees(specs), outputs=2 * actions, device=device),
            critic=lambda actions: critic.build(self.critic_sees(specs), inputs=actions, outputs=1, device=device),
            std=self.std,
        )
        loss = SACv1Loss(
            actor,
            critics[0],
            state_critic(critic.build(self.critic_sees(specs), outputs=1, device=device)),
            critics=self.critics,
            alpha=self.alpha,
            reward_scale=self.reward_scale,
            actor_q=self.actor_q,
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)


class SACv1Loss(SACLoss):
    """The losses of the first version (Haarnoja et al. 2018a, arXiv 1801.01290, equations 5 to 13).

    With an action a drawn from the policy at s, the fixed temperature alpha and the reward scale c:

    - `loss_value`: mean (V(s) - [min_i Q_i(s, a) - alpha log pi(a|s)])^2 / 2, with the online critics;
    - `loss_qvalue`: the sum over critics of mean (Q_i(s, b) - [c r + gamma (1 - terminated) V_target(s')])^2 / 2 with
      the stored action b, each critic on the whole batch;
    - `loss_actor`: mean [alpha log pi(a|s) - Q(s, a)], with the critics combined by `actor_q`.

    Value and actor share the draw, as in haarnoja/sac; only V has a target network. TorchRL's own path with a value
    network gives each critic a part of the batch and asks target critics for V.
    """

    def __init__(
        self,
        actor: ProbabilisticActor,
        critic: ValueOperator,
        value: ValueOperator,
        *,
        critics: int,
        alpha: float,
        reward_scale: float,
        actor_q: CriticReduction,
    ) -> None:
        super().__init__(
            actor,
            critic,
            value,
            num_qvalue_nets=critics,
            alpha_init=alpha,
            fixed_alpha=True,
            target_entropy=0.0,
            delay_qvalue=False,
            deactivate_vmap=True,
        )
        # Without it the estimator takes the value of what follows from the batch, where `forward` puts it.
        self.__dict__["actor_critic"] = None
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_value", "alpha", "entropy"]
        self.reward_scale = reward_scale
        self.actor_q = actor_q

    @dispatch  # type: ignore[untyped-decorator]  # tensordict is not seen by mypy
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the three losses, `alpha` and `entropy`; writes `td_error`, `(batch,)`, into `tensordict`."""
        predicted = self._critics(tensordict, self.qvalue_network_params)
        target = self._target(tensordict)
        td_error = predicted - target
        weights = self._maybe_get_priority_weight(tensordict)
        loss_qvalue = self._reduce_loss((td_error**2 / 2).sum(0), tensordict=tensordict, weights=weights)
        tensordict.set(self.tensor_keys.priority, td_error.detach().abs().amax(0))

        action, log_prob = draw(self, tensordict)
        drawn = tensordict.clone(False).set(self.tensor_keys.action, action)
        values = self._critics(drawn, self._cached_detached_qvalue_params)
        soft = (values.amin(0) - self._alpha * log_prob).detach()
        value = self._value(tensordict, self.value_network_params).squeeze(-1)
        return TensorDict(
            {
                "loss_actor": (self._alpha * log_prob - self.actor_q(values)).mean(),
                "loss_qvalue": loss_qvalue,
                "loss_value": ((value - soft) ** 2 / 2).mean(),
                "alpha": self._alpha,
                "entropy": -log_prob.detach().mean(),
            }
        )

    def _target(self, tensordict: TensorDictBase) -> Tensor:
        following = tensordict.clone(False)
        with torch.no_grad():
            value = self._value(tensordict.get("next"), self.target_value_network_params)
            reward = self.reward_scale * tensordict.get(("next", self.tensor_keys.reward))
        following.set(("next", self.tensor_keys.value), value)
        following.set(("next", self.tensor_keys.reward), reward)
        target: Tensor = self.value_estimator.value_estimate(following).squeeze(-1)
        return target

    def _critics(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> Tensor:
        asked = tensordict.select(*self.qvalue_network.in_keys)
        values: Tensor = self._vmap_qnetworkN0(asked, parameters).get(self.tensor_keys.state_action_value)
        return values.squeeze(-1)

    def _value(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> Tensor:
        assert self.value_network is not None
        with parameters.to_module(self.value_network, preserve_module_state=False):
            asked = self.value_network(tensordict.select(*self.value_network.in_keys))
        value: Tensor = asked.get(self.tensor_keys.value)
        return value
