"""The losses that TorchRL does not have: Soft Actor-Critic in its first version."""

from enum import Enum

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import SACLoss
from torchrl.objectives.sac import compute_rsample_log_prob


class Combine(Enum):
    """How the values of several critics, stacked in the first dimension, become one."""

    min = "min"
    mean = "mean"
    first = "first"

    def __call__(self, values: Tensor) -> Tensor:
        """Combine `(critics, ...)` into `(...)`."""
        match self:
            case Combine.min:
                return values.amin(0)
            case Combine.mean:
                return values.mean(0)
            case Combine.first:
                return values[0]


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
        actor_q: Combine,
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

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the three losses, `alpha` and `entropy`; writes `td_error`, `(batch,)`, into `tensordict`."""
        predicted = self._critics(tensordict, self.qvalue_network_params)
        target = self._target(tensordict)
        td_error = predicted - target
        weights = self._maybe_get_priority_weight(tensordict)
        loss_qvalue = self._reduce_loss((td_error**2 / 2).sum(0), tensordict=tensordict, weights=weights)
        tensordict.set(self.tensor_keys.priority, td_error.detach().abs().amax(0))

        action, log_prob = self._draw(tensordict)
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

    def _draw(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        with (
            set_exploration_type(ExplorationType.RANDOM),
            self.actor_network_params.to_module(self.actor_network, preserve_module_state=False),
        ):
            policy = self.actor_network.get_dist(tensordict.select(*self.actor_network.in_keys))
        action, log_prob = compute_rsample_log_prob(policy)
        assert isinstance(log_prob, Tensor)
        return action, log_prob

    def _critics(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> Tensor:
        asked = tensordict.select(*self.qvalue_network.in_keys)
        values: Tensor = self._vmap_qnetworkN0(asked, parameters).get(self.tensor_keys.state_action_value)
        return values.squeeze(-1)

    def _value(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> Tensor:
        with parameters.to_module(self.value_network, preserve_module_state=False):
            asked = self.value_network(tensordict.select(*self.value_network.in_keys))
        value: Tensor = asked.get(self.tensor_keys.value)
        return value
