"""The members of the SAC family: each a plan that builds an agent from the environment's specs."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch.nn import Parameter
from torchrl.data import Categorical
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import DiscreteSACLoss, LossModule, SACLoss, SoftUpdate, ValueEstimators

from sac_torchrl.actors import categorical_actor, tanh_normal_actor
from sac_torchrl.agent import Agent, Specs
from sac_torchrl.critics import action_value_critic, state_action_critic
from sac_torchrl.errors import ConfigError
from sac_torchrl.networks import Network


@dataclass
class Variant(ABC):
    """What `variant=NAME` chooses."""

    @abstractmethod
    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build the agent on `device`; draws the initial weights from torch's global generator."""


@dataclass
class SAC(Variant):
    """Soft Actor-Critic for continuous actions, second version (Haarnoja et al. 2018b, arXiv 1812.05905).

    `critics` Q networks, the smallest value in target and actor loss (equations 5 to 9); discount `gamma`;
    targets move by `tau` after each update. The temperature starts at `alpha` and is learned so that the
    policy's entropy in the [-1, 1] action space meets `target_entropy` (equation 18; null: minus the number of
    action dimensions), or stays at `alpha` where `fixed_alpha` is true. Numbers: table 1 of the paper.
    """

    network: Network = field(default_factory=Network)
    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    fixed_alpha: bool = False
    target_entropy: float | None = None

    def __post_init__(self) -> None:
        _check(self.critics, self.gamma, self.tau, self.alpha)

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and TorchRL's SACLoss; raises ConfigError where actions are discrete."""
        if isinstance(specs.action, Categorical):
            raise ConfigError(
                f"variant=sac needs continuous actions, and this environment has {specs.action.space.n} discrete "
                "ones: use recipes/discrete.py."
            )
        actions = specs.action.shape[-1]
        actor = tanh_normal_actor(self.network.build(specs.observation, outputs=2 * actions, device=device), specs)
        critics = [
            state_action_critic(self.network.build(specs.observation, inputs=actions, outputs=1, device=device))
            for _ in range(self.critics)
        ]
        loss = SACLoss(
            actor,
            critics[0],
            num_qvalue_nets=self.critics,
            loss_function="l2",
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy=-float(actions) if self.target_entropy is None else self.target_entropy,
            deactivate_vmap=True,
        ).to(device)
        return _agent(actor, loss, critics, gamma=self.gamma, tau=self.tau)


@dataclass
class DiscreteSAC(Variant):
    """Soft Actor-Critic for discrete actions, with exact expectations (Christodoulou 2019, arXiv 1910.07207).

    As `SAC`, but the entropy target is `target_entropy_ratio` times log(number of actions), the entropy of the
    uniform policy. The paper's 0.98 keeps the policy almost uniform where few actions matter.
    """

    network: Network = field(default_factory=Network)
    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 1.0
    fixed_alpha: bool = False
    target_entropy_ratio: float = 0.2

    def __post_init__(self) -> None:
        _check(self.critics, self.gamma, self.tau, self.alpha)
        if not 0 <= self.target_entropy_ratio < 1:
            raise ConfigError(
                f"variant.target_entropy_ratio={self.target_entropy_ratio}: no policy is more random than uniform; "
                "give a number from 0 to below 1."
            )

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and TorchRL's DiscreteSACLoss; raises ConfigError where actions are continuous."""
        if not isinstance(specs.action, Categorical):
            raise ConfigError(
                f"variant=discrete_sac needs discrete actions, and this environment has {specs.action.shape[-1]} "
                "continuous dimensions: use recipes/continuous.py."
            )
        actions = specs.action.space.n
        actor = categorical_actor(self.network.build(specs.observation, outputs=actions, device=device), specs)
        critics = [
            action_value_critic(self.network.build(specs.observation, outputs=actions, device=device))
            for _ in range(self.critics)
        ]
        loss = DiscreteSACLoss(
            actor,
            critics[0],
            action_space="categorical",
            num_actions=actions,
            num_qvalue_nets=self.critics,
            loss_function="l2",
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy_weight=self.target_entropy_ratio,
            deactivate_vmap=True,
        ).to(device)
        return _agent(actor, loss, critics, gamma=self.gamma, tau=self.tau)


def _agent(
    actor: ProbabilisticActor, loss: LossModule, critics: list[ValueOperator], *, gamma: float, tau: float
) -> Agent:
    # TorchRL draws the weights of a critic that it copies anew, and would not train the only one of a list.
    with torch.no_grad():
        for name, stacked in loss.qvalue_network_params.flatten_keys(".").items():
            if isinstance(stacked, Parameter):
                stacked.copy_(torch.stack([critic.get_parameter(name) for critic in critics]))
    loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
    return Agent(actor, loss, targets=(SoftUpdate(loss, tau=tau),))


def _check(critics: int, gamma: float, tau: float, alpha: float) -> None:
    wrong = [
        line
        for line, right in (
            (f"variant.critics={critics}: at least 1", critics >= 1),
            (f"variant.gamma={gamma}: from 0 to 1", 0 <= gamma <= 1),
            (f"variant.tau={tau}: above 0, at most 1", 0 < tau <= 1),
            (f"variant.alpha={alpha}: above 0", 0 < alpha < math.inf),
        )
        if not right
    ]
    if wrong:
        raise ConfigError("; ".join(wrong) + ".")
