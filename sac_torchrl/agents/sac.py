"""Soft Actor-Critic for continuous actions."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchrl.modules import ProbabilisticActor, ValueOperator

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import state_action_critic
from sac_torchrl.agents.ensemble import Ensemble
from sac_torchrl.agents.flow import flow_actor
from sac_torchrl.agents.heads import EnumeratedNormal, Head, PolicyForm, Prior, choose_head
from sac_torchrl.agents.hybrid import HybridActions, hybrid_actor
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, SACv2Loss, Terms
from sac_torchrl.agents.mixture import Gradient, mixture_actor
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import StdForm, tanh_normal_actor
from sac_torchrl.agents.variant import action_dimensions, assemble, with_hidden
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import field
from sac_torchrl.specs import HybridAction, Specs


@dataclass
class SAC(Ensemble):
    """Soft Actor-Critic for continuous actions, second version (Haarnoja et al. 2018b, arXiv 1812.05905).

    The smallest of the critics' values enters target and actor loss (equations 5 to 9). The temperature is learned so
    that the policy's entropy in the [-1, 1] action space meets `target_entropy` (equation 18; null: minus the number
    of action dimensions). Numbers: table 1 of the paper. The terms of the loss in which systems differ are explained in
    `losses.Terms`.

    A Dict or Tuple of discrete and continuous actions has a temperature for each kind (Delalleau et al. 2019, arXiv
    1912.11077). `alpha` and `target_entropy` are those of the continuous ones, and `alpha_discrete` and
    `target_entropy_ratio`, the part of the uniform policy's entropy, are as in `discrete_sac`.
    """

    network: NetworkConfig = field(NetworkConfig(), "the networks of actor and critics")
    critic_hidden: list[int] | None = field(None, "widths of the critics' hidden layers; null: network.hidden", least=1)
    std: StdForm = field(StdForm.clip, "how the policy bounds its standard deviation")
    actor_q: CriticReduction = field(CriticReduction.min, "how the actor combines the critics")
    alpha_form: AlphaForm = field(AlphaForm.log_alpha, "factor of the temperature's loss: log_alpha or alpha itself")
    reward_scale: float = field(1.0, "factor of rewards in the loss", above=0)
    critic_loss_scale: float = field(1.0, "factor of the critics' loss", above=0)
    head: Head = field(Head.auto, "loss: TorchRL's where it has the head, or the seam's")
    policy: PolicyForm = field(PolicyForm.gaussian, "distribution of the policy")
    components: int = field(4, "components of a mixture policy", least=1)
    gradient: Gradient = field(Gradient.exact, "gradient of a mixture policy")
    couplings: int = field(6, "couplings of a flow policy", least=1)
    coupling_hidden: int | None = field(64, "units of a coupling; null: one for each action dimension", least=1)
    coupling_condition: int | None = field(
        16, "ReLU features of the observation that a coupling takes; null: two for each action dimension", least=1
    )
    prior: Prior = field(
        Prior.uniform, "normal: add alpha times the log-density of a standard normal action to values (haarnoja/sac)"
    )
    critic_entropy: bool = field(True, "entropy in the critics' target; false: Asad et al. 2025, arXiv 2509.09838")
    alpha_discrete: float = field(0.1, "alpha of the discrete part of hybrid actions", above=0)
    target_entropy_ratio: float = field(
        0.2,
        "entropy that the temperature keeps in the discrete part, as a part of the uniform policy's",
        least=0,
        below=1,
    )

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and their loss; raises ConfigError where actions are discrete."""
        if specs.hybrid is None:
            action_dimensions("sac", specs)
        choose_head(self.head, specs)
        critic = with_hidden(self.network, self.critic_hidden)
        terms = Terms(
            actor_q=self.actor_q,
            alpha_form=self.alpha_form,
            reward_scale=self.reward_scale,
            critic_loss_scale=self.critic_loss_scale,
        )
        hybrid = specs.hybrid is not None
        if hybrid or not self.critic_entropy or (self.policy, self.prior) != (PolicyForm.gaussian, Prior.uniform):
            return self._build_head(specs, terms, device=device)
        return self._build(
            specs,
            device,
            actor=lambda actions: self.network.build(self.actor_sees(specs), outputs=2 * actions, device=device),
            critic=lambda actions: critic.build(self.critic_sees(specs), inputs=actions, outputs=1, device=device),
            loss=partial(SACv2Loss, loss_function="l2", terms=terms),
            std=self.std,
        )

    def _build_head(self, specs: Specs, terms: Terms, *, device: torch.device) -> Agent:
        """Build the agent of a policy, prior, target or kinds of actions that TorchRL has no loss for."""
        from sac_torchrl.agents.head_loss import HeadLoss  # only a head that needs it waits for it to be imported

        alpha, target = [self.alpha], [self._entropy(specs)]
        if specs.hybrid is not None:
            alpha.append(self.alpha_discrete)
            target.append(self.target_entropy_ratio * math.log(specs.hybrid.joint))
        actor = self._actor(specs, device=device)
        critics = [self._critic(specs, device=device) for _ in range(self.critics)]
        loss = HeadLoss(
            actor,
            critics[0],
            critics=self.critics,
            alpha=alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy=target,
            terms=terms,
            critic_entropy=self.critic_entropy,
            log_prior=_standard_normal if self.prior is Prior.normal else None,
        ).to(device)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)

    def _entropy(self, specs: Specs) -> float:
        dimensions = specs.action.shape[-1] if specs.hybrid is None else specs.hybrid.dimensions
        return self.entropy_per_dimension * dimensions if self.target_entropy is None else self.target_entropy

    def _critic(self, specs: Specs, *, device: torch.device) -> ValueOperator:
        network, hybrid = with_hidden(self.network, self.critic_hidden), specs.hybrid
        inputs = specs.action.shape[-1] if hybrid is None else sum(hybrid.sizes) + hybrid.dimensions
        critic = network.build(self.critic_sees(specs), inputs=inputs, outputs=1, device=device)
        return state_action_critic(critic if hybrid is None else HybridActions(critic, hybrid))

    def _actor(self, specs: Specs, *, device: torch.device) -> ProbabilisticActor:
        dimensions, build = specs.action.shape[-1], self.network.build
        if (hybrid := specs.hybrid) is not None:
            self._check_hybrid(hybrid)
            outputs = hybrid.joint * (2 * hybrid.dimensions + 1)
            network = build(self.actor_sees(specs), outputs=outputs, device=device)
            return hybrid_actor(network, specs, hybrid=hybrid, std=self.std)
        match self.policy:
            case PolicyForm.gaussian:
                network = build(self.actor_sees(specs), outputs=2 * dimensions, device=device)
                return tanh_normal_actor(network, specs, std=self.std, distribution_class=EnumeratedNormal)
            case PolicyForm.mixture:
                network = build(self.actor_sees(specs), outputs=self.components * (2 * dimensions + 1), device=device)
                return mixture_actor(network, specs, components=self.components, std=self.std, gradient=self.gradient)
            case PolicyForm.flow:
                condition = self.coupling_condition or 2 * dimensions
                network = build(self.actor_sees(specs), outputs=condition, device=device)
                return flow_actor(
                    network, specs, condition=condition, layers=self.couplings, hidden=self.coupling_hidden
                )

    def _check_hybrid(self, hybrid: HybridAction) -> None:
        wrong = [
            f"variant.{name}={value.value}: not with {hybrid}; give {name}={default.value}."
            for name, value, default in (
                ("policy", self.policy, PolicyForm.gaussian),
                ("prior", self.prior, Prior.uniform),
            )
            if value is not default
        ]
        if wrong:
            raise ConfigError(" ".join(wrong))


def _standard_normal(actions: Tensor) -> Tensor:
    return -(actions.square().sum(-1) + math.log(2 * math.pi) * actions.shape[-1]) / 2
