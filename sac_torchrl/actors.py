"""Policies as TorchRL's ProbabilisticActor: a squashed Gaussian and a categorical head on any network."""

from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor, TanhNormal

from sac_torchrl.agent import Specs


class NormalParameters(nn.Module):
    """Split `(..., 2n)` into a mean and a standard deviation `(..., n)`, the latter from a clamped logarithm.

    The bounds [-20, 2] are those of haarnoja/sac, Spinning Up and Stable-Baselines3; TorchRL's
    `NormalParamExtractor` has no upper bound.
    """

    def __init__(self, low: float = -20.0, high: float = 2.0) -> None:
        super().__init__()
        self.low = low
        self.high = high

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation."""
        mean, log_std = parameters.chunk(2, dim=-1)
        return mean, log_std.clamp(self.low, self.high).exp()


def tanh_normal_actor(network: nn.Module, specs: Specs) -> ProbabilisticActor:
    """A policy tanh(N(mean, std)) over actions `(..., n)` in [-1, 1] (Haarnoja et al. 2018b, appendix C).

    `network` maps the observation to `(..., 2n)`: means and logarithms of standard deviations. The plain tanh
    reaches both bounds exactly; TorchRL's safe tanh stops 1e-6 short of them, and exists for inverting an
    action, which SAC never does.
    """
    return ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(network, NormalParameters()), in_keys=["observation"], out_keys=["loc", "scale"]
        ),
        in_keys=["loc", "scale"],
        spec=specs.action,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0, "safe_tanh": False},
        default_interaction_type=InteractionType.RANDOM,
    )


def categorical_actor(network: nn.Module, specs: Specs) -> ProbabilisticActor:
    """A policy over discrete actions, int64 `(...)` (Christodoulou 2019).

    `network` maps the observation to one logit an action, `(..., actions)`.
    """
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        spec=specs.action,
        distribution_class=Categorical,
        default_interaction_type=InteractionType.RANDOM,
    )


def acting(actor: ProbabilisticActor) -> TensorDictModule:
    """The same policy, sharing its parameters, that writes nothing but the action into a transition."""
    return TensorDictSequential(actor, selected_out_keys=["action"])
