"""Hybrid actions: a discrete choice, and for each of its values a Gaussian over parameters, squashed by a tanh."""

import math
from typing import ClassVar

import torch
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.heads import Choices
from sac_torchrl.agents.layout import Layout
from sac_torchrl.agents.mixture import MixtureParameters, draw_component, of_component
from sac_torchrl.agents.policies import StdForm
from sac_torchrl.specs import HybridAction, Specs


def discrete_values(numbers: Tensor, layout: Layout) -> Tensor:
    """The values `(..., M)`, int64, that discrete numbers `(..., M)` of a hybrid action stand for.

    In float64, as at the edge of the environment: both find the same value for every float32.
    """
    sizes = torch.tensor(layout.sizes, device=numbers.device)
    places = ((numbers.to(torch.float64) + 1.0) * sizes / 2.0).floor().to(torch.int64)
    return torch.minimum(places.clamp(min=0), sizes - 1)


class SquashedHybrid(Distribution):
    """pi(d|s) pi(c|s, d): `logits` `(..., K)` of the joint discrete values d, and c = tanh N(loc_d, scale_d).

    Delalleau et al. 2019, arXiv 1912.11077. `loc` and `scale` are `(..., K, D)`; an action is `(..., M + D)`, as
    `HybridAction` has it, with 0 for the parameters that do not belong to d. Its choices are every d with one
    reparameterized c, of weight pi(d|s). The log-probabilities of both kinds are those of c under d, over the
    parameters of d, and of d: the entropies are then sum_d pi(d|s) H(c|s, d), of one draw, and exactly H(d|s). The
    entropy target of c is multiplied by the mean part of the parameters that belong to d. Deterministically it is the
    likeliest d with the middle of its Gaussian.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, *, hybrid: HybridAction) -> None:
        self._log_weights = logits.log_softmax(-1)
        self._loc = loc
        self._scale = scale
        self._centers = torch.tensor(hybrid.centers, dtype=loc.dtype, device=loc.device)
        self._belongs = torch.tensor(hybrid.belongs, dtype=loc.dtype, device=loc.device)
        self._all_belong = all(all(row) for row in hybrid.belongs)
        size = len(hybrid.sizes) + hybrid.dimensions
        super().__init__(logits.shape[:-1], torch.Size([size]), validate_args=False)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw actions `(*sample_shape, ..., M + D)`."""
        value = draw_component(self._log_weights, sample_shape)
        loc, scale = of_component(self._loc, value), of_component(self._scale, value)
        return self._action(value, loc + scale * torch.randn_like(loc))

    @property
    def mode(self) -> Tensor:
        """The squashed mean of the likeliest discrete value, `(..., M + D)`."""
        value = self._log_weights.argmax(-1)
        return self._action(value, of_component(self._loc, value))

    deterministic_sample = mode

    def choices(self) -> Choices:
        """What the actor's loss and the critics' target sum over, `(..., K)`."""
        noise = torch.randn_like(self._loc)
        u = self._loc + self._scale * noise
        # log N(u) - log(1 - tanh(u)^2), with 1 - tanh(u)^2 = 4 exp(2 (-u - softplus(-2u))).
        normal = -noise.square() / 2 - self._scale.log() - math.log(2 * math.pi) / 2
        each = normal - 2.0 * (math.log(2.0) - u - softplus(-2.0 * u))
        centers = self._centers.expand(*u.shape[:-1], -1)
        weights = self._log_weights.exp()
        if self._all_belong:
            actions, log_prob, scale = torch.cat([centers, u.tanh()], -1), each.sum(-1), None
        else:
            actions = torch.cat([centers, u.tanh() * self._belongs], -1)
            log_prob = (each * self._belongs).sum(-1)
            part = (weights.detach() * self._belongs.mean(-1)).sum(-1)
            scale = torch.stack([part, torch.ones_like(part)], -1)
        log_probs = torch.stack([log_prob, self._log_weights.expand_as(log_prob)], -1)
        return Choices(weights, actions, log_probs, target_scale=scale)

    target_choices = choices

    def _action(self, value: Tensor, u: Tensor) -> Tensor:
        own = self._belongs.index_select(0, value.flatten()).reshape(u.shape)
        centers = self._centers.index_select(0, value.flatten()).reshape(*value.shape, -1)
        return torch.cat([centers, u.tanh() * own], -1)


class HybridActions(nn.Module):
    """A network of an observation and numbers, on hybrid actions `(..., M + D)`.

    The discrete values enter one-hot, side by side, and the parameters that do not belong to them as 0: a value of all
    parameters at once would have gradients with respect to those that have no effect (Bester et al. 2019, arXiv
    1905.04388).
    """

    def __init__(self, network: nn.Module, hybrid: HybridAction) -> None:
        super().__init__()
        self.network = network
        self.hybrid = hybrid

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Map observations and actions, which share their batch dimensions, to `(..., outputs)`."""
        layout, hybrid = Layout(self.hybrid.sizes), self.hybrid
        discrete, continuous = action.split_with_sizes([len(hybrid.sizes), hybrid.dimensions], -1)
        values = discrete_values(discrete, layout)
        levels, owners = layout.levels(action.device), layout.owners(action.device)
        chosen = (values.index_select(-1, owners) == levels).to(action.dtype)
        belongs = torch.tensor(hybrid.belongs, dtype=action.dtype, device=action.device)
        joint = (values * torch.tensor(layout.strides, device=action.device)).sum(-1)
        own = belongs.index_select(0, joint.flatten()).reshape(continuous.shape)
        output: Tensor = self.network(observation, torch.cat([chosen, continuous * own], -1))
        return output


def hybrid_actor(network: nn.Module, specs: Specs, *, hybrid: HybridAction, std: StdForm) -> ProbabilisticActor:
    """A policy over hybrid actions `(..., M + D)`; `network` maps the observation to `(..., K (2D + 1))`."""
    return ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(network, MixtureParameters(hybrid.joint, std)),
            in_keys=["observation"],
            out_keys=["logits", "loc", "scale"],
        ),
        in_keys=["logits", "loc", "scale"],
        spec=specs.action,
        distribution_class=SquashedHybrid,
        distribution_kwargs={"hybrid": hybrid},
        default_interaction_type=InteractionType.RANDOM,
    )
