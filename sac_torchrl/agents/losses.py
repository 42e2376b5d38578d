"""TorchRL's losses with other terms, in which the systems of Soft Actor-Critic differ."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import DiscreteSACLoss, LossModule, SACLoss
from torchrl.objectives.sac import compute_rsample_log_prob

from sac_torchrl.specs import ENTROPY, WEIGHT


class CriticReduction(Enum):
    """How the values of several critics, stacked in the first dimension, become one."""

    min = "min"
    mean = "mean"
    first = "first"

    def __call__(self, values: Tensor) -> Tensor:
        """Combine `(critics, ...)` into `(...)`."""
        match self:
            case CriticReduction.min:
                return values.amin(0)
            case CriticReduction.mean:
                return values.mean(0)
            case CriticReduction.first:
                return values[0]


class AlphaForm(Enum):
    """What the temperature's loss multiplies by how far the entropy is above its target.

    `log_alpha` moves at the same pace everywhere; the gradient of `alpha` (Haarnoja et al. 2018b, equation 18) shrinks
    with the temperature. Both rest where the entropy meets the target.
    """

    log_alpha = "log_alpha"
    alpha = "alpha"


@dataclass(frozen=True)
class Terms:
    """The terms in which the systems of SAC differ; the defaults leave TorchRL's losses as they are.

    `actor_q` and `target_q` combine the critics in the actor's loss and in the critics' targets; `reward_scale`
    multiplies rewards and `critic_loss_scale` the critics' loss; with a `q_clip` of c, which is for discrete
    actions, a critic's error is the larger of that of its value and that of its value clipped to within c of its
    target network's (Zhou et al. 2022, arXiv 2209.10081), taken for every transition by itself. An `entropy_penalty`
    of b, from the same paper and for discrete actions too, adds b times the mean squared difference between the
    entropy of the policy and that of the policy that collected a row to the actor's loss.
    """

    actor_q: CriticReduction = CriticReduction.min
    target_q: CriticReduction = CriticReduction.min
    alpha_form: AlphaForm = AlphaForm.log_alpha
    reward_scale: float = 1.0
    critic_loss_scale: float = 1.0
    q_clip: float | None = None
    entropy_penalty: float = 0.0


class WeightedCritics:
    """A mixin that applies importance weights to the critics' loss alone; TorchRL applies them to every loss.

    Importance weights correct the critics' regression for how often a row is drawn; the losses of actor and
    temperature use the unweighted mean.
    """

    _weighed = False

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss's own, with the same weight for every row."""
        self._weighed = tensordict.get(WEIGHT, None) is not None
        inputs = tensordict.exclude(WEIGHT) if self._weighed else tensordict
        loss: tuple[Tensor, dict[str, Tensor]] = super().actor_loss(inputs)  # type: ignore[misc]  # the loss's
        return loss

    def _alpha_loss(self, log_prob: Tensor) -> Tensor:
        loss: Tensor = super()._alpha_loss(log_prob)  # type: ignore[misc]  # the loss's
        # The weighted mean of equal numbers is that number.
        return loss.mean().expand_as(loss) if self._weighed else loss


class _WithTerms:
    """Terms in place of TorchRL's, the same for both of its losses."""

    # What the loss beside it has; TorchRL's metaclass would hide that loss's `forward` behind a common base's.
    qvalue_network: Any
    qvalue_network_params: Any
    tensor_keys: Any
    log_alpha: Tensor
    target_entropy: Tensor
    _cached_detached_qvalue_params: Any
    _vmap_qnetworkN0: Any  # noqa: N815  # TorchRL's name.
    terms: Terms

    def __init__(self, *networks: Any, terms: Terms, **options: Any) -> None:
        # TorchRL prepares its critics while it is built.
        self.__dict__["terms"] = terms
        super().__init__(*networks, **options)

    def _make_vmap(self) -> None:
        super()._make_vmap()  # type: ignore[misc]  # the loss's
        self._every_critic = self._vmap_qnetworkN0
        self._vmap_qnetworkN0 = self._combined

    def _combined(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> TensorDictBase:
        """The values that TorchRL takes the minimum of; one value already for any other reduction."""
        if parameters is self.qvalue_network_params:
            asked: TensorDictBase = self._every_critic(tensordict, parameters)
            return asked
        of_actor = parameters is self._cached_detached_qvalue_params
        combine = self.terms.actor_q if of_actor else self.terms.target_q
        asked = self._every_critic(tensordict, parameters if of_actor else self._of_target(parameters))
        if combine is CriticReduction.min:
            return asked
        [key] = self.qvalue_network.out_keys
        return asked[:1].set(key, combine(asked.get(key)).unsqueeze(0))

    def _of_target(self, parameters: TensorDictBase) -> TensorDictBase:
        """The target critics that a target asks: all of them."""
        return parameters

    def _scaled(self, tensordict: TensorDictBase) -> TensorDictBase:
        key = ("next", self.tensor_keys.reward)
        return tensordict.clone(False).set(key, self.terms.reward_scale * tensordict.get(key))

    def _alpha_loss(self, log_prob: Tensor) -> Tensor:
        if self.terms.alpha_form is AlphaForm.alpha:
            loss: Tensor = -self.log_alpha.exp() * (log_prob + self.target_entropy)
        else:
            loss = super()._alpha_loss(log_prob)  # type: ignore[misc]  # the loss's
        return loss


class SACv2Loss(WeightedCritics, _WithTerms, SACLoss):
    """TorchRL's SACLoss with other `terms`."""

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critics' loss, and each transition's largest error as `td_error`, `(batch,)`."""
        loss, errors = super().qvalue_v2_loss(tensordict)
        return self.terms.critic_loss_scale * loss, errors

    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        target: Tensor = super()._compute_target_v2(self._scaled(tensordict))
        return target


_DISCRETE_OUT_KEYS = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy"]


class SACDiscreteLoss(WeightedCritics, _WithTerms, DiscreteSACLoss):
    """TorchRL's DiscreteSACLoss with other `terms`."""

    @property
    def out_keys(self) -> list[Any]:
        """What a call returns; a property, because `select_out_keys` is lost to subclasses of TorchRL's list."""
        return list(self.__dict__.get("_out_keys", _DISCRETE_OUT_KEYS))

    @out_keys.setter
    def out_keys(self, values: list[Any]) -> None:
        self.__dict__["_out_keys"] = list(values)

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critics' loss, and each transition's largest error as `td_error`, `(batch,)`."""
        if self.terms.q_clip is None:
            loss, errors = super().qvalue_loss(tensordict)
        else:
            loss, errors = self._clipped(tensordict, self.terms.q_clip)
        return self.terms.critic_loss_scale * loss, errors

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the actor's loss and each row's expected log-probability, `(batch,)`; raises KeyError."""
        loss, metadata = super().actor_loss(tensordict)
        if self.terms.entropy_penalty:
            collected = tensordict.get(ENTROPY, None)
            if collected is None:
                raise KeyError(
                    "entropy_penalty asks for rows with the entropy of the policy that collected them: build "
                    "environment, actor and replay buffer with Specs(..., entropy=True)."
                )
            with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
                policy = self.actor_network.get_dist(tensordict.select(*self.actor_network.in_keys))
            entropy = -(policy.probs * policy.logits).sum(-1)
            loss = loss + self.terms.entropy_penalty * ((collected - entropy) ** 2).mean()
        return loss, metadata

    def _compute_target(self, tensordict: TensorDictBase) -> Tensor:
        target: Tensor = super()._compute_target(self._scaled(tensordict))
        return target

    def _clipped(self, tensordict: TensorDictBase, radius: float) -> tuple[Tensor, dict[str, Tensor]]:
        target = self._compute_target(tensordict)
        value = self._of_action(tensordict, self.qvalue_network_params)
        anchor = self._of_action(tensordict, self.target_qvalue_network_params).detach()
        clipped = anchor + (value - anchor).clamp(-radius, radius)
        error = torch.maximum((value - target) ** 2, (clipped - target) ** 2).sum(0)
        weights = self._maybe_get_priority_weight(tensordict)
        loss = self._reduce_loss(error, tensordict=tensordict, weights=weights)
        return loss, {"td_error": (value - target).detach().abs().amax(0)}

    def _of_action(self, tensordict: TensorDictBase, parameters: TensorDictBase) -> Tensor:
        asked = self._every_critic(tensordict.select(*self.qvalue_network.in_keys), parameters)
        values = asked.get(self.tensor_keys.action_value)
        action = tensordict.get(self.tensor_keys.action).unsqueeze(-1).expand(len(values), -1, 1)
        chosen: Tensor = values.gather(-1, action).squeeze(-1)
        return chosen


def draw(loss: LossModule, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Reparameterized actions `(batch, n)` of the loss's actor, and their log-probabilities `(batch,)`."""
    with (
        set_exploration_type(ExplorationType.RANDOM),
        loss.actor_network_params.to_module(loss.actor_network, preserve_module_state=False),
    ):
        policy = loss.actor_network.get_dist(tensordict.select(*loss.actor_network.in_keys))
    action, log_prob = compute_rsample_log_prob(policy)
    assert isinstance(log_prob, Tensor)
    return action, log_prob
