"""Masks in policy and loss: held to sums over legal actions that are written out, in float64."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, Unbounded
from torchrl.objectives import LossModule

from sac_torchrl import (
    DiscreteSAC,
    LearnerConfig,
    NetworkConfig,
    Specs,
)
from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.masks import MaskedCategorical, MaskedLogits
from sac_torchrl.agents.multi_discrete import ActionCritic, Factored
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.agents.temperature import BoundedTemperature
from sac_torchrl.errors import ConfigError

CPU = torch.device("cpu")
GAMMA, ALPHA, RATIO, ROWS, SIZES = 0.9, 0.3, 0.4, 12, (3, 4)
ONE, SEVERAL = (5,), SIZES


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def specs(sizes: Sequence[int]) -> Specs:
    observation = Composite(action_mask=Binary(sum(sizes), dtype=torch.bool), seen=Unbounded(torch.Size([3])))
    action = Categorical(sizes[0]) if len(sizes) == 1 else MultiCategorical(list(sizes))
    return Specs(observation, action)


def built(sizes: Sequence[int], *, seed: int = 3, **fields: Any) -> Agent:
    torch.manual_seed(seed)
    variant = DiscreteSAC(
        network=NetworkConfig([16, 12]), gamma=GAMMA, alpha=ALPHA, target_entropy_ratio=RATIO, **fields
    )
    agent = variant.build(specs(sizes), device=CPU)
    torch.manual_seed(8)
    with torch.no_grad():
        for leaf in agent.loss.target_qvalue_network_params.values(True, True):
            leaf.data.add_(torch.randn_like(leaf), alpha=0.2)
    return agent


def masks(sizes: Sequence[int]) -> Tensor:
    """Legal values `(rows, sum of sizes)`, the first two rows with one for each action, never without one."""
    parts = []
    for size in sizes:
        part = torch.rand(ROWS, size) < 0.5
        part[:2] = False
        part[torch.arange(ROWS), torch.randint(size, (ROWS,))] = True
        parts.append(part)
    return torch.cat(parts, -1)


def transitions(sizes: Sequence[int], *, seed: int = 4) -> TensorDict:
    """Rows 0 to 3 terminated, two of them where nothing is legal any more."""
    torch.manual_seed(seed)
    legal, following = masks(sizes), masks(sizes)
    chosen = torch.stack([part.double().multinomial(1)[:, 0] for part in legal.split_with_sizes(list(sizes), -1)], -1)
    following[2:4] = False
    rows = {
        "observation": {"action_mask": legal, "seen": torch.randn(ROWS, 3)},
        "action": chosen[:, 0] if len(sizes) == 1 else chosen,
        "next": {
            "observation": {"action_mask": following, "seen": torch.randn(ROWS, 3)},
            "reward": torch.randn(ROWS, 1),
            "terminated": (torch.arange(ROWS) < 4).unsqueeze(-1),
        },
    }
    return TensorDict(rows, batch_size=[ROWS])


def perceptron(parameters: TensorDict, seen: Tensor, critic: int | None = None) -> Tensor:
    leaves = [leaf if critic is None else leaf[critic] for _, leaf in parameters.items(True, True)]
    by_name = dict(zip([".".join(key) for key in parameters.keys(True, True)], leaves, strict=True))
    weights = [leaf for name, leaf in by_name.items() if name.endswith("weight")]
    biases = [leaf for name, leaf in by_name.items() if name.endswith("bias")]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        seen = torch.relu(seen @ weight.T + bias)
    output: Tensor = seen @ weights[-1].T + biases[-1]
    return output


def policy_of(loss: LossModule, observation: TensorDict, row: int) -> dict[int, Tensor]:
    """The log-probability of each legal action of a row; with none legal, of all."""
    legal = observation["action_mask"][row].nonzero().flatten().tolist() or list(range(ONE[0]))
    logits = perceptron(loss.actor_network_params, observation["seen"][row])
    total = torch.stack([logits[action].exp() for action in legal]).sum().log()
    return {action: logits[action] - total for action in legal}


def expected(loss: LossModule, batch: TensorDict) -> dict[str, Tensor]:
    """The losses of one discrete action, row by row and action by action."""
    alpha, target = loss.log_alpha.detach().exp(), RATIO
    critic_losses, actor_losses, temperatures, entropies, targets = [], [], [], [], []
    for row in range(ROWS):
        following = batch["next", "observation"]
        with torch.no_grad():
            log_probs = policy_of(loss, following, row)
            values = [perceptron(loss.target_qvalue_network_params, following["seen"][row], one) for one in range(2)]
            terms = [p.exp() * (torch.minimum(*values)[action] - alpha * p) for action, p in log_probs.items()]
            soft = torch.stack(terms).sum()
            y = batch["next", "reward"][row] + (0 if batch["next", "terminated"][row] else GAMMA * soft)
        for one in range(2):
            q = perceptron(loss.qvalue_network_params, batch["observation", "seen"][row], one)
            critic_losses.append((q[batch["action"][row]] - y) ** 2)
        log_probs = policy_of(loss, batch["observation"], row)
        with torch.no_grad():
            q1, q2 = (
                perceptron(loss.qvalue_network_params, batch["observation", "seen"][row], one) for one in range(2)
            )
        terms = [p.exp() * (alpha * p - torch.minimum(q1[action], q2[action])) for action, p in log_probs.items()]
        actor_losses.append(torch.stack(terms).sum())
        if len(log_probs) > 1:
            entropy = -torch.stack([(p.exp() * p).detach() for p in log_probs.values()]).sum()
            entropies.append(entropy)
            targets.append(torch.tensor(target * math.log(len(log_probs))))
            temperatures.append(loss.log_alpha * (entropy - target * math.log(len(log_probs))))
    assert len(entropies) < ROWS
    return {
        "loss_qvalue": torch.stack(critic_losses).sum() / ROWS,
        "loss_actor": torch.stack(actor_losses).mean(),
        "loss_alpha": torch.stack(temperatures).mean(),
        "entropy": torch.stack(entropies).mean(),
        "entropy_target": torch.stack(targets).mean(),
    }


TRAINED = {"loss_qvalue": "qvalue_network", "loss_actor": "actor_network", "loss_alpha": "log_alpha"}


@pytest.mark.usefixtures("float64")
def test_losses_are_sums_over_legal_actions() -> None:
    agent, batch = built(ONE), transitions(ONE)
    found, wanted = agent.loss(batch), expected(agent.loss, batch)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    for name, trained in TRAINED.items():
        leaves = [leaf for key, leaf in agent.loss.named_parameters() if key.startswith(trained)]
        for one, other in zip(
            *(torch.autograd.grad(losses[name], leaves, retain_graph=True) for losses in (found, wanted)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", list(ActionCritic), ids=lambda kind: kind.value)
@pytest.mark.usefixtures("float64")
def test_several_actions_are_the_unmasked_ones_without_the_illegal_values(kind: ActionCritic) -> None:
    """A policy with masks equals one that never had the illegal values: in its entropy, choices and target."""
    torch.manual_seed(0)
    logits, legal = torch.randn(ROWS, sum(SIZES)), masks(SIZES)
    masked = torch.where(legal, logits, torch.finfo(logits.dtype).min)
    options: dict[str, Any] = {"critic": kind, "enumerate_up_to": 64}
    found = Factored(masked, sizes=SIZES, masked=True, **options)
    for row in range(ROWS):
        parts = [part[row] for part in legal.split_with_sizes(list(SIZES), -1)]
        sizes = tuple(int(part.sum()) for part in parts)
        plain = Factored(logits[row][legal[row]].unsqueeze(0), sizes=sizes, **options)
        torch.testing.assert_close(found.entropy()[row], plain.entropy()[0], rtol=1e-12, atol=1e-12)
        choices = found.choices()
        assert choices.target_scale is not None
        most = sum(map(math.log, sizes)) / sum(map(math.log, SIZES))
        assert float(choices.target_scale[row]) == pytest.approx(most, abs=1e-12)
        target = found.target_choices()
        weights = target.weights[row][target.weights[row] > 0].sort().values
        torch.testing.assert_close(weights, plain.target_choices().weights[0].sort().values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", list(ActionCritic), ids=lambda kind: kind.value)
@pytest.mark.parametrize("sizes", [ONE, SEVERAL], ids=["discrete", "several"])
def test_illegal_logits_get_no_gradient_and_no_mask_gives_nan(sizes: tuple[int, ...], kind: ActionCritic) -> None:
    """In float32, with a temperature of which a multiple of the lowest number is not finite."""
    agent, batch = built(sizes, critic=kind, fixed_alpha=True), transitions(sizes)
    agent.loss.log_alpha.fill_(math.log(1000.0))
    network: Any = agent.loss.actor_network.module[0].module.network
    seen = list[Tensor]()

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen.append(output)

    network.register_forward_hook(keep)
    losses = agent.loss(batch)
    losses["loss_actor"].backward()
    legal = batch["observation", "action_mask"]
    [logits] = seen
    assert logits.grad is not None
    assert (logits.grad[~legal] == 0).all()
    assert (logits.grad[2:][legal[2:]] != 0).any()
    assert logits.grad.isfinite().all()
    assert all(value.isfinite().all() for value in losses.values())
    with torch.no_grad():
        policy = agent.actor.get_dist(batch.select("observation"))
        drawn = torch.stack([policy.sample() for _ in range(200)]).reshape(200, ROWS, -1)
    for place, part in enumerate(legal.split_with_sizes(list(sizes), -1)):
        assert part.gather(-1, drawn[..., place].T).all()
        assert part.gather(-1, policy.deterministic_sample.reshape(ROWS, -1)[:, place, None]).all()


def test_nothing_legal_is_everything_legal() -> None:
    """In each discrete action by itself, and in bits as in bools."""
    network = MaskedLogits(nn.Linear(3, 70), (30, 40))
    network.network = nn.Sequential(_Seen(), network.network)
    legal = torch.rand(6, 70) < 0.5
    legal[0] = False
    legal[1, :30] = False
    packed = (legal.reshape(6, 70).float() @ torch.zeros(70, 9)).to(torch.uint8)
    for place in range(70):
        packed[:, place // 8] |= legal[:, place].to(torch.uint8) << (7 - place % 8)
    seen = torch.randn(6, 3)
    one, other = (network(TensorDict(seen=seen, action_mask=mask, batch_size=6)) for mask in (legal, packed))
    assert torch.equal(one, other)
    lowest = torch.finfo(torch.float32).min
    assert (one[0] > lowest).all()
    assert (one[1, :30] > lowest).all()
    assert ((one > lowest)[2:] == legal[2:]).all()


class _Seen(nn.Module):
    def forward(self, observation: Any) -> Tensor:
        seen: Tensor = observation.get("seen")
        return seen


def test_the_warning_compares_with_the_target_of_the_states(caplog: pytest.LogCaptureFixture) -> None:
    """The entropy is at its target where two actions are legal, far below that of all ten."""
    temperature = BoundedTemperature(
        torch.zeros(1), torch.tensor([2.0]), bounds=(0.0, math.inf), targets=(2.0, 2.0), over=0
    )
    for alpha in (0.1, 10.0, 1000.0):
        temperature.watch({"alpha": alpha, "entropy": 0.6, "entropy_target": 0.6})
    assert caplog.text == ""
    for alpha in (0.1, 10.0, 1000.0):
        temperature.watch({"alpha": alpha, "entropy": 0.6, "entropy_target": 1.0})
    assert "for a target of 1 nats" in caplog.text


def test_the_temperature_rests_where_states_have_other_numbers_of_legal_actions() -> None:
    """2 to 10 of ten: nine tenths of log 10 is more than log n of most states, and alpha would grow for ever."""
    torch.manual_seed(0)
    states = torch.arange(9)
    observation = Composite(
        action_mask=Binary(10, dtype=torch.bool), state=Categorical(9, shape=torch.Size([]), dtype=torch.int64)
    )
    variant = DiscreteSAC(network=NetworkConfig([]), gamma=0.0, target_entropy_ratio=0.9)
    agent = variant.build(Specs(observation, Categorical(10)), device=CPU)
    learner = LearnerConfig(lr=0.05).build(agent)
    rewards, legal = torch.randn(9, 10), torch.arange(10) < (states + 2).unsqueeze(-1)
    metrics = {}
    for _ in range(800):
        state = torch.randint(9, (64,))
        action = legal[state].float().multinomial(1)[:, 0]
        seen = {"action_mask": legal[state], "state": state}
        rows = {
            "observation": seen,
            "action": action,
            "next": {
                "observation": seen,
                "reward": rewards[state, action].unsqueeze(-1),
                "terminated": torch.ones(64, 1, dtype=torch.bool),
            },
        }
        metrics = learner.update(TensorDict(rows, batch_size=64))
    with torch.no_grad():
        policy = agent.actor.get_dist(
            TensorDict(observation=TensorDict(action_mask=legal, state=states, batch_size=9), batch_size=9)
        )
    assert isinstance(policy, MaskedCategorical)
    wanted = 0.9 * torch.log(states + 2.0)
    entropy = -(policy.probs * policy.probs.clamp(min=1e-30).log()).sum(-1)
    assert abs(float(entropy.mean() - wanted.mean())) < 0.02
    assert 0.05 < float(metrics["alpha"]) < 5.0


@pytest.mark.parametrize("fields", [{"entropy_penalty": 0.1}, {"q_clip": 0.5}], ids=str)
def test_terms_that_masks_do_not_have_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"not with masks of actions \(env.mask=none leaves them out\)"):
        built(ONE, **fields)


def test_networks_do_not_read_masks() -> None:
    named: list[dict[str, Any]] = [{"actor_keys": ["action_mask"]}, {"critic_keys": ["action_mask"]}]
    for fields in named:
        with pytest.raises(ConfigError, match="each once, one of seen"):
            built(ONE, **fields)
    agent = with_normalization(built(ONE), specs(ONE), device=CPU)
    batch = transitions(ONE)
    other = batch.clone()
    other["next", "observation", "action_mask"][:] = True
    assert agent.loss(batch)["loss_actor"] == agent.loss(other)["loss_actor"]
    policy: Any = agent.actor.get_dist(batch.select("observation"))
    assert ((policy.probs > 0) == batch["observation", "action_mask"]).all()
