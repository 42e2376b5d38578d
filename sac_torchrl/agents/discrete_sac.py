"""Soft Actor-Critic for discrete actions."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import action_value_critic
from sac_torchrl.agents.heads import Head, action_sizes, choose_head, head_of
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, SACDiscreteLoss, Terms
from sac_torchrl.agents.multi_discrete import MOST_ENUMERATED, ActionCritic
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import categorical_actor
from sac_torchrl.agents.temperature import BoundedTemperature
from sac_torchrl.agents.variant import Variant, assemble, with_hidden
from sac_torchrl.errors import ConfigError
from sac_torchrl.specs import Specs


@dataclass
class DiscreteSAC(Variant):
    """Soft Actor-Critic for discrete actions, with exact expectations (Christodoulou 2019, arXiv 1910.07207).

    As `SAC`, but the entropy target is `target_entropy_ratio` times log(number of actions), the entropy of the
    uniform policy. The paper's 0.98 keeps the policy almost uniform where few actions matter. And alpha begins at 0.1,
    as in pytorch_sac: at 1 the bonus for entropy outweighs a rare reward, and ending an episode is the worst there is.
    A `tau` of 0.02 lets values approach their scale in 1 / (tau (1 - gamma)) = 5,000 updates instead of 20,000.

    The target moves on a line from that ratio to `target_entropy_ratio_end` in the first `target_entropy_updates`
    updates (null: it stays). A learned temperature is kept within `min_alpha` and `max_alpha` after each update (null:
    no bound); a warning tells when the entropy cannot reach its target, see `temperature.KeptTemperature`.

    With several discrete actions (MultiDiscrete, MultiBinary) the policy chooses each of them independently, the
    entropies add up, and `critic` says what the critics value, see `multi_discrete.ActionCritic`; targets of a joint
    critic sum over all joint actions where there are at most `enumerate_up_to`. Without `critic_entropy` the critics'
    target has no entropy term (Asad et al. 2025, arXiv 2509.09838).

    The other fields are what the systems of SAC differ in: `critic_hidden` (null: as the actor's), `reward_scale`,
    and the terms of the loss, see `losses.Terms`.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    critics: int = 2
    gamma: float = 0.99
    tau: float = 0.02
    alpha: float = 0.1
    fixed_alpha: bool = False
    target_entropy_ratio: float = 0.2
    target_entropy_ratio_end: float | None = None
    target_entropy_updates: int = 0
    min_alpha: float | None = None
    max_alpha: float | None = None
    critic_hidden: list[int] | None = None
    actor_q: CriticReduction = CriticReduction.min
    target_q: CriticReduction = CriticReduction.min
    q_clip: float | None = None
    entropy_penalty: float = 0.0
    alpha_form: AlphaForm = AlphaForm.log_alpha
    reward_scale: float = 1.0
    critic_loss_scale: float = 1.0
    head: Head = Head.auto
    critic: ActionCritic = ActionCritic.joint
    enumerate_up_to: int = 64
    critic_entropy: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.entropy_penalty < math.inf:
            raise ConfigError(f"variant.entropy_penalty={self.entropy_penalty}: give 0 or more.")
        for name in ("target_entropy_ratio", "target_entropy_ratio_end"):
            ratio = getattr(self, name)
            if ratio is not None and not 0 <= ratio < 1:
                raise ConfigError(
                    f"variant.{name}={ratio}: no policy is more random than uniform; give a number from 0 to below 1."
                )
        if (self.target_entropy_ratio_end is None) != (self.target_entropy_updates == 0):
            raise ConfigError(
                f"variant.target_entropy_ratio_end={self.target_entropy_ratio_end} and "
                f"variant.target_entropy_updates={self.target_entropy_updates} belong together: give both, or neither."
            )
        if self.target_entropy_updates < 0:
            raise ConfigError(f"variant.target_entropy_updates={self.target_entropy_updates}: give 0 or more.")
        if not 0 <= self.enumerate_up_to <= MOST_ENUMERATED:
            raise ConfigError(f"variant.enumerate_up_to={self.enumerate_up_to}: give 0 to {MOST_ENUMERATED}.")
        low, high = self.alpha_bounds()
        if not 0 <= low <= self.alpha <= high:
            raise ConfigError(
                f"variant.alpha={self.alpha} does not lie from variant.min_alpha={self.min_alpha} to "
                f"variant.max_alpha={self.max_alpha}."
            )

    @property
    def needs_entropy(self) -> bool:
        """With a penalty on leaving it."""
        return self.entropy_penalty > 0

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and their loss; raises ConfigError where actions are continuous."""
        if head_of(specs.action) is Head.gaussian:
            raise ConfigError(
                f"variant=discrete_sac needs discrete actions, and this environment has {specs.action.shape[-1]} "
                "continuous dimensions: use recipes/continuous.py."
            )
        if choose_head(self.head, specs.action) is not Head.discrete or not self.critic_entropy:
            # Only a head that needs the loss on the seam waits for it to be imported.
            from sac_torchrl.agents.discrete_heads import build_discrete

            return build_discrete(self, specs, device=device)
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
            terms=Terms(
                actor_q=self.actor_q,
                target_q=self.target_q,
                q_clip=self.q_clip,
                entropy_penalty=self.entropy_penalty,
                alpha_form=self.alpha_form,
                reward_scale=self.reward_scale,
                critic_loss_scale=self.critic_loss_scale,
            ),
        ).to(device)
        agent = assemble(actor, loss, critics, gamma=self.gamma, tau=self.tau)
        return self.with_temperature(agent, loss.log_alpha, loss.target_entropy, most=math.log(actions))

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
