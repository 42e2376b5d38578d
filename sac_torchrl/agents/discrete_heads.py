"""Agents with discrete actions whose loss is the one on the seam."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import action_value_critic, state_action_critic
from sac_torchrl.agents.head_loss import HeadLoss
from sac_torchrl.agents.heads import EnumeratedCategorical, Head, action_sizes, head_of
from sac_torchrl.agents.losses import Terms
from sac_torchrl.agents.multi_discrete import (
    MOST_ENUMERATED,
    ActionCritic,
    OneHotActions,
    factored_actor,
    stored_value,
)
from sac_torchrl.agents.policies import categorical_actor
from sac_torchrl.agents.variant import assemble, with_hidden
from sac_torchrl.errors import ConfigError
from sac_torchrl.specs import Specs

if TYPE_CHECKING:
    from sac_torchrl.agents.discrete_sac import DiscreteSAC


def build_discrete(variant: "DiscreteSAC", specs: Specs, *, device: torch.device) -> Agent:
    """Build the agent of a discrete or multi-discrete head.

    Raises ConfigError for terms that this loss does not have, and for more joint actions than can be enumerated.
    """
    sizes = action_sizes(specs.action)
    several = head_of(specs.action) is Head.multi_discrete
    _check(variant, sizes, several=several)
    network, seen = with_hidden(variant.network, variant.critic_hidden), variant.critic_sees(specs)
    policy = variant.network.build(variant.actor_sees(specs), outputs=sum(sizes), device=device)
    if several:
        actor = factored_actor(
            policy, specs, sizes=sizes, critic=variant.critic, enumerate_up_to=variant.enumerate_up_to
        )
    else:
        actor = categorical_actor(policy, specs, distribution_class=EnumeratedCategorical)
    joint = several and variant.critic is ActionCritic.joint
    if joint:
        critics = [
            state_action_critic(OneHotActions(network.build(seen, inputs=sum(sizes), outputs=1, device=device), sizes))
            for _ in range(variant.critics)
        ]
    else:
        outputs = math.prod(sizes) if variant.critic is ActionCritic.enumerated else sum(sizes)
        critics = [
            action_value_critic(network.build(seen, outputs=outputs, device=device)) for _ in range(variant.critics)
        ]
    most = sum(math.log(size) for size in sizes)
    loss = HeadLoss(
        actor,
        critics[0],
        critics=variant.critics,
        alpha=[variant.alpha],
        fixed_alpha=variant.fixed_alpha,
        target_entropy=[variant.target_entropy_ratio * most],
        terms=Terms(
            actor_q=variant.actor_q,
            target_q=variant.target_q,
            alpha_form=variant.alpha_form,
            reward_scale=variant.reward_scale,
            critic_loss_scale=variant.critic_loss_scale,
        ),
        critic_entropy=variant.critic_entropy,
        stored_value=stored_value(variant.critic, sizes) if several else _of_index,
        expectation_first=several and variant.critic is ActionCritic.decomposed,
    ).to(device)
    agent = assemble(actor, loss, critics, gamma=variant.gamma, tau=variant.tau)
    return variant.with_temperature(agent, loss.log_alpha, loss.target_entropy, most=most)


def _of_index(values: Tensor, action: Tensor) -> Tensor:
    return values.gather(-1, action.unsqueeze(-1).expand(len(values), -1, 1)).squeeze(-1)


def _check(variant: "DiscreteSAC", sizes: tuple[int, ...], *, several: bool) -> None:
    why = "several discrete actions" if several else "variant.critic_entropy=false"
    wrong = [
        f"variant.{name}={value}: not with {why}; give {name}={default}."
        for name, value, default in (
            ("q_clip", variant.q_clip, "null"),
            ("entropy_penalty", variant.entropy_penalty, "0"),
        )
        if value
    ]
    joint = math.prod(sizes)
    if several and variant.critic is ActionCritic.enumerated and joint > MOST_ENUMERATED:
        wrong.append(
            f"variant.critic=enumerated: this environment has {joint:,} joint actions, and at most {MOST_ENUMERATED:,} "
            "are enumerated; give variant.critic=joint."
        )
    if wrong:
        raise ConfigError(" ".join(wrong))
