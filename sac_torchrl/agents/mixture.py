"""A mixture of Gaussians as a policy, squashed by a tanh."""

import math
from enum import Enum
from typing import ClassVar

import torch
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.heads import Choices
from sac_torchrl.agents.policies import NormalParameters, StdForm
from sac_torchrl.specs import Specs


class Gradient(Enum):
    """How the actor's gradient of a mixture is estimated; both are unbiased.

    `exact` in the component: the critics value one reparameterized action of each component, and its weight has the
    gradient of the expectation. `likelihood_ratio`: the score of one action of the mixture, with the expectation over
    the components' actions for a baseline (haarnoja/sac has a value network there); it needs no gradient of the critics
    with respect to actions.
    """

    exact = "exact"
    likelihood_ratio = "likelihood_ratio"


def squash_correction(u: Tensor) -> Tensor:
    """The logarithm of the Jacobian of tanh, `(..., D)` as `(...)`: the sum of 2 (log 2 - u - softplus(-2u))."""
    return (2.0 * (math.log(2.0) - u - softplus(-2.0 * u))).sum(-1)


class MixtureParameters(nn.Module):
    """Split `(..., K (2D + 1))` into logits of the weights `(..., K)`, means and deviations `(..., K, D)`."""

    def __init__(self, components: int, std: StdForm = StdForm.clip) -> None:
        super().__init__()
        self.components = components
        self.normal = NormalParameters(std)

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, means and standard deviations."""
        logits, normal = parameters[..., : self.components], parameters[..., self.components :]
        mean, std = self.normal(normal.reshape(*normal.shape[:-1], self.components, -1))
        return logits, mean, std


class SquashedMixture(Distribution):
    """tanh(x), x from the Gaussian N(loc_k, scale_k) with the probability softmax(logits)_k (haarnoja/sac, GMMPolicy).

    Its choices are one action of each component k, a_k = tanh(loc_k + scale_k x noise), of weight w_k, and the
    log-probability of an action is that of the whole mixture:
    log pi(a) = log sum_j w_j N(u; loc_j, scale_j) - sum over dimensions of log(1 - tanh(u)^2). Deterministically it is
    the middle of the component of the largest weight; haarnoja/sac evaluates the middle of a random one.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, *, gradient: Gradient = Gradient.exact) -> None:
        self._log_weights = logits.log_softmax(-1)
        self._loc = loc
        self._scale = scale
        self._gradient = gradient
        super().__init__(logits.shape[:-1], loc.shape[-1:], validate_args=False)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw actions `(*sample_shape, ..., D)` in [-1, 1]."""
        return self._draw(sample_shape).tanh()

    @property
    def mode(self) -> Tensor:
        """The squashed mean of the component of the largest weight, `(..., D)`; the density may be higher elsewhere."""
        return of_component(self._loc, self._log_weights.argmax(-1)).tanh()

    deterministic_sample = mode

    def log_prob_before_tanh(self, u: Tensor) -> Tensor:
        """The log-probability `(...)`, in nats, of the actions tanh(u), `u` `(..., D)`."""
        distance = (u.unsqueeze(-2) - self._loc) / self._scale
        normal = (-distance.square() / 2 - self._scale.log()).sum(-1) - math.log(2 * math.pi) / 2 * u.shape[-1]
        return (self._log_weights + normal).logsumexp(-1) - squash_correction(u)

    def choices(self) -> Choices:
        """What the actor's loss sums over: `(..., K)`, and `(..., K + 1)` for a likelihood ratio."""
        components = self.target_choices()
        if self._gradient is Gradient.exact:
            return components
        u = self._draw().detach()
        log_prob = self.log_prob_before_tanh(u)
        # A zero with the gradient of log pi. The drawn action's value counts with it, and the baseline against it.
        score = (log_prob - log_prob.detach()).unsqueeze(-1)
        return Choices(
            torch.cat([components.weights.detach() * (1.0 - score), score], -1),
            torch.cat([components.actions.detach(), u.tanh().unsqueeze(-2)], -2),
            torch.cat([components.log_probs.detach(), log_prob.detach()[..., None, None]], -2),
        )

    def target_choices(self) -> Choices:
        """What the critics' target sums over: one action of each component."""
        u = self._loc + self._scale * torch.randn_like(self._loc)
        # The components' actions are a batch of their own before those that they are scored by.
        spread = SquashedMixture(self._log_weights.unsqueeze(-2), self._loc.unsqueeze(-3), self._scale.unsqueeze(-3))
        return Choices(self._log_weights.exp(), u.tanh(), spread.log_prob_before_tanh(u).unsqueeze(-1))

    def _draw(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        component = draw_component(self._log_weights, sample_shape)
        loc, scale = of_component(self._loc, component), of_component(self._scale, component)
        return loc + scale * torch.randn_like(loc)


def draw_component(log_weights: Tensor, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
    """Draw indices `(*sample_shape, ...)` with the probabilities of which `(..., K)` are the logarithms."""
    weights = log_weights.exp().expand(*sample_shape, *log_weights.shape)
    # The smallest of exponential variables of these rates is each with its probability.
    waited = -torch.log1p(-torch.rand(weights.shape, dtype=weights.dtype, device=weights.device))
    return (weights / waited).argmax(-1)


def of_component(values: Tensor, component: Tensor) -> Tensor:
    """Of values `(..., K, D)` those of `component` `(...)`, which may have more dimensions in front: `(..., D)`."""
    values = values.expand(*component.shape, *values.shape[-2:])
    place = component[..., None, None].expand(*component.shape, 1, values.shape[-1])
    return values.gather(-2, place).squeeze(-2)


def mixture_actor(
    network: nn.Module, specs: Specs, *, components: int, std: StdForm, gradient: Gradient
) -> ProbabilisticActor:
    """A policy over actions `(..., D)` in [-1, 1]; `network` maps the observation to `(..., components (2D + 1))`.

    Standard normal numbers, drawn from torch's global generator, are added to the means' biases in its last layer:
    components that begin in one place separate slowly.
    """
    *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        _, normal = last.bias.split_with_sizes([components, len(last.bias) - components])
        mean, _ = normal.reshape(components, -1).chunk(2, -1)
        mean.add_(torch.randn_like(mean))
    return ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(network, MixtureParameters(components, std)),
            in_keys=["observation"],
            out_keys=["logits", "loc", "scale"],
        ),
        in_keys=["logits", "loc", "scale"],
        spec=specs.action,
        distribution_class=SquashedMixture,
        distribution_kwargs={"gradient": gradient},
        default_interaction_type=InteractionType.RANDOM,
    )
