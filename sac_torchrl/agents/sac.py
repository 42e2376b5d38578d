"""Soft Actor-Critic for continuous actions."""

from dataclasses import dataclass, field
from functools import partial

import torch

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.ensemble import Ensemble
from sac_torchrl.agents.heads import Head, PolicyForm, Prior, choose_head
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, SACv2Loss, Terms
from sac_torchrl.agents.mixture import Gradient
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import StdForm
from sac_torchrl.agents.variant import action_dimensions, with_hidden
from sac_torchrl.errors import ConfigError
from sac_torchrl.specs import Specs


@dataclass
class SAC(Ensemble):
    """Soft Actor-Critic for continuous actions, second version (Haarnoja et al. 2018b, arXiv 1812.05905).

    `critics` Q networks, the smallest value in target and actor loss (equations 5 to 9); discount `gamma`;
    targets move by `tau` after each update. The temperature starts at `alpha` and is learned so that the
    policy's entropy in the [-1, 1] action space meets `target_entropy` (equation 18; null: minus the number of
    action dimensions), or stays at `alpha` where `fixed_alpha` is true. Numbers: table 1 of the paper.

    `policy` is a Gaussian, a mixture of `components` of them trained by one of two `gradient`s, or a flow of
    `couplings` with perceptrons of `coupling_hidden` units (null: one for each action dimension). With `prior=normal`
    alpha times the log-density of a standard normal action is added to every value (haarnoja/sac). Without
    `critic_entropy` the critics' target has no entropy term (Asad et al. 2025, arXiv 2509.09838).

    The other fields are what the systems of SAC differ in: `critic_hidden` (null: as the actor's), the `std` of the
    policy, `reward_scale`, and the terms of the loss, see `losses.Terms`.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    critic_hidden: list[int] | None = None
    std: StdForm = StdForm.clip
    actor_q: CriticReduction = CriticReduction.min
    alpha_form: AlphaForm = AlphaForm.log_alpha
    reward_scale: float = 1.0
    critic_loss_scale: float = 1.0
    head: Head = Head.auto
    policy: PolicyForm = PolicyForm.gaussian
    components: int = 4
    gradient: Gradient = Gradient.exact
    couplings: int = 6
    coupling_hidden: int | None = 64
    prior: Prior = Prior.uniform
    critic_entropy: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("components", "couplings", "coupling_hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"variant.{name}={value}: give at least 1.")

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and their loss; raises ConfigError where actions are discrete."""
        action_dimensions("sac", specs)
        choose_head(self.head, specs.action)
        critic = with_hidden(self.network, self.critic_hidden)
        terms = Terms(
            actor_q=self.actor_q,
            alpha_form=self.alpha_form,
            reward_scale=self.reward_scale,
            critic_loss_scale=self.critic_loss_scale,
        )
        if self.policy is not PolicyForm.gaussian or self.prior is not Prior.uniform or not self.critic_entropy:
            # Only a head that needs the loss on the seam waits for it to be imported.
            from sac_torchrl.agents.continuous_heads import build_continuous

            return build_continuous(self, specs, device=device, terms=terms)
        return self._build(
            specs,
            device,
            actor=lambda actions: self.network.build(self.actor_sees(specs), outputs=2 * actions, device=device),
            critic=lambda actions: critic.build(self.critic_sees(specs), inputs=actions, outputs=1, device=device),
            loss=partial(SACv2Loss, loss_function="l2", terms=terms),
            std=self.std,
        )
