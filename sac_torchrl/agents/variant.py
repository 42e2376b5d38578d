"""What every member of the SAC family shares: its config, and how its agent is built."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import Parameter
from torchrl.data import Categorical, Composite, TensorSpec
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import HardUpdate, LossModule, SoftUpdate, ValueEstimators

from sac_torchrl.agents.agent import Agent, Statistics
from sac_torchrl.agents.critics import state_action_critic
from sac_torchrl.agents.heads import action_sizes
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import StdForm, tanh_normal_actor
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import check, field
from sac_torchrl.specs import MASK, Specs


@dataclass
class Variant(ABC):
    """The config that `variant=NAME` chooses.

    Critics may observe in training what the policy will not have (Pinto et al. 2018, arXiv 1710.06542). A variant also
    brings settings of the run, `training`, unless recipe, run, preset or command line set them.
    """

    training: ClassVar[Mapping[str, Any]] = {}

    _: KW_ONLY
    actor_keys: list[str] | None = field(None, "leaves of the observation that the policy sees; null: all")
    critic_keys: list[str] | None = field(None, "leaves of the observation that the critics see; null: all")

    def __post_init__(self) -> None:
        check(self, "variant", *self._rules())

    def _rules(self) -> Iterator[tuple[bool, str]]:
        """Conditions besides the ranges of the fields, each with the error sentence for when it does not hold."""
        yield from ()

    def actor_sees(self, specs: Specs) -> TensorSpec:
        """What the policy's network reads; raises ConfigError for a key that is not observed."""
        return _chosen(specs, self.actor_keys, "actor_keys")

    def critic_sees(self, specs: Specs) -> TensorSpec:
        """What the critics' networks read; raises ConfigError for a key that is not observed."""
        return _chosen(specs, self.critic_keys, "critic_keys")

    @property
    @abstractmethod
    def gamma(self) -> float:
        """The discount, a field of every variant."""

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss asks for the entropy of the policy that collected a row."""
        return False

    @abstractmethod
    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build the agent on `device`; draws the initial weights from torch's global generator."""


def _chosen(specs: Specs, keys: list[str] | None, field: str) -> TensorSpec:
    observation = specs.observation
    leaves = dict(observation.items()) if isinstance(observation, Composite) else {}
    if specs.mask is not None:  # it is for the policy's logits
        del leaves[MASK]
        observation = Composite(leaves)
    if keys is None:
        return observation
    known = list(leaves)
    unknown = [key for key in keys if key not in known]
    if unknown or not keys or len(set(keys)) < len(keys):
        what = f"one of {', '.join(known)}" if known else "of a Dict or Tuple; this observation has no leaves"
        raise ConfigError(f"variant.{field}={list(keys)}: give names of leaves, each once, {what}.")
    return Composite({key: leaves[key] for key in keys})


def actor_and_critics(
    name: str,
    specs: Specs,
    critics: int,
    *,
    actor: Callable[[int], nn.Module],
    critic: Callable[[int], nn.Module],
    std: StdForm = StdForm.clip,
) -> tuple[ProbabilisticActor, list[ValueOperator]]:
    """Build the policy and so many critics of variant `name`, which is for continuous actions.

    `actor` and `critic` build their networks from the number of action dimensions. Raises ConfigError where actions
    are discrete.
    """
    dimensions = action_dimensions(name, specs)
    return (
        tanh_normal_actor(actor(dimensions), specs, std=std),
        [state_action_critic(critic(dimensions)) for _ in range(critics)],
    )


def action_dimensions(name: str, specs: Specs) -> int:
    """The number of continuous actions that variant `name` needs; raises ConfigError where they are discrete."""
    if isinstance(specs.action, Categorical):
        sizes = " x ".join(str(size) for size in action_sizes(specs.action))
        raise ConfigError(
            f"variant={name} needs continuous actions, and this environment has {sizes} discrete ones: "
            "`sac-torchrl train discrete` trains in it."
        )
    if specs.hybrid is not None:
        raise ConfigError(
            f"variant={name} needs continuous actions, and this environment has {specs.hybrid}: give variant=sac, "
            "which has a policy for them."
        )
    dimensions: int = specs.action.shape[-1]
    return dimensions


def assemble(
    actor: ProbabilisticActor,
    loss: LossModule,
    critics: list[ValueOperator],
    *,
    gamma: float,
    tau: float | None,
    statistics: tuple[Statistics, ...] = (),
) -> Agent:
    """Give the loss the critics' own weights, the discount of its TD(0) targets, and target networks that follow.

    Without `tau` there are none. With a `tau` of 1 they are copies: after each update, or each `learner.target_every`
    of them.
    """
    # TorchRL re-initializes the weights of a critic that it copies, and would not train the only one of a list.
    with torch.no_grad():
        for name, stacked in loss.qvalue_network_params.flatten_keys(".").items():
            if isinstance(stacked, Parameter):
                stacked.copy_(torch.stack([critic.get_parameter(name) for critic in critics]))
    loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
    if tau is None:
        return Agent(actor, loss, (), statistics=statistics)
    # An interval of 0 copies at every step.
    target = HardUpdate(loss, value_network_update_interval=0) if tau == 1 else SoftUpdate(loss, tau=tau)
    return Agent(actor, loss, (target,), statistics=statistics)


def with_hidden(network: NetworkConfig, hidden: list[int] | None) -> NetworkConfig:
    """The same network with other hidden layers, where any are given."""
    return network if hidden is None else replace(network, hidden=list(hidden))
