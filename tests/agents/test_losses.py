"""Every loss term against its equation, written out in plain torch with float64 numbers."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictParams
from torch import Tensor
from torch.nn.functional import one_hot, softplus
from torchrl.data import Bounded, Categorical, TensorSpec, Unbounded
from torchrl.objectives import LossModule

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, Terms
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.sac_v1 import SACv1
from sac_torchrl.specs import Specs

CPU = torch.device("cpu")
GAMMA, ALPHA, TAU = 0.9, 0.3, 0.02
ROWS, DIMENSIONS, ACTIONS, STATES = 16, 2, 4, 5
VECTOR, INDEX = Unbounded(shape=3), Categorical(STATES)
LOSSES = ["loss_qvalue", "loss_actor", "loss_alpha"]
OBSERVATIONS = pytest.mark.parametrize(
    ("observation", "embedding"),
    [(VECTOR, None), (INDEX, None), (INDEX, 6)],
    ids=["vector", "one-hot", "embedding"],
)
PLAIN = Terms()
CRITICS = pytest.mark.parametrize("critics", [1, 2, 3])
DONE = pytest.mark.parametrize("done", [False, True], ids=["terminated", "done too"])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(
    observation: TensorSpec = VECTOR,
    *,
    discrete: bool,
    critics: int = 2,
    embedding: int | None = None,
    fixed_alpha: bool = False,
    **fields: Any,
) -> Agent:
    """An agent whose target networks have moved away from its critics."""
    torch.manual_seed(3)
    network = NetworkConfig([16, 12], embedding)
    if discrete:
        agent = DiscreteSAC(network, critics, GAMMA, TAU, ALPHA, fixed_alpha, target_entropy_ratio=0.7, **fields).build(
            Specs(observation, Categorical(ACTIONS)), device=CPU
        )
    else:
        agent = SAC(critics, GAMMA, TAU, ALPHA, fixed_alpha, network=network, **fields).build(
            Specs(observation, Bounded(-1, 1, shape=DIMENSIONS)), device=CPU
        )
    with torch.no_grad():
        for leaf in agent.loss.target_qvalue_network_params.values(True, True):
            if leaf.is_floating_point():
                leaf.data.add_(torch.randn_like(leaf), alpha=0.2)
    return agent


def transitions(observation: TensorSpec, *, discrete: bool, done: bool = False) -> TensorDict:
    """Rows 0 to 4 terminated, rows 5 to 9 truncated, the others in mid-episode."""
    torch.manual_seed(4)

    def observations() -> Tensor:
        if isinstance(observation, Categorical):
            return torch.randint(STATES, (ROWS,))
        return torch.randn(ROWS, 3)

    terminated = (torch.arange(ROWS) < 5).unsqueeze(-1)
    entropy = math.log(ACTIONS) * torch.rand(ROWS)
    following = {"observation": observations(), "reward": torch.randn(ROWS, 1), "terminated": terminated}
    if done:
        truncated = ((torch.arange(ROWS) >= 5) & (torch.arange(ROWS) < 10)).unsqueeze(-1)
        following |= {"truncated": truncated, "done": terminated | truncated}
    action = torch.randint(ACTIONS, (ROWS,)) if discrete else 2 * torch.rand(ROWS, DIMENSIONS) - 1
    rows = {"observation": observations(), "action": action, "entropy": entropy, "next": following}
    return TensorDict(rows, batch_size=[ROWS])


def forward(parameters: TensorDictParams, observation: Tensor, *inputs: Tensor, critic: int | None = None) -> Tensor:
    """The perceptron with these parameters, of one critic where several are stacked, in plain torch."""
    named = {key: leaf if critic is None else leaf[critic] for key, leaf in parameters.items(True, True)}
    tables = [leaf for key, leaf in named.items() if "encoder" in key and key[-1] == "weight"]
    weights = [leaf for key, leaf in named.items() if "encoder" not in key and key[-1] == "weight"]
    biases = [leaf for key, leaf in named.items() if key[-1] == "bias"]
    assert len(weights) == len(biases) == 3
    if observation.is_floating_point():
        encoded = observation
    else:
        encoded = tables[0][observation] if tables else one_hot(observation, STATES).to(weights[0].dtype)
    value = torch.cat([encoded, *inputs], -1)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        value = torch.relu(value @ weight.T + bias)
    output: Tensor = value @ weights[-1].T + biases[-1]
    return output


def values(parameters: TensorDictParams, critics: int, observation: Tensor, *inputs: Tensor) -> Tensor:
    return torch.stack([forward(parameters, observation, *inputs, critic=critic) for critic in range(critics)])


def sampled(loss: LossModule, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions and log-probabilities of the squashed Gaussian for given standard normal numbers."""
    mean, log_std = forward(loss.actor_network_params, observation).chunk(2, -1)
    u = mean + log_std.exp() * noise
    normal = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
    return u.tanh(), (normal - 2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)


def combined(how: CriticReduction, q: Tensor) -> Tensor:
    return {CriticReduction.min: q.min(0).values, CriticReduction.mean: q.sum(0) / len(q), CriticReduction.first: q[0]}[
        how
    ]


def expected_sac(
    loss: LossModule, batch: TensorDict, critics: int, noise: list[Tensor], terms: Terms = PLAIN
) -> dict[str, Tensor]:
    """Equations 5 to 9 and 18 of Haarnoja et al. 2018b; `noise` for next actions, then for actions."""
    alpha = loss.log_alpha.detach().exp()
    online, target = loss.qvalue_network_params, loss.target_qvalue_network_params
    following = batch["next"]
    with torch.no_grad():
        next_action, next_log_prob = sampled(loss, following["observation"], noise[0])
        smallest = values(target, critics, following["observation"], next_action).squeeze(-1).amin(0)
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        y = terms.reward_scale * following["reward"].squeeze(-1) + GAMMA * alive * (smallest - alpha * next_log_prob)
    predicted = values(online, critics, batch["observation"], batch["action"]).squeeze(-1)
    action, log_prob = sampled(loss, batch["observation"], noise[1])
    of_policy = combined(terms.actor_q, values(online.detach(), critics, batch["observation"], action).squeeze(-1))
    factor = loss.log_alpha.exp() if terms.alpha_form is AlphaForm.alpha else loss.log_alpha
    return {
        "loss_qvalue": terms.critic_loss_scale * sum((((q - y) ** 2).mean() for q in predicted), torch.zeros(())),
        "loss_actor": (alpha * log_prob - of_policy).mean(),
        "loss_alpha": -(factor * (log_prob.detach() - DIMENSIONS)).mean(),
        "alpha": alpha,
        "entropy": -log_prob.detach().mean(),
    }


def expected_discrete(loss: LossModule, batch: TensorDict, critics: int, terms: Terms = PLAIN) -> dict[str, Tensor]:
    """Equations 10 to 12 of Christodoulou 2019 with the smallest critic: every expectation a sum."""
    alpha = loss.log_alpha.detach().exp()
    online, target = loss.qvalue_network_params, loss.target_qvalue_network_params
    following = batch["next"]
    with torch.no_grad():
        next_log_prob = forward(loss.actor_network_params, following["observation"]).log_softmax(-1)
        chosen = combined(terms.target_q, values(target, critics, following["observation"]))
        value = (next_log_prob.exp() * (chosen - alpha * next_log_prob)).sum(-1)
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        y = terms.reward_scale * following["reward"].squeeze(-1) + GAMMA * alive * value
    predicted = values(online, critics, batch["observation"])[:, torch.arange(ROWS), batch["action"]]
    errors = (predicted - y) ** 2
    if terms.q_clip is not None:
        anchor = values(target, critics, batch["observation"])[:, torch.arange(ROWS), batch["action"]]
        near = torch.minimum(torch.maximum(predicted, anchor - terms.q_clip), anchor + terms.q_clip)
        errors = torch.where((near - y) ** 2 > errors, (near - y) ** 2, errors)
    log_prob = forward(loss.actor_network_params, batch["observation"]).log_softmax(-1)
    of_policy = combined(terms.actor_q, values(online.detach(), critics, batch["observation"]))
    factor = loss.log_alpha.exp() if terms.alpha_form is AlphaForm.alpha else loss.log_alpha
    of_actor = (log_prob.exp() * (alpha * log_prob - of_policy)).sum(-1).mean()
    entropy = -(log_prob.exp() * log_prob).sum(-1)
    of_actor = of_actor + terms.entropy_penalty * ((entropy - batch["entropy"]) ** 2).sum() / ROWS
    entropy = entropy.detach()
    return {
        "loss_qvalue": terms.critic_loss_scale * errors.sum(0).mean(),
        "loss_actor": of_actor,
        "loss_alpha": (factor * (entropy - 0.7 * math.log(ACTIONS))).mean(),
        "alpha": alpha,
        "entropy": entropy.mean(),
    }


def groups(loss: LossModule) -> dict[str, list[Tensor]]:
    named = list(loss.named_parameters())
    prefixes = {
        "loss_qvalue": "qvalue_network",
        "loss_actor": "actor_network",
        "loss_value": "value_network",
        "loss_alpha": "log_alpha",
    }
    return {name: [leaf for key, leaf in named if key.startswith(prefix)] for name, prefix in prefixes.items()}


def assert_same(loss: LossModule, found: TensorDict, expected: dict[str, Tensor]) -> None:
    """The same numbers, and for each loss the same gradient for what it trains."""
    assert set(found.keys()) == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    for name, trained in groups(loss).items():
        if name not in expected:
            assert not trained, f"{name} is missing"
            continue
        assert trained, f"{name} trains nothing"
        gradients = torch.autograd.grad(found[name], trained, retain_graph=True)
        for gradient, value in zip(gradients, torch.autograd.grad(expected[name], trained), strict=True):
            torch.testing.assert_close(gradient, value, rtol=1e-10, atol=1e-12)


@DONE
@CRITICS
@OBSERVATIONS
def test_sac_is_its_equations(observation: TensorSpec, embedding: int | None, critics: int, done: bool) -> None:
    loss = build(observation, discrete=False, critics=critics, embedding=embedding).loss
    batch = transitions(observation, discrete=False, done=done)
    torch.manual_seed(5)
    found = loss(batch)
    torch.manual_seed(5)
    noise = [torch.randn(ROWS, DIMENSIONS), torch.randn(ROWS, DIMENSIONS)]
    assert_same(loss, found, expected_sac(loss, batch, critics, noise))


@DONE
@CRITICS
@OBSERVATIONS
def test_discrete_sac_is_its_equations(
    observation: TensorSpec, embedding: int | None, critics: int, done: bool
) -> None:
    loss = build(observation, discrete=True, critics=critics, embedding=embedding).loss
    batch = transitions(observation, discrete=True, done=done)
    assert_same(loss, loss(batch), expected_discrete(loss, batch, critics))


TERMS = pytest.mark.parametrize(
    "terms",
    [
        {"actor_q": CriticReduction.mean},
        {"actor_q": CriticReduction.first},
        {"alpha_form": AlphaForm.alpha},
        {"reward_scale": 5.0},
        {"critic_loss_scale": 0.5},
        {"actor_q": CriticReduction.mean, "alpha_form": AlphaForm.alpha, "reward_scale": 0.1, "critic_loss_scale": 0.5},
    ],
    ids=str,
)


@TERMS
def test_sac_has_the_terms_of_its_fields(terms: dict[str, Any]) -> None:
    loss = build(discrete=False, critics=3, **terms).loss
    batch = transitions(VECTOR, discrete=False)
    torch.manual_seed(5)
    found = loss(batch)
    torch.manual_seed(5)
    noise = [torch.randn(ROWS, DIMENSIONS), torch.randn(ROWS, DIMENSIONS)]
    assert_same(loss, found, expected_sac(loss, batch, 3, noise, Terms(**terms)))


@TERMS
@pytest.mark.parametrize("target_q", list(CriticReduction))
@pytest.mark.parametrize("q_clip", [None, 0.05, 0.5])
def test_discrete_sac_has_the_terms_of_its_fields(
    terms: dict[str, Any], target_q: CriticReduction, q_clip: float | None
) -> None:
    loss = build(discrete=True, critics=3, target_q=target_q, q_clip=q_clip, **terms).loss
    batch = transitions(VECTOR, discrete=True)
    expected = expected_discrete(loss, batch, 3, Terms(target_q=target_q, q_clip=q_clip, **terms))
    assert_same(loss, loss(batch), expected)


@OBSERVATIONS
@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_the_entropy_penalty_draws_the_policy_to_the_entropy_of_collection(
    observation: TensorSpec, embedding: int | None, penalty: float
) -> None:
    loss = build(observation, discrete=True, embedding=embedding, entropy_penalty=penalty).loss
    batch = transitions(observation, discrete=True)
    assert_same(loss, loss(batch), expected_discrete(loss, batch, 2, Terms(entropy_penalty=penalty)))


def test_the_entropy_penalty_says_what_it_lacks() -> None:
    loss = build(discrete=True, entropy_penalty=0.5).loss
    with pytest.raises(KeyError, match="entropy=True"):
        loss(transitions(VECTOR, discrete=True).exclude("entropy"))


def test_clipping_holds_back_some_values_of_critics_and_not_others() -> None:
    loss = build(discrete=True, q_clip=0.05).loss
    batch = transitions(VECTOR, discrete=True)
    plain, clipped = (expected_discrete(loss, batch, 2, Terms(q_clip=radius))["loss_qvalue"] for radius in (None, 0.05))
    found = loss(batch)["loss_qvalue"]
    assert plain.detach() < found.detach()
    torch.testing.assert_close(found, clipped)
    of_plain, of_clipped = (torch.autograd.grad(each, groups(loss)["loss_qvalue"])[-1] for each in (plain, clipped))
    assert of_clipped.any()
    assert not torch.allclose(of_plain, of_clipped)


def test_the_errors_of_discrete_critics_are_the_same_with_and_without_clipping() -> None:
    errors = []
    for q_clip in (None, 0.05):
        batch = transitions(VECTOR, discrete=True)
        build(discrete=True, q_clip=q_clip).loss(batch)
        errors.append(batch["td_error"])
    assert errors[0].shape == (ROWS,)
    torch.testing.assert_close(*errors)


@pytest.mark.parametrize("discrete", [False, True])
def test_what_follows_counts_for_truncated_rows_and_not_for_terminated_ones(discrete: bool) -> None:
    loss = build(discrete=discrete).loss

    def critic_loss(rows: slice | None) -> float:
        batch = transitions(VECTOR, discrete=discrete, done=True)
        if rows is not None:
            batch["next", "observation"][rows] += 1
        torch.manual_seed(5)
        return float(loss(batch)["loss_qvalue"].detach())

    assert critic_loss(slice(0, 5)) == critic_loss(None)
    assert critic_loss(slice(5, 10)) != critic_loss(None)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_reaches_its_own_parameters_and_no_others(discrete: bool, name: str) -> None:
    loss = build(discrete=discrete).loss
    found = loss(transitions(VECTOR, discrete=discrete))
    for owner in LOSSES:
        trained = groups(loss)[owner]
        gradients = torch.autograd.grad(found[name], trained, retain_graph=True, materialize_grads=True)
        reached = [bool(gradient.any()) for gradient in gradients]
        assert all(reached) if owner == name else not any(reached)
    assert not any(leaf.requires_grad for leaf in loss.target_qvalue_network_params.values(True, True))


@pytest.mark.parametrize("rows", [1, 3, ROWS])
def test_the_entropy_target_does_not_depend_on_the_batch(rows: int) -> None:
    loss = build(discrete=False).loss
    found = loss(transitions(VECTOR, discrete=False)[:rows])
    entropy_above_target = found["entropy"] + DIMENSIONS
    torch.testing.assert_close(found["loss_alpha"], loss.log_alpha * entropy_above_target)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_fixed_temperature_is_no_parameter(discrete: bool) -> None:
    loss = build(discrete=discrete, fixed_alpha=True).loss
    assert groups(loss)["loss_alpha"] == []
    assert float(loss(transitions(VECTOR, discrete=discrete))["alpha"]) == pytest.approx(ALPHA, rel=1e-12)


@pytest.mark.parametrize("discrete", [False, True])
@CRITICS
def test_targets_move_by_tau(discrete: bool, critics: int) -> None:
    agent = build(discrete=discrete, critics=critics)
    online, target = agent.loss.qvalue_network_params, agent.loss.target_qvalue_network_params
    before = {key: (leaf.detach().clone(), target[key].clone()) for key, leaf in online.items(True, True)}
    [updater] = agent.targets
    updater.step()
    for key, (source, moved) in before.items():
        assert not torch.equal(source, moved)
        torch.testing.assert_close(target[key], (1 - TAU) * moved + TAU * source, rtol=1e-12, atol=1e-12)
        assert torch.equal(online[key], source)


def build_v1(observation: TensorSpec = VECTOR, *, critics: int = 2, **fields: Any) -> Agent:
    """A first version whose target value has moved away from its value."""
    torch.manual_seed(3)
    variant = SACv1(NetworkConfig([16, 12]), critics, GAMMA, TAU, ALPHA, **fields)
    agent = variant.build(Specs(observation, Bounded(-1, 1, shape=DIMENSIONS)), device=CPU)
    with torch.no_grad():
        for leaf in agent.loss.target_value_network_params.values(True, True):
            if leaf.is_floating_point():
                leaf.data.add_(torch.randn_like(leaf), alpha=0.2)
    return agent


def expected_v1(
    loss: LossModule, batch: TensorDict, critics: int, noise: Tensor, *, scale: float, actor_q: CriticReduction
) -> dict[str, Tensor]:
    """Equations 5 to 13 of Haarnoja et al. 2018a with the temperature written out."""
    following = batch["next"]
    with torch.no_grad():
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        after = forward(loss.target_value_network_params, following["observation"]).squeeze(-1)
        y = scale * following["reward"].squeeze(-1) + GAMMA * alive * after
    action, log_prob = sampled(loss, batch["observation"], noise)
    online = loss.qvalue_network_params
    of_policy = values(online.detach(), critics, batch["observation"], action).squeeze(-1)
    soft = (of_policy.amin(0) - ALPHA * log_prob).detach()
    chosen = {
        CriticReduction.min: of_policy.amin(0),
        CriticReduction.mean: of_policy.mean(0),
        CriticReduction.first: of_policy[0],
    }[actor_q]
    value = forward(loss.value_network_params, batch["observation"]).squeeze(-1)
    predicted = values(online, critics, batch["observation"], batch["action"]).squeeze(-1)
    return {
        "loss_qvalue": sum((((q - y) ** 2).mean() / 2 for q in predicted), torch.zeros(())),
        "loss_value": ((value - soft) ** 2).mean() / 2,
        "loss_actor": (ALPHA * log_prob - chosen).mean(),
        "alpha": torch.tensor(ALPHA),
        "entropy": -log_prob.detach().mean(),
    }


@DONE
@CRITICS
@pytest.mark.parametrize("observation", [VECTOR, INDEX], ids=["vector", "one-hot"])
@pytest.mark.parametrize("actor_q", list(CriticReduction))
def test_the_first_version_is_its_equations(
    observation: TensorSpec, critics: int, actor_q: CriticReduction, done: bool
) -> None:
    loss = build_v1(observation, critics=critics, reward_scale=5.0, actor_q=actor_q).loss
    batch = transitions(observation, discrete=False, done=done)
    torch.manual_seed(5)
    found = loss(batch)
    torch.manual_seed(5)
    noise = torch.randn(ROWS, DIMENSIONS)
    expected = expected_v1(loss, batch, critics, noise, scale=5.0, actor_q=actor_q)
    assert_same(loss, found, expected)
    assert batch["td_error"].shape == (ROWS,)
    if critics == 1:
        torch.testing.assert_close((batch["td_error"] ** 2).mean() / 2, found["loss_qvalue"].detach())


def test_in_the_first_version_what_follows_counts_for_truncated_rows_and_not_for_terminated_ones() -> None:
    loss = build_v1().loss

    def critic_loss(rows: slice | None) -> float:
        batch = transitions(VECTOR, discrete=False, done=True)
        if rows is not None:
            batch["next", "observation"][rows] += 1
        return float(loss(batch)["loss_qvalue"].detach())

    assert critic_loss(slice(0, 5)) == critic_loss(None)
    assert critic_loss(slice(5, 10)) != critic_loss(None)


@pytest.mark.parametrize("name", ["loss_qvalue", "loss_actor", "loss_value"])
def test_a_loss_of_the_first_version_reaches_its_own_parameters_and_no_others(name: str) -> None:
    loss = build_v1().loss
    found = loss(transitions(VECTOR, discrete=False))
    owners = {key: trained for key, trained in groups(loss).items() if trained}
    assert set(owners) == {"loss_qvalue", "loss_actor", "loss_value"}
    for owner, trained in owners.items():
        gradients = torch.autograd.grad(found[name], trained, retain_graph=True, materialize_grads=True)
        reached = [bool(gradient.any()) for gradient in gradients]
        assert all(reached) if owner == name else not any(reached)


def test_only_the_value_of_the_first_version_has_a_target() -> None:
    agent = build_v1()
    names = [name for name, _ in agent.loss.named_children() if name.startswith("target_")]
    assert names == ["target_value_network_params"]
    online, target = agent.loss.value_network_params, agent.loss.target_value_network_params
    before = {key: leaf.clone() for key, leaf in target.items(True, True)}
    [updater] = agent.targets
    updater.step()
    for key, moved in before.items():
        expected = (1 - TAU) * moved + TAU * online[key].detach()
        torch.testing.assert_close(target[key], expected, rtol=1e-12, atol=1e-12)
