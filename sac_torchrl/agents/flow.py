"""A normalizing flow as a policy, squashed by a tanh."""

import math
from typing import ClassVar

import torch
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torchrl.modules import MLP, ProbabilisticActor

from sac_torchrl.agents.heads import Choices
from sac_torchrl.agents.mixture import squash_correction
from sac_torchrl.specs import Specs


class Couplings(nn.Module):
    """Affine couplings of a vector of D numbers under a condition (real NVP: Dinh et al. 2017, arXiv 1605.08803).

    Each of `layers` leaves one half of the vector as it is and maps the other to x exp(s) + t, where s and t are those
    of a tanh perceptron with `hidden` units, of the half that stays and of the condition; halves take turns. Its
    weights are drawn as there, Xavier with standard normal biases in the perceptrons' first layer. The
    logarithms of scales s are bounded by 5 through a tanh, so that no number overflows; haarnoja/sac has no bound and
    ends where one does. One number has no half that stays, and is mapped once, by an s and t of the condition alone.
    """

    bound = 5.0

    def __init__(self, dimensions: int, condition: int, *, layers: int, hidden: int) -> None:
        super().__init__()
        self.first = dimensions // 2
        sizes = [self.first, dimensions - self.first]
        self.of_second = [layer % 2 == 0 for layer in range(layers if self.first else 1)]
        self.networks = nn.ModuleList(
            MLP(
                in_features=sizes[not second] + condition,
                out_features=2 * sizes[second],
                num_cells=[hidden],
                activation_class=nn.Tanh,
            )
            for second in self.of_second
        )
        for network in self.networks:
            first, *_ = layers_of = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
            for layer in layers_of:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.normal_(first.bias)

    def forward(self, noise: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise `(..., D)` under a condition `(..., C)`; return it and the logarithm of the Jacobian, `(...)`."""
        halves = [noise[..., : self.first], noise[..., self.first :]]
        logarithm = torch.zeros_like(noise[..., 0])
        for second, network in zip(self.of_second, self.networks, strict=True):
            raw, shift = network(torch.cat([halves[not second], condition], -1)).chunk(2, -1)
            scale = self.bound * (raw / self.bound).tanh()
            halves[second] = halves[second] * scale.exp() + shift
            logarithm = logarithm + scale.sum(-1)
        return torch.cat(halves, -1), logarithm


class Conditioned(nn.Module):
    """A network that makes the condition of a flow from the observation, and holds the flow's couplings with it."""

    def __init__(self, network: nn.Module, couplings: Couplings) -> None:
        super().__init__()
        self.network = network
        self.couplings = couplings

    def forward(self, observation: Tensor) -> Tensor:
        """Return the condition, `(..., C)`."""
        condition: Tensor = self.network(observation).relu()
        return condition


class SquashedFlow(Distribution):
    """tanh(f(z)), z standard normal and f the `couplings` under a `condition` `(..., C)` (haarnoja/sac: LSPPolicy).

    log pi(a) = log N(z) - log |df/dz| - sum over dimensions of log(1 - tanh(f(z))^2), from the z behind the action:
    nothing is inverted. Deterministically it is tanh(f(0)); haarnoja/sac takes the best of 100 latents by Q.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    has_rsample = True

    def __init__(self, condition: Tensor, *, couplings: Couplings, dimensions: int) -> None:
        self._condition = condition
        self._couplings = couplings
        super().__init__(condition.shape[:-1], torch.Size([dimensions]), validate_args=False)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Reparameterized actions, `(*sample_shape, ..., D)`."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(
        self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Reparameterized actions `(*sample_shape, ..., D)`, and their log-probabilities in nats."""
        condition = self._condition.expand(*sample_shape, *self._condition.shape)
        shape = (*condition.shape[:-1], *self.event_shape)
        return self.transform(torch.randn(shape, dtype=condition.dtype, device=condition.device))

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actions of standard normal numbers `(..., D)`, and their log-probabilities `(...)` in nats."""
        u, logarithm = self._couplings(noise, self._condition.expand(*noise.shape[:-1], -1))
        normal = -(noise.square().sum(-1) + math.log(2 * math.pi) * noise.shape[-1]) / 2
        return u.tanh(), normal - logarithm - squash_correction(u)

    @property
    def deterministic_sample(self) -> Tensor:
        """The action of the latent 0, `(..., D)`."""
        return self.transform(self._condition.new_zeros((*self.batch_shape, *self.event_shape)))[0]

    def choices(self) -> Choices:
        """One reparameterized action, of weight 1."""
        action, log_prob = self.rsample_and_log_prob()
        return Choices(torch.ones_like(log_prob).unsqueeze(-1), action.unsqueeze(-2), log_prob[..., None, None])

    target_choices = choices


def flow_actor(
    network: nn.Module, specs: Specs, *, condition: int, layers: int, hidden: int | None
) -> ProbabilisticActor:
    """A policy over actions `(..., D)` in [-1, 1].

    `network` maps the observation to `(..., condition)`, which with a ReLU behind it is what `layers` couplings take;
    their perceptrons have `hidden` units (None: D, as in haarnoja/sac).
    """
    dimensions = specs.action.shape[-1]
    couplings = Couplings(dimensions, condition, layers=layers, hidden=hidden or dimensions)
    couplings.to(next(network.parameters()).device)
    return ProbabilisticActor(
        TensorDictModule(Conditioned(network, couplings), in_keys=["observation"], out_keys=["condition"]),
        in_keys=["condition"],
        spec=specs.action,
        distribution_class=SquashedFlow,
        # The modules that `Conditioned` holds, not copies: parameters that are swapped there are swapped here.
        distribution_kwargs={"couplings": couplings, "dimensions": dimensions},
        default_interaction_type=InteractionType.RANDOM,
    )
