"""Policies as TorchRL's ProbabilisticActor: a squashed Gaussian and a categorical head on any network."""

import math
from enum import Enum
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, TanhTransform
from torch.nn.functional import softplus
from torchrl.modules import ProbabilisticActor, TanhNormal

from sac_torchrl.specs import ENTROPY, Specs


class StdForm(Enum):
    """How a network's output becomes a standard deviation.

    `clip`: the exponential of the output clipped to [-20, 2] (haarnoja/sac, Spinning Up, Stable-Baselines3, jaxrl);
    `tanh`: the exponential of the output's tanh stretched to [-5, 2] (pytorch_sac, CleanRL), with a gradient
    everywhere; `softplus`: softplus + 1e-5 (softlearning); `biased_softplus`: a softplus that is 1 at 0, not below
    0.1 (TorchRL's recipe).
    """

    clip = "clip"
    tanh = "tanh"
    softplus = "softplus"
    biased_softplus = "biased_softplus"

    def __call__(self, output: Tensor) -> Tensor:
        """Map an output of any shape."""
        match self:
            case StdForm.clip:
                return output.clamp(-20.0, 2.0).exp()
            case StdForm.tanh:
                return (-5.0 + 3.5 * (output.tanh() + 1.0)).exp()
            case StdForm.softplus:
                return softplus(output) + 1e-5
            case StdForm.biased_softplus:
                # The smallest value of TorchRL's mapping, 0.01, lies below the bound of its recipe.
                return (softplus(output + math.log(math.expm1(0.99))) + 0.01).clamp_min(0.1)


class NormalParameters(nn.Module):
    """Split `(..., 2n)` into a mean and a standard deviation `(..., n)`."""

    def __init__(self, std: StdForm = StdForm.clip) -> None:
        super().__init__()
        self.std = std

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation."""
        mean, output = parameters.chunk(2, dim=-1)
        return mean, self.std(output)


class BoundedLogStd(nn.Module):
    """Maps the second half of `(..., 2n)`, the logarithms of standard deviations, between two bounds by a tanh."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.middle, self.reach = (high + low) / 2, (high - low) / 2

    def forward(self, parameters: Tensor) -> Tensor:
        """Leave the means as they are."""
        mean, log_std = parameters.chunk(2, -1)
        return torch.cat([mean, self.reach * log_std.tanh() + self.middle], -1)


class WithEntropy(nn.Module):
    """Adds the entropy `(...)` of the categorical distribution, in nats, to its logits `(..., actions)`."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and entropy."""
        entropy: Tensor = Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]  # torch leaves it so
        return logits, entropy


class SquashedNormal(TanhNormal):
    """TorchRL's TanhNormal of vectors in [-1, 1], which draws and scores an action in a third of the operations.

    `loc` and `scale` are `(..., n)`. Takes the other arguments of TanhNormal too; raises ValueError for bounds other
    than [-1, 1]. Without them it is built without a question to the device; TanhNormal asks it for its bounds.
    """

    def __init__(self, loc: Tensor, scale: Tensor, **options: Any) -> None:
        if options:
            bounds = options.get("low", -1.0), options.get("high", 1.0)
            if any(bool((torch.as_tensor(bound) != own).any()) for bound, own in zip(bounds, (-1.0, 1.0), strict=True)):
                raise ValueError(
                    f"SquashedNormal is for actions in [-1, 1], not {list(bounds)}: use TorchRL's TanhNormal."
                )
            super().__init__(loc, scale, **options)
            return
        self.loc, self.scale, self.device = loc, scale, loc.device
        normal = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        super(TanhNormal, self).__init__(normal, TanhTransform(), validate_args=False)  # type: ignore[no-untyped-call]  # torch leaves it so

    def log_prob(self, value: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """The density's logarithm `(...)`; at a bound it is that of the nearest action inside, where it is finite."""
        inside = 1.0 - torch.finfo(value.dtype).eps
        base: Any = super()
        logarithm: Tensor = base.log_prob(value.clamp(-inside, inside), *arguments, **options)
        return logarithm

    def rsample_and_log_prob(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Actions tanh(u) `(*sample_shape, ..., n)`, u = loc + scale x noise, and their densities' logarithms.

        These, `(*sample_shape, ...)`, are the sum over dimensions of log N(u) - 2 (log 2 - u - softplus(-2u)), from the
        noise itself, which TorchRL computes again from u.
        """
        noise = torch.randn(torch.Size((*sample_shape, *self.loc.shape)), dtype=self.loc.dtype, device=self.loc.device)
        u = torch.addcmul(self.loc, self.scale, noise)
        minus = torch.add(self.scale.log(), noise.square(), alpha=0.5).sub(u + softplus(-2.0 * u), alpha=2.0)
        constant = -(math.log(2.0 * math.pi) / 2.0 + 2.0 * math.log(2.0)) * u.shape[-1]
        return u.tanh(), constant - minus.sum(-1)


def tanh_normal_actor(
    network: nn.Module,
    specs: Specs,
    *,
    std: StdForm = StdForm.clip,
    distribution_class: type[SquashedNormal] = SquashedNormal,
) -> ProbabilisticActor:
    """A policy tanh(N(mean, std)) over actions `(..., n)` in [-1, 1] (Haarnoja et al. 2018b, appendix C).

    `network` maps the observation to `(..., 2n)`: means, and what `std` makes standard deviations of. The plain tanh
    reaches both bounds exactly; TorchRL's safe tanh stops 1e-6 short of them, and exists for inverting an
    action, which SAC never does.
    """
    return ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(network, NormalParameters(std)), in_keys=["observation"], out_keys=["loc", "scale"]
        ),
        in_keys=["loc", "scale"],
        spec=specs.action,
        distribution_class=distribution_class,
        default_interaction_type=InteractionType.RANDOM,
    )


def categorical_actor(
    network: nn.Module, specs: Specs, *, distribution_class: type[Categorical] = Categorical
) -> ProbabilisticActor:
    """A policy over discrete actions, int64 `(...)` (Christodoulou 2019).

    `network` maps the observation to one logit per action, `(..., actions)`. With `specs.entropy` the policy also
    returns its entropy `(...)` with each action.
    """
    module = TensorDictModule(network, in_keys=["observation"], out_keys=["logits"])
    if specs.entropy:
        network = nn.Sequential(network, WithEntropy())
        module = TensorDictModule(network, in_keys=["observation"], out_keys=["logits", ENTROPY])
    return ProbabilisticActor(
        module,
        in_keys=["logits"],
        spec=specs.action,
        distribution_class=distribution_class,
        default_interaction_type=InteractionType.RANDOM,
    )


def acting(actor: ProbabilisticActor) -> TensorDictModule:
    """The same policy, sharing its parameters, that writes nothing but what is stored into a transition: its action."""
    return TensorDictSequential(
        Aligned(),
        actor,
        selected_out_keys=[key for key in ("action", ENTROPY) if key in actor.out_keys],
    )


class Aligned(TensorDictModuleBase):  # type: ignore[misc]  # tensordict is not seen by mypy
    """Replaces observations by `aligned` copies.

    A TensorDictModule would take what a function returns, leaves by name, for its own outputs by key.
    """

    in_keys: ClassVar[list[str]] = ["observation"]
    out_keys: ClassVar[list[str]] = ["observation"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write them into `tensordict`."""
        return tensordict.set("observation", aligned(tensordict.get("observation")))


def aligned(observation: Tensor) -> Tensor:
    """A copy in memory that torch allocated.

    NumPy aligns memory to 16 bytes only, and the last bits of a matrix product depend on the alignment of its factors:
    without the copy two otherwise equal runs may choose different actions.
    """
    return observation.clone()
