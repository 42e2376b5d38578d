"""Soft Actor-Critic for discrete actions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrl.modules import ValueOperator

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import action_value_critic, state_action_critic
from sac_torchrl.agents.heads import EnumeratedCategorical, Head, action_sizes, choose_head, head_of
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, SACDiscreteLoss, Terms
from sac_torchrl.agents.masks import MaskedCategorical, MaskedLogits
from sac_torchrl.agents.multi_discrete import ActionCritic, JointValues, OneHotActions, factored_actor, stored_value
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import categorical_actor
from sac_torchrl.agents.temperature import BoundedTemperature
from sac_torchrl.agents.variant import Variant, assemble, with_hidden
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import field
from sac_torchrl.specs import MOST_ENUMERATED, Specs


@dataclass
class DiscreteSAC(Variant):
    """Soft Actor-Critic for discrete actions, with exact expectations (Christodoulou 2019, arXiv 1910.07207).

    The entropy target is a fraction of log(number of actions), the entropy of the uniform policy. The paper's 0.98
    keeps the policy almost uniform where few actions matter. Alpha begins at 0.1, as in pytorch_sac: at 1 the entropy
    bonus outweighs a rare reward, and the agent avoids ending an episode. With a `tau` of 0.02 values reach their scale
    in 1 / (tau (1 - gamma)) = 5,000 updates instead of 20,000. A warning is logged when the entropy cannot reach its
    target, see `temperature.BoundedTemperature`.

    With several discrete actions (MultiDiscrete, MultiBinary) the policy chooses each of them independently, and the
    entropies add up. With masks (`env.mask`) the policy chooses among the legal actions, and the entropy target is the
    fraction of the logarithm of their number. The terms of the loss in which systems differ are explained in
    `losses.Terms`.
    """

    network: NetworkConfig = field(NetworkConfig(), "the networks of actor and critics")
    critics: int = field(2, "Q networks", least=1)
    gamma: float = field(0.99, "discount", least=0, most=1)
    tau: float = field(0.02, "part of the critics that enters the target networks at a step", above=0, most=1)
    alpha: float = field(0.1, "temperature, the first one where it is learned", above=0)
    fixed_alpha: bool = field(False, "keep the temperature at alpha")
    target_entropy_ratio: float = field(
        0.2, "entropy that the temperature keeps, as a part of the uniform policy's", least=0, below=1
    )
    target_entropy_ratio_end: float | None = field(
        None, "target_entropy_ratio after target_entropy_updates, on a line; null: it stays", least=0, below=1
    )
    target_entropy_updates: int = field(0, "updates until target_entropy_ratio_end", least=0)
    min_alpha: float | None = field(None, "lower bound of a learned temperature; null: none", least=0)
    max_alpha: float | None = field(None, "upper bound of a learned temperature; null: none", above=0)
    critic_hidden: list[int] | None = field(None, "widths of the critics' hidden layers; null: network.hidden", least=1)
    actor_q: CriticReduction = field(CriticReduction.min, "how the actor combines the critics")
    target_q: CriticReduction = field(CriticReduction.min, "how the target combines the critics")
    q_clip: float | None = field(
        None, "bound of a critic's change against its target network (Zhou et al. 2022, arXiv 2209.10081)", above=0
    )
    entropy_penalty: float = field(
        0.0, "factor of the penalty on leaving the behavior policy's entropy (Zhou et al. 2022)", least=0
    )
    alpha_form: AlphaForm = field(AlphaForm.log_alpha, "factor of the temperature's loss: log_alpha or alpha itself")
    reward_scale: float = field(1.0, "factor of rewards in the loss", above=0)
    critic_loss_scale: float = field(1.0, "factor of the critics' loss", above=0)
    head: Head = field(Head.auto, "loss: TorchRL's where it has the head, or the seam's")
    critic: ActionCritic = field(ActionCritic.joint, "what critics value of several actions: see ActionCritic")
    enumerate_up_to: int = field(
        64, "joint actions that a joint critic's target sums over at most", least=0, most=MOST_ENUMERATED
    )
    critic_entropy: bool = field(True, "entropy in the critics' target; false: Asad et al. 2025, arXiv 2509.09838")

    def _rules(self) -> Iterator[tuple[bool, str]]:
        low, high = self.alpha_bounds()
        yield (
            (self.target_entropy_ratio_end is None) == (self.target_entropy_updates == 0),
            f"variant.target_entropy_ratio_end={self.target_entropy_ratio_end} and "
            f"variant.target_entropy_updates={self.target_entropy_updates} belong together: give both, or neither.",
        )
        yield (
            0 <= low <= self.alpha <= high,
            f"variant.alpha={self.alpha} does not lie from variant.min_alpha={self.min_alpha} to "
            f"variant.max_alpha={self.max_alpha}.",
        )

    @property
    def needs_entropy(self) -> bool:
        """True with a penalty on leaving it."""
        return self.entropy_penalty > 0

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and their loss; raises ConfigError where actions are continuous."""
        if head_of(specs) in (Head.gaussian, Head.hybrid):
            has = specs.hybrid or f"{specs.action.shape[-1]} continuous dimensions"
            raise ConfigError(
                f"variant=discrete_sac needs discrete actions, and this environment has {has}: "
                "`sac-torchrl train continuous` trains in it."
            )
        several = choose_head(self.head, specs) is not Head.discrete
        if several or specs.mask is not None or not self.critic_entropy:
            return self._build_head(specs, device=device)
        [actions] = action_sizes(specs.action)
        specs = replace(specs, entropy=self.needs_entropy)
        actor = categorical_actor(self.network.build(self.actor_sees(specs), outputs=actions, device=device), specs)
        critic_network = with_hidden(self.network, self.critic_hidden)
        critics = [
            action_value_critic(critic_network.build(self.critic_sees(specs), outputs=actions, device=device))
            for _ in range(self.critics)
        ]
        loss = SACDiscreteLoss(
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
            terms=self._terms(),
        ).to(device)
        agent = assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
        return self.with_temperature(agent, loss.log_alpha, loss.target_entropy, most=math.log(actions))

    def _terms(self) -> Terms:
        return Terms(
            actor_q=self.actor_q,
            target_q=self.target_q,
            q_clip=self.q_clip,
            entropy_penalty=self.entropy_penalty,
            alpha_form=self.alpha_form,
            reward_scale=self.reward_scale,
            critic_loss_scale=self.critic_loss_scale,
        )

    def alpha_bounds(self) -> tuple[float, float]:
        """The smallest and the largest temperature."""
        return (
            0.0 if self.min_alpha is None else self.min_alpha,
            math.inf if self.max_alpha is None else self.max_alpha,
        )

    def with_temperature(self, agent: Agent, log_alpha: Tensor, target_entropy: Tensor, *, most: float) -> Agent:
        """Keep a learned temperature within its bounds and move its target; `most` is the largest entropy, in nats."""
        if self.fixed_alpha:
            return agent
        end = self.target_entropy_ratio if self.target_entropy_ratio_end is None else self.target_entropy_ratio_end
        temperature = BoundedTemperature(
            log_alpha,
            target_entropy,
            bounds=self.alpha_bounds(),
            targets=(self.target_entropy_ratio * most, end * most),
            over=self.target_entropy_updates,
        )
        return replace(agent, temperature=temperature)

    def _build_head(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build the agent of a discrete or multi-discrete head, or of one with masks.

        Raises ConfigError for terms that this loss does not have, and for more joint actions than can be enumerated.
        """
        from sac_torchrl.agents.head_loss import HeadLoss  # only a head that needs it waits for it to be imported

        sizes = action_sizes(specs.action)
        several = head_of(specs) is Head.multi_discrete
        masked = specs.mask is not None
        self._check_head(sizes, several=several, masked=masked)
        policy = self.network.build(self.actor_sees(specs), outputs=sum(sizes), device=device)
        policy = MaskedLogits(policy, sizes) if masked else policy
        if several:
            actor = factored_actor(
                policy,
                specs,
                sizes=sizes,
                critic=self.critic,
                enumerate_up_to=self.enumerate_up_to,
                masked=masked,
            )
        else:
            distribution = MaskedCategorical if masked else EnumeratedCategorical
            actor = categorical_actor(policy, specs, distribution_class=distribution)
        critics = [self._head_critic(specs, sizes, several=several, device=device) for _ in range(self.critics)]
        most = sum(math.log(size) for size in sizes)
        loss = HeadLoss(
            actor,
            critics[0],
            critics=self.critics,
            alpha=[self.alpha],
            fixed_alpha=self.fixed_alpha,
            target_entropy=[self.target_entropy_ratio * most],
            terms=self._terms(),
            critic_entropy=self.critic_entropy,
            stored_value=stored_value(self.critic, sizes) if several else _of_index,
            expectation_first=several and self.critic is ActionCritic.decomposed,
        ).to(device)
        agent = assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
        return self.with_temperature(agent, loss.log_alpha, loss.target_entropy, most=most)

    def _head_critic(
        self, specs: Specs, sizes: tuple[int, ...], *, several: bool, device: torch.device
    ) -> ValueOperator:
        """Build one critic: of an observation and a joint action, or of an observation for every action."""
        network, seen = with_hidden(self.network, self.critic_hidden), self.critic_sees(specs)
        if several and self.critic is ActionCritic.joint:
            joint = network.build(seen, inputs=sum(sizes), outputs=1, device=device)
            return state_action_critic(OneHotActions(joint, sizes))
        if several and self.critic is ActionCritic.enumerated:
            values = network.build(seen, outputs=sum(sizes) + math.prod(sizes), device=device)
            return action_value_critic(JointValues(values, sizes))
        return action_value_critic(network.build(seen, outputs=sum(sizes), device=device))

    def _check_head(self, sizes: tuple[int, ...], *, several: bool, masked: bool) -> None:
        why = "variant.critic_entropy=false"
        if several or masked:
            why = "several discrete actions" if several else "masks of actions (env.mask=none leaves them out)"
        wrong = [
            f"variant.{name}={value}: not with {why}; give {name}={default}."
            for name, value, default in (
                ("q_clip", self.q_clip, "null"),
                ("entropy_penalty", self.entropy_penalty, "0"),
            )
            if value
        ]
        joint = math.prod(sizes)
        if several and self.critic is ActionCritic.enumerated and joint > MOST_ENUMERATED:
            wrong.append(
                f"variant.critic=enumerated: this environment has {joint:,} joint actions, and at most "
                f"{MOST_ENUMERATED:,} are enumerated; give variant.critic=joint."
            )
        if wrong:
            raise ConfigError(" ".join(wrong))


def _of_index(values: Tensor, action: Tensor) -> Tensor:
    return values.gather(-1, action.unsqueeze(-1).expand(len(values), -1, 1)).squeeze(-1)
