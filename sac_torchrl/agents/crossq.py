"""CrossQ: no target networks, because the critics normalize present and next actions together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor, nn
from torchrl.data import TensorSpec

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.losses import AlphaForm, SACv2Loss, Terms, draw
from sac_torchrl.agents.networks import Init, NetworkConfig
from sac_torchrl.agents.variant import Variant, actor_and_critics, assemble
from sac_torchrl.fields import field
from sac_torchrl.specs import Specs


@dataclass
class CrossQ(Variant):
    """SAC without target networks, with batch renormalization (Bhatt et al. 2024, arXiv 1902.05605v4).

    Wide critics see (s, a) and (s', a') as one batch, so that both are normalized alike. Actor and critics normalize
    their input and every hidden layer behind its activation, with r and d bounded as in arXiv 1702.03275. Numbers and
    initial weights: the authors' code.
    """

    training: ClassVar[Mapping[str, Any]] = {
        "learner": {"lr": 1e-3, "betas": [0.5, 0.999], "actor_every": 3, "order": "critics_first"}
    }

    network: NetworkConfig = field(NetworkConfig(init=Init.lecun_normal), "the networks of actor and critics")
    critic_hidden: list[int] = field([2048, 2048], "widths of the critics' hidden layers", least=1)
    critics: int = field(2, "Q networks", least=1)
    gamma: float = field(0.99, "discount", least=0, most=1)
    alpha: float = field(1.0, "temperature, the first one where it is learned", above=0)
    fixed_alpha: bool = field(False, "keep the temperature at alpha")
    target_entropy: float | None = field(
        None, "entropy that the temperature keeps, in nats; null: minus the number of action dimensions"
    )
    alpha_form: AlphaForm = field(AlphaForm.alpha, "factor of the temperature's loss: log_alpha or alpha itself")
    momentum: float = field(0.99, "part of the running statistics that stays at an update", least=0, below=1)
    warmup: int = field(100_000, "updates before running statistics replace the batch's", least=0)

    def build(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build actor, critics and loss; raises ConfigError where actions are discrete."""

        def network(observation: TensorSpec, hidden: list[int], *, inputs: int = 0, outputs: int) -> nn.Module:
            return self.network.build(
                observation,
                inputs=inputs,
                outputs=outputs,
                device=device,
                perceptron=lambda inputs, outputs: Renormed(inputs, list(hidden), outputs, warmup=self.warmup),
            )

        actor, critics = actor_and_critics(
            "crossq",
            specs,
            self.critics,
            actor=lambda actions: network(self.actor_sees(specs), self.network.hidden, outputs=2 * actions),
            critic=lambda actions: network(self.critic_sees(specs), self.critic_hidden, inputs=actions, outputs=1),
        )
        loss = JoinedLoss(
            actor,
            critics[0],
            num_qvalue_nets=self.critics,
            delay_qvalue=False,
            loss_function="l2",
            alpha_init=self.alpha,
            fixed_alpha=self.fixed_alpha,
            target_entropy=-float(specs.action.shape[-1]) if self.target_entropy is None else self.target_entropy,
            deactivate_vmap=True,
            terms=Terms(alpha_form=self.alpha_form),
        ).to(device)
        actor.eval()  # The policy acts with the running statistics; the loss has a module of its own.
        statistics = RunningStatistics(loss.actor_network_params, loss.qvalue_network_params, keep=self.momentum)
        return assemble(actor, loss, critics, gamma=self.gamma, tau=None, statistics=(statistics,))


class BatchRenorm(nn.Module):
    """Batch renormalization over the first of two dimensions (Ioffe 2017, arXiv 1702.03275, algorithm 1).

    In training mode the batch's own mean and deviation are corrected by r, in [1/3, 3], and d, in [-5, 5], towards the
    running ones from the `warmup`-th update on; before, this is batch normalization. The forward pass only records the
    batch's statistics: `RunningStatistics` updates the running ones once an update, however often a loss is computed.
    TorchRL's `BatchRenorm1d` never stops counting its warm-up, and widens the bounds of r and d further with each
    further warm-up length.
    """

    running_mean: Tensor
    running_var: Tensor
    batch_mean: Tensor
    batch_var: Tensor
    moves: Tensor

    def __init__(self, features: int, *, warmup: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.warmup = warmup
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        for name in ("running_mean", "batch_mean"):
            self.register_buffer(name, torch.zeros(features))
        for name in ("running_var", "batch_var"):
            self.register_buffer(name, torch.ones(features))
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(batch, features)`, or in evaluation mode `(..., features)`."""
        running = (self.running_var + self.eps).sqrt()
        if not self.training:
            return torch.addcmul(self.bias, x - self.running_mean, self.weight / running)
        # torch.var over the first dimension takes as long as the rest of this together.
        mean = x.mean(0)
        centred = x - mean
        var = centred.square().mean(0)
        std = (var + self.eps).sqrt()
        with torch.no_grad():
            self.batch_mean.copy_(mean)
            self.batch_var.copy_(var)
            warm = self.moves >= self.warmup
            r = torch.where(warm, (std / running).clamp(1 / 3, 3), 1)
            d = torch.where(warm, ((mean - self.running_mean) / running).clamp(-5, 5), 0)
        return torch.addcmul(d * self.weight + self.bias, centred, r / std * self.weight)


class RunningStatistics:
    """Updates the running statistics of all `BatchRenorm` layers in stacked parameters from the newest batch."""

    def __init__(self, *networks: TensorDictParams, keep: float) -> None:
        layers = [
            layer
            for network in networks
            for layer in network.values(include_nested=True)
            if not isinstance(layer, Tensor) and layer.get("batch_mean", None) is not None
        ]
        self._keep = keep
        self._running = [layer.get(name).data for layer in layers for name in ("running_mean", "running_var")]
        self._newest = [layer.get(name).data for layer in layers for name in ("batch_mean", "batch_var")]
        self._moves = [layer.get("moves").data for layer in layers]

    @torch.no_grad()
    def step(self) -> None:
        """Update once: running <- momentum x running + (1 - momentum) x newest."""
        torch._foreach_lerp_(self._running, self._newest, 1 - self._keep)
        torch._foreach_add_(self._moves, 1)


class Renormed(nn.Sequential):
    """A ReLU perceptron that normalizes its input and every hidden layer behind its activation."""

    def __init__(self, inputs: int, hidden: list[int], outputs: int, *, warmup: int) -> None:
        layers: list[nn.Module] = [BatchRenorm(inputs, warmup=warmup)]
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(), BatchRenorm(width, warmup=warmup)]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate the inputs and map them."""
        output: Tensor = super().forward(torch.cat(inputs, -1))  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return output


class JoinedLoss(SACv2Loss):
    """SACv2Loss in which critics see present and next actions in one batch, and no target networks (CrossQ, figure 1).

    The actor's loss evaluates the critics by their running statistics, the target evaluates the actor by its own.
    """

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.actor_network.eval()

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """SACv2Loss's, with the actor in training and the critics in evaluation mode."""
        self.actor_network.train()
        self.qvalue_network.eval()
        loss: tuple[Tensor, dict[str, Tensor]] = super().actor_loss(tensordict)
        self.actor_network.eval()
        self.qvalue_network.train()
        return loss

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over critics of the mean squared error, and the largest absolute one of each row, `(batch,)`."""
        following = tensordict.get("next")
        with torch.no_grad():
            action, log_prob = draw(self, following)
        keys = self.qvalue_network.in_keys
        present = tensordict.select(*keys, strict=False)
        joined = torch.cat([present, following.select(*keys, strict=False).set("action", action)])
        both = self._vmap_qnetworkN0(joined, self.qvalue_network_params).get("state_action_value")
        predicted, next_values = both.chunk(2, dim=1)
        soft = next_values.detach().amin(0) - self._alpha * log_prob.unsqueeze(-1)
        error = (predicted - self.value_estimator.value_estimate(tensordict, next_value=soft)).squeeze(-1)
        loss = self._reduce_loss(
            error.square().sum(0), tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict)
        )
        return loss, {"td_error": error.detach().abs().amax(0)}
