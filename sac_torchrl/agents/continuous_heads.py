"""Agents with continuous actions whose loss is the one on the seam."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import state_action_critic
from sac_torchrl.agents.flow import flow_actor
from sac_torchrl.agents.head_loss import HeadLoss
from sac_torchrl.agents.heads import EnumeratedNormal, PolicyForm, Prior
from sac_torchrl.agents.losses import Terms
from sac_torchrl.agents.mixture import mixture_actor
from sac_torchrl.agents.policies import tanh_normal_actor
from sac_torchrl.agents.variant import assemble, with_hidden
from sac_torchrl.specs import Specs

if TYPE_CHECKING:
    from sac_torchrl.agents.sac import SAC


def build_continuous(variant: "SAC", specs: Specs, *, device: torch.device, terms: Terms) -> Agent:
    """Build the agent of a policy, prior or target that TorchRL has no loss for."""
    dimensions = specs.action.shape[-1]
    network = with_hidden(variant.network, variant.critic_hidden)
    actor = _actor(variant, specs, device=device)
    critics = [
        state_action_critic(network.build(variant.critic_sees(specs), inputs=dimensions, outputs=1, device=device))
        for _ in range(variant.critics)
    ]
    entropy = variant.entropy_per_dimension * dimensions if variant.target_entropy is None else variant.target_entropy
    loss = HeadLoss(
        actor,
        critics[0],
        critics=variant.critics,
        alpha=[variant.alpha],
        fixed_alpha=variant.fixed_alpha,
        target_entropy=[entropy],
        terms=terms,
        critic_entropy=variant.critic_entropy,
        log_prior=_standard_normal if variant.prior is Prior.normal else None,
    ).to(device)
    return assemble(actor, loss, critics, gamma=variant.gamma, tau=variant.tau)


def _actor(variant: "SAC", specs: Specs, *, device: torch.device) -> ProbabilisticActor:
    dimensions, build = specs.action.shape[-1], variant.network.build
    match variant.policy:
        case PolicyForm.gaussian:
            network = build(variant.actor_sees(specs), outputs=2 * dimensions, device=device)
            return tanh_normal_actor(network, specs, std=variant.std, distribution_class=EnumeratedNormal)
        case PolicyForm.mixture:
            network = build(variant.actor_sees(specs), outputs=variant.components * (2 * dimensions + 1), device=device)
            return mixture_actor(
                network, specs, components=variant.components, std=variant.std, gradient=variant.gradient
            )
        case PolicyForm.flow:
            network = build(variant.actor_sees(specs), outputs=2 * dimensions, device=device)
            return flow_actor(network, specs, layers=variant.couplings, hidden=variant.coupling_hidden)


def _standard_normal(actions: Tensor) -> Tensor:
    return -(actions.square().sum(-1) + math.log(2 * math.pi) * actions.shape[-1]) / 2
