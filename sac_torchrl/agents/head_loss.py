"""The loss of the heads that TorchRL has none for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import LossModule
from torchrl.objectives.utils import _vmap_func
from torchrl.objectives.value import TD0Estimator

from sac_torchrl.agents.heads import Choices, Enumerable
from sac_torchrl.agents.losses import AlphaForm, Terms
from sac_torchrl.specs import ERROR, WEIGHT


class HeadLoss(LossModule):
    """Soft Actor-Critic for every policy that lists `Choices` (Haarnoja et al. 2018b, equations 5 to 18).

    With the choices a_k of weights w_k, H_j the entropy and alpha_j the temperature of the actions of kind j, the
    critics combined as `terms` say, and y the reward plus the discounted value of what follows:

    - V(s) = sum_k w_k Q(s, a_k) + sum_j alpha_j H_j, with the target critics at s' in y;
    - `loss_qvalue`: the sum over critics of mean (Q_i(s, a) - y)^2, a the stored action;
    - `loss_actor`: mean -V(s);
    - `loss_alpha`: the sum over kinds of mean log alpha_j (H_j - target_j), or alpha_j in place of its logarithm.

    With masks of illegal actions, and with parameters of discrete values, the target of a state is target_j times
    `Choices.target_scale`, and the mean is over states where that is not 0.

    Without `critic_entropy` the target has no entropies (Asad et al. 2025, arXiv 2509.09838). With `log_prior`, the
    log-density `(B, K)` of a prior over actions, alpha_0 log_prior(a_k) is added to every Q.

    A critic that takes an action is asked once for all choices, folded into the batch. One that does not has one value
    for each choice, in their order; `stored_value` then takes Q_i(s, a) `(critics, B)` from these values
    `(critics, B, K)` and the stored actions. With `expectation_first`, critics are combined after the sum over choices
    instead of before: each value is then one term of a sum, and the minimum over critics of a term has no meaning.

    On a Gaussian the losses are those of TorchRL's SACLoss, on a categorical policy those of its DiscreteSACLoss.
    """

    @dataclass
    class _AcceptedKeys:
        action: str = "action"
        state_action_value: str = "state_action_value"
        value: str = "state_value"
        priority: str = ERROR
        reward: str = "reward"
        done: str = "done"
        terminated: str = "terminated"
        priority_weight: str = WEIGHT

    default_keys = _AcceptedKeys
    tensor_keys: Any

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    log_alpha: Tensor
    target_entropy: Tensor

    def __init__(
        self,
        actor: ProbabilisticActor,
        critic: ValueOperator,
        *,
        critics: int,
        alpha: Sequence[float],
        fixed_alpha: bool,
        target_entropy: Sequence[float],
        terms: Terms,
        critic_entropy: bool = True,
        log_prior: Callable[[Tensor], Tensor] | None = None,
        stored_value: Callable[[Tensor, Tensor], Tensor] | None = None,
        expectation_first: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # TorchRL leaves it so
        self.reduction = "mean"
        self.use_prioritized_weights = "auto"
        self.convert_to_functional(actor, "actor_network")
        self.convert_to_functional(critic, "qvalue_network", critics, create_target_params=True)
        self._every_critic = _vmap_func(self.qvalue_network, (None, 0), pseudo_vmap=True)
        log_alpha = torch.tensor([math.log(value) for value in alpha])
        if fixed_alpha:
            self.register_buffer("log_alpha", log_alpha)
        else:
            self.register_parameter("log_alpha", nn.Parameter(log_alpha))
        self.register_buffer("target_entropy", torch.tensor([float(value) for value in target_entropy]))
        self.terms = terms
        self.critic_entropy = critic_entropy
        self.log_prior = log_prior
        self.stored_value = stored_value
        self.expectation_first = expectation_first
        observed = list(actor.in_keys)
        self.in_keys = [
            *dict.fromkeys([*observed, *self.qvalue_network.in_keys, "action"]),
            ("next", "reward"),
            ("next", "terminated"),
            *(("next", key) for key in observed),
        ]
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy"]

    def make_value_estimator(self, value_type: Any = None, **hyperparameters: Any) -> LossModule:
        """Set the discount of the TD(0) target, which is the only one there is."""
        estimator: Any = TD0Estimator  # TorchRL takes classes, and its annotation says otherwise
        made: LossModule = super().make_value_estimator(estimator, value_network=None, **hyperparameters)
        return made

    def _forward_value_estimator_keys(self, **keys: Any) -> None:
        """The estimator reads TorchRL's default keys."""

    @dispatch  # type: ignore[untyped-decorator]  # tensordict is not seen by mypy
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses, `alpha` and `entropy`, with masks `entropy_target` too.

        With two kinds of actions `alpha_discrete` and `entropy_discrete` are those of the second. Writes `td_error`,
        `(batch,)`, into `tensordict`.
        """
        target = self.target(tensordict)
        predicted = self._stored_values(tensordict)
        error = predicted - target
        weights = self._maybe_get_priority_weight(tensordict)
        loss_qvalue = self._reduce_loss(error.square().sum(0), tensordict=tensordict, weights=weights)
        tensordict.set(ERROR, error.detach().abs().amax(0))

        choices: Choices = self._policy(tensordict).choices()
        values = self._values(tensordict, self.qvalue_network_params.detach(), choices)
        entropies = choices.entropies
        soft = self._expected(values, choices.weights, self.terms.actor_q) + (self._alpha * entropies).sum(-1)
        reached, wanted = self._entropies(choices)
        factor = self.log_alpha if self.terms.alpha_form is AlphaForm.log_alpha else self.log_alpha.exp()
        return TensorDict(
            {
                "loss_actor": -soft.mean(),
                "loss_qvalue": self.terms.critic_loss_scale * loss_qvalue,
                "loss_alpha": (factor * (reached - wanted)).sum(),
                "alpha": self._alpha[0],
                "entropy": reached[0],
            }
            | ({} if choices.target_scale is None else {"entropy_target": wanted[0]})
            | ({} if len(reached) == 1 else {"alpha_discrete": self._alpha[1], "entropy_discrete": reached[1]})
        )

    @torch.no_grad()
    def target(self, tensordict: TensorDictBase) -> Tensor:
        """What every critic learns for the stored action, `(batch,)`."""
        following = tensordict.get("next")
        choices: Choices = self._policy(following).target_choices()
        values = self._values(following, self.target_qvalue_network_params, choices)
        soft = self._expected(values, choices.weights, self.terms.target_q)
        if self.critic_entropy:
            soft = soft + (self._alpha * choices.entropies).sum(-1)
        scaled = tensordict.clone(False)
        scaled.set(("next", "reward"), self.terms.reward_scale * tensordict.get(("next", "reward")))
        target: Tensor = self.value_estimator.value_estimate(scaled, next_value=soft.unsqueeze(-1))
        return target.squeeze(-1)

    def _entropies(self, choices: Choices) -> tuple[Tensor, Tensor]:
        """Mean entropies and their targets, `(kinds,)` each, over the states with a choice."""
        entropies, scale = choices.entropies.detach(), choices.target_scale
        if scale is None:
            return entropies.mean(0), self.target_entropy
        chooses = (scale > 0).to(entropies.dtype)
        states = chooses.sum(0).clamp(min=1)
        return (chooses * entropies).sum(0) / states, self.target_entropy * scale.sum(0) / states

    @property
    def _alpha(self) -> Tensor:
        return self.log_alpha.detach().exp()

    def _policy(self, tensordict: TensorDictBase) -> Enumerable:
        with (
            set_exploration_type(ExplorationType.RANDOM),
            self.actor_network_params.to_module(self.actor_network, preserve_module_state=False),
        ):
            policy: Enumerable = self.actor_network.get_dist(tensordict.select(*self.actor_network.in_keys))
        return policy

    def _values(self, tensordict: TensorDictBase, parameters: TensorDictBase, choices: Choices) -> Tensor:
        """Q of every critic for every choice, `(critics, batch, K)`."""
        observed = tensordict.select(*(key for key in self.qvalue_network.in_keys if key != "action"))
        batch, count = choices.weights.shape
        if self.stored_value is not None:
            values = self._ask(observed, parameters)
        else:
            if count > 1:
                observed = observed.unsqueeze(1).expand(batch, count).reshape(-1)
            values = self._ask(observed.set("action", choices.actions.flatten(0, 1)), parameters)
            values = values.reshape(-1, batch, count)
        if self.log_prior is not None:
            values = values + self._alpha[0] * self.log_prior(choices.actions)
        return values

    def _stored_values(self, tensordict: TensorDictBase) -> Tensor:
        values = self._ask(tensordict.select(*self.qvalue_network.in_keys), self.qvalue_network_params)
        if self.stored_value is not None:
            return self.stored_value(values, tensordict.get("action"))
        return values.squeeze(-1)

    def _ask(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> Tensor:
        [key] = self.qvalue_network.out_keys
        values: Tensor = self._every_critic(tensordict, parameters).get(key)
        return values

    def _expected(self, values: Tensor, weights: Tensor, combine: Callable[[Tensor], Tensor]) -> Tensor:
        if self.expectation_first:
            return combine((weights * values).sum(-1))
        return (weights * combine(values)).sum(-1)
