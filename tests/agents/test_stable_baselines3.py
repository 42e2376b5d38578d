"""The preset `sb3` makes the updates of Stable-Baselines3's own code, where that is installed (extra `sb3`)."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Unbounded

from sac_torchrl import SAC, Execution, Specs
from sac_torchrl.agents.policies import SquashedNormal
from sac_torchrl.config.recipes import configure

sb3 = pytest.importorskip("stable_baselines3")

UPDATES, ROWS, HIDDEN = 20, 32, [12, 10]
EPSILON = 1e-6  # SquashedDiagGaussianDistribution adds it to 1 - a^2


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda seen, *_, **__: seen)
    model = sb3.SAC("MlpPolicy", gym.make("Pendulum-v1"), policy_kwargs={"net_arch": HIDDEN}, device="cpu", seed=0)
    model.policy.double()
    model.log_ent_coef.data = model.log_ent_coef.data.double()
    model.set_logger(sb3.common.logger.Logger(None, []))
    return model


def layers(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def of_theirs(model: Any) -> list[Tensor]:
    """Weights and biases of the actor, mean and log-deviation as one layer, then of critics and targets."""
    actor = [[layer.weight, layer.bias] for layer in layers(model.actor.latent_pi)]
    mean, log_std = model.actor.mu, model.actor.log_std
    actor.append([torch.cat([mean.weight, log_std.weight]), torch.cat([mean.bias, log_std.bias])])
    critics = [
        [layer.weight, layer.bias]
        for group in (model.critic, model.critic_target)
        for network in group.q_networks
        for layer in layers(network)
    ]
    return [tensor for pair in [*actor, *critics] for tensor in pair]


def of_ours(loss: Any) -> list[Tensor]:
    def pairs(parameters: Any, *critic: int) -> list[Tensor]:
        flat = dict(parameters.flatten_keys(".").items())
        names = [name.removesuffix(".weight") for name in flat if name.endswith(".weight")]
        return [flat[f"{name}.{kind}"][critic] for name in names for kind in ("weight", "bias")]

    found = pairs(loss.actor_network_params)
    for parameters in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        found += [tensor for critic in range(2) for tensor in pairs(parameters, critic)]
    return found


@pytest.mark.usefixtures("float64")
def test_updates_are_stable_baselines3s(monkeypatch: pytest.MonkeyPatch) -> None:
    model = theirs(monkeypatch)
    config: Any = configure("continuous", preset="sb3")
    assert isinstance(config.variant, SAC)
    config.variant.network.hidden, config.learner.execution = HIDDEN, Execution.eager
    shapes = torch.Size([3]), torch.Size([1])
    specs = Specs(Unbounded(shapes[0], dtype=torch.float64), Bounded(-1, 1, shapes[1], dtype=torch.float64))
    learner = config.learner.build(config.variant.build(specs, device=torch.device("cpu")))
    for own, other in zip(of_ours(learner.agent.loss), of_theirs(model), strict=True):
        own.data.copy_(other)

    noise = torch.zeros(ROWS, 1)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: noise.clone())

    def scored(self: SquashedNormal, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        u = self.loc + self.scale * noise
        action = u.tanh()
        distribution: Any = torch.distributions.Normal(self.loc, self.scale)
        gaussian = distribution.log_prob(u)
        return action, (gaussian - (1 - action.square() + EPSILON).log()).sum(-1)

    monkeypatch.setattr(SquashedNormal, "rsample_and_log_prob", scored)
    draw = torch.Generator().manual_seed(3)
    for _ in range(UPDATES):
        noise.copy_(torch.randn(ROWS, 1, generator=draw))
        seen, following = (torch.randn(ROWS, 3, generator=draw) for _ in range(2))
        action, reward = 2 * torch.rand(ROWS, 1, generator=draw) - 1, torch.randn(ROWS, 1, generator=draw)
        ends = torch.rand(ROWS, 1, generator=draw) < 0.2
        rows = sb3.common.type_aliases.ReplayBufferSamples(seen, action, following, ends.double(), reward)
        monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, rows=rows, **__: rows)
        model.train(gradient_steps=1, batch_size=ROWS)
        after = {"observation": following, "reward": reward, "terminated": ends, "done": ends}
        learner.update(TensorDict({"observation": seen, "action": action, "next": TensorDict(after, [ROWS])}, [ROWS]))
    pairs = zip(of_ours(learner.agent.loss), of_theirs(model), strict=True)
    for own, other in [*pairs, (learner.agent.loss.log_alpha, model.log_ent_coef.squeeze())]:
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
