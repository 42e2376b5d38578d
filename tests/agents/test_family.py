"""The descendants of SAC: each loss against its equations, and what every variant must do."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import layer_norm, linear, softplus
from torchrl.data import Bounded, Categorical, Unbounded
from torchrl.objectives import LossModule
from training import assert_equal_state, tensors, train

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.crossq import CrossQ
from sac_torchrl.agents.droq import DroQ
from sac_torchrl.agents.fastsac import FastSAC
from sac_torchrl.agents.losses import AlphaForm
from sac_torchrl.agents.networks import Init, NetworkConfig
from sac_torchrl.agents.redq import REDQ
from sac_torchrl.agents.simba import SimBa
from sac_torchrl.agents.tqc import TQC
from sac_torchrl.agents.variant import Variant
from sac_torchrl.errors import ConfigError
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.learner import Learner, LearnerConfig, Order, trained_parameters
from sac_torchrl.specs import Specs

CPU = torch.device("cpu")
OBSERVED, DIMENSIONS, ROWS = 3, 2, 8
SPECS = Specs(Unbounded(shape=OBSERVED), Bounded(-1, 1, shape=DIMENSIONS))
SMALL = NetworkConfig([16, 12])
GAMMA, ALPHA = 0.9, 0.3
FAMILY: dict[str, Callable[..., Variant]] = {
    "redq": lambda **fields: REDQ(network=SMALL, critics=4, **fields),
    "droq": lambda **fields: DroQ(network=SMALL, **fields),
    "crossq": lambda **fields: CrossQ(network=SMALL, critic_hidden=[16, 16], **fields),
    "tqc": lambda **fields: TQC(network=SMALL, critic_hidden=[16], critics=3, quantiles=5, **fields),
    "simba": lambda **fields: SimBa(actor_width=8, critic_width=8, **fields),
    "fastsac": lambda **fields: FastSAC(network=SMALL, critic_hidden=[16], atoms=11, **fields),
}
VARIANTS = pytest.mark.parametrize("name", FAMILY)


def build(name: str, *, seed: int = 0, **fields: Any) -> Agent:
    torch.manual_seed(seed)
    return FAMILY[name](**fields).build(SPECS, device=CPU)


def learner(name: str, execution: Execution = Execution.eager, *, seed: int = 0, **settings: Any) -> Learner:
    return LearnerConfig(**{"lr": 1e-2, **settings}, execution=execution).build(build(name, seed=seed))


def batches(count: int, *, rows: int = ROWS) -> list[TensorDict]:
    generator = torch.Generator().manual_seed(42)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.get_default_dtype())

    return [
        TensorDict(
            {
                "observation": normal(rows, OBSERVED),
                "action": normal(rows, DIMENSIONS).tanh(),
                "next": {
                    "observation": normal(rows, OBSERVED),
                    "reward": normal(rows, 1),
                    "terminated": normal(rows, 1) > 1,
                },
            },
            batch_size=[rows],
        )
        for _ in range(count)
    ]


@VARIANTS
def test_each_loss_trains_its_own_parameters(name: str) -> None:
    loss = build(name).loss
    with torch.no_grad():
        for parameter in loss.parameters():  # behind a layer of zeros none is reached
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = loss(batches(1)[0])
    for owner, parameters in trained_parameters(loss).items():
        assert parameters
        for other in ("loss_qvalue", "loss_actor", "loss_alpha"):
            gradients = torch.autograd.grad(found[other], parameters, retain_graph=True, materialize_grads=True)
            reached = [bool(gradient.any()) for gradient in gradients]
            assert all(reached) if owner == other else not any(reached)


@VARIANTS
def test_the_actor_that_acts_is_the_one_that_is_trained(name: str) -> None:
    agent = build(name)
    trained = trained_parameters(agent.loss)["loss_actor"]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in agent.actor.parameters()}


@pytest.mark.parametrize("variant", [REDQ, DroQ, CrossQ, TQC])
def test_the_weights_of_actor_and_critics_are_drawn_as_asked(variant: Callable[..., Variant]) -> None:
    network = NetworkConfig([6, 6], init=Init.orthogonal)
    wide = {"critic_hidden": [6, 6]} if variant in (CrossQ, TQC) else {}
    loss = variant(network=network, **wide).build(SPECS, device=CPU).loss
    for parameters in (loss.actor_network_params, loss.qvalue_network_params):
        square = [leaf for key, leaf in parameters.items(True, True) if leaf.shape[-2:] == (6, 6)]
        assert square
        for leaf in square:
            torch.testing.assert_close(leaf @ leaf.mT, torch.eye(6).expand(leaf.shape))


@pytest.mark.parametrize(
    ("variant", "init"),
    [(REDQ(), Init.xavier_uniform), (DroQ(), Init.xavier_uniform), (CrossQ(), Init.lecun_normal), (TQC(), Init.torch)],
    ids=lambda it: type(it).__name__ if isinstance(it, Variant) else it.value,
)
def test_the_weights_are_drawn_as_the_authors_draw_them(variant: REDQ | CrossQ | TQC, init: Init) -> None:
    assert variant.network.init is init


@VARIANTS
def test_discrete_states_are_taken(name: str) -> None:
    agent = FAMILY[name]().build(Specs(Categorical(5), SPECS.action), device=CPU)
    [batch] = batches(1)
    batch["observation"] = torch.arange(ROWS) % 5
    batch["next", "observation"] = torch.arange(ROWS) % 3
    assert LearnerConfig().build(agent).update(batch)["loss_qvalue"].isfinite()


@VARIANTS
@pytest.mark.parametrize("execution", [Execution.eager, Execution.captured])
def test_a_reset_initializes_again_and_continues_after_a_resume(name: str, execution: Execution) -> None:
    def fresh(seed: int) -> Learner:
        torch.manual_seed(seed)
        variant = FAMILY[name]()
        agent = replace(variant.build(SPECS, device=CPU), rebuild=lambda: variant.build(SPECS, device=CPU))
        return LearnerConfig(lr=1e-2, resets=(3,), execution=execution).build(agent)

    data = batches(5)
    one, other = fresh(0), fresh(9)
    train(one, data[:2])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    torch.manual_seed(1)
    one.update(data[2])
    assert all(not optimizer.state for optimizer in one.optimizers.values())
    torch.manual_seed(1)
    other.update(data[2])
    drawn = tensors(one.state_dict()["loss"])
    assert_equal_state(one, other)
    before = tensors(fresh(0).state_dict()["loss"])
    assert {key for key, tensor in drawn.items() if not torch.equal(tensor, before[key])} == {
        key for key, tensor in tensors(fresh(9).state_dict()["loss"]).items() if not torch.equal(tensor, before[key])
    }
    for key, tensor in drawn.items():
        if "log_alpha" in key or "running" in key:
            assert torch.equal(tensor, before[key])
    assert train(one, data[3:]) == train(other, data[3:])


def test_resets_need_an_agent_that_can_be_rebuilt() -> None:
    with pytest.raises(ConfigError, match=r"learner\.resets=\[3\]: this agent cannot be built again"):
        LearnerConfig(resets=(3,)).build(build("redq"))
    with pytest.raises(ConfigError, match=r"learner\.resets=\[0\]: "):
        LearnerConfig(resets=(0,))


# --- the equations, in plain torch with float64 numbers


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stacked(loss: LossModule, which: str) -> list[dict[str, Tensor]]:
    """The named tensors of each critic, or the actor's as the only entry."""
    flat = {".".join(key): leaf for key, leaf in getattr(loss, which).items(True, True)}
    if which.startswith("actor"):
        return [flat]
    return [{key: leaf[i] for key, leaf in flat.items()} for i in range(loss.num_qvalue_nets)]


def perceptron(
    named: dict[str, Tensor], x: Tensor, *, dropout: float = 0.0, activation: Callable[[Tensor], Tensor] = torch.relu
) -> Tensor:
    """Linear layers, each hidden one followed by dropout, layer norm where there is one, and a ReLU."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, leaf in named.items():
        *_, index, kind = key.split(".")
        layers.setdefault(int(index), {})[kind] = leaf
    ordered = [layers[index] for index in sorted(layers)]
    for position, layer in enumerate(ordered):
        if layer["weight"].ndim == 1:
            x = layer_norm(x, x.shape[-1:], layer["weight"], layer["bias"])
        else:
            x = linear(x, layer["weight"], layer["bias"])
            if dropout and position < len(ordered) - 1:
                x = x * torch.empty_like(x).bernoulli_(1 - dropout).div_(1 - dropout)
        followed_by_norm = position + 1 < len(ordered) and ordered[position + 1]["weight"].ndim == 1
        if position < len(ordered) - 1 and not followed_by_norm:
            x = activation(x)
    return x


def sampled(loss: LossModule, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Actions of the squashed Gaussian and their log-probabilities, from fresh standard normal numbers."""
    mean, log_std = perceptron(stacked(loss, "actor_network_params")[0], observation).chunk(2, -1)
    noise = torch.randn_like(mean)
    u = mean + log_std.exp() * noise
    normal = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
    return u.tanh(), (normal - 2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)


def moved(agent: Agent) -> LossModule:
    """The loss of an agent whose target networks have moved away from its critics."""
    with torch.no_grad():
        for leaf in agent.loss.target_qvalue_network_params.values(True, True):
            if leaf.is_floating_point():
                leaf.data.add_(torch.randn_like(leaf), alpha=0.2)
    return agent.loss


def assert_same(loss: LossModule, found: TensorDict, expected: dict[str, Tensor]) -> None:
    assert set(found.keys()) == {*expected, "alpha", "entropy"}
    for name, parameters in trained_parameters(loss).items():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad(found[name], parameters, retain_graph=True)
        again = torch.autograd.grad(expected[name], parameters, retain_graph=True)
        for gradient, value in zip(gradients, again, strict=True):
            torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-12)


def of_policy(
    loss: LossModule, log_prob: Tensor, value: Tensor, *, target_entropy: float = -DIMENSIONS, form: str = "log_alpha"
) -> dict[str, Tensor]:
    """The actor's and the temperature's losses, equations 7 and 18 of Haarnoja et al. 2018b."""
    factor = loss.log_alpha.exp() if form == "alpha" else loss.log_alpha
    return {
        "loss_actor": (loss.log_alpha.detach().exp() * log_prob - value).mean(),
        "loss_alpha": -(factor * (log_prob.detach() + target_entropy)).mean(),
    }


def target(batch: TensorDict, value: Tensor) -> Tensor:
    following = batch["next"]
    y: Tensor = following["reward"] + GAMMA * (~following["terminated"]).double() * value
    return y


@pytest.mark.parametrize(
    "variant",
    [
        REDQ(network=SMALL, critics=5, sampled=3, gamma=GAMMA, alpha=ALPHA),
        REDQ(network=SMALL, critics=4, sampled=4, gamma=GAMMA, alpha=ALPHA),
        DroQ(network=SMALL, dropout=0.3, gamma=GAMMA, alpha=ALPHA),
        REDQ(network=SMALL, layer_norm=True, target_entropy=-1.0, alpha_form=AlphaForm.alpha, gamma=GAMMA, alpha=ALPHA),
    ],
    ids=["part", "all", "droq", "rlpd"],
)
@pytest.mark.usefixtures("float64")
def test_redq_and_droq_are_their_equations(variant: REDQ) -> None:
    """Algorithm 1 of Chen et al. 2021, and algorithm 2 of Hiraoka et al. 2022."""
    torch.manual_seed(3)
    loss = moved(variant.build(SPECS, device=CPU))
    [batch] = batches(1)
    torch.manual_seed(5)
    found = loss(batch.clone())
    torch.manual_seed(5)

    def q(named: dict[str, Tensor], observation: Tensor, action: Tensor) -> Tensor:
        return perceptron(named, torch.cat([observation, action], -1), dropout=variant.dropout)

    following = batch["next", "observation"]
    with torch.no_grad():
        action, log_prob = sampled(loss, following)
        chosen = list(range(variant.critics))
        if variant.sampled < variant.critics:
            chosen = torch.rand(variant.critics).argsort(descending=True)[: variant.sampled].tolist()
        targets = stacked(loss, "target_qvalue_network_params")
        smallest = torch.stack([q(targets[i], following, action) for i in chosen]).amin(0)
        y = target(batch, smallest - ALPHA * log_prob.unsqueeze(-1))
    online = stacked(loss, "qvalue_network_params")
    errors = [(q(named, batch["observation"], batch["action"]) - y) ** 2 for named in online]
    action, log_prob = sampled(loss, batch["observation"])
    detached = [{key: leaf.detach() for key, leaf in named.items()} for named in online]
    value = torch.stack([q(named, batch["observation"], action) for named in detached]).mean(0).squeeze(-1)
    expected = {"loss_qvalue": torch.stack([error.mean() for error in errors]).sum()}
    target_entropy = -DIMENSIONS if variant.target_entropy is None else variant.target_entropy
    expected |= of_policy(loss, log_prob, value, target_entropy=target_entropy, form=variant.alpha_form.value)
    assert_same(loss, found, expected)


def test_the_critics_of_a_target_are_drawn_at_every_update() -> None:
    loss = REDQ(network=SMALL, critics=6, sampled=2).build(SPECS, device=CPU).loss
    with torch.no_grad():
        for leaf in loss.target_qvalue_network_params.values(True, True):
            leaf.mul_(0)
        [bias] = [leaf for key, leaf in loss.target_qvalue_network_params.items(True, True) if leaf.shape == (6, 1)]
        bias.copy_(torch.arange(6.0).unsqueeze(-1))
    [batch] = batches(1)
    drawn = set()
    for seed in range(60):
        torch.manual_seed(seed)
        value = loss._compute_target_v2(batch) - batch["next", "reward"].squeeze(-1)
        torch.manual_seed(seed)
        _, log_prob = loss.actor_network.get_dist(batch["next"]).rsample_and_log_prob()
        drawn.add(round(float((value / 0.99 + log_prob)[~batch["next", "terminated"].squeeze(-1)].mean().detach())))
    # The smaller of two different ones of 0 to 5.
    assert drawn == {0, 1, 2, 3, 4}


def renormed(named: dict[str, Tensor], x: Tensor, *, training: bool, warm: bool) -> Tensor:
    """The perceptron of CrossQ: linear layers with ReLU, batch renormalization of the input and behind each ReLU."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, leaf in named.items():
        *_, index, kind = key.split(".")
        layers.setdefault(int(index), {})[kind] = leaf
    ordered = [layers[index] for index in sorted(layers)]
    for position, layer in enumerate(ordered):
        if "running_mean" not in layer:
            x = linear(x, layer["weight"], layer["bias"])
            x = x.relu() if position < len(ordered) - 1 else x
            continue
        sigma = (layer["running_var"] + 1e-3).sqrt()
        if training:
            mean, std = x.mean(0), (((x - x.mean(0)) ** 2).mean(0) + 1e-3).sqrt()
            r = (std / sigma).detach().clamp(1 / 3, 3) if warm else 1
            d = ((mean - layer["running_mean"]) / sigma).detach().clamp(-5, 5) if warm else 0
            x = (x - mean) / std * r + d
        else:
            x = (x - layer["running_mean"]) / sigma
        x = x * layer["weight"] + layer["bias"]
    return x


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.usefixtures("float64")
def test_crossq_is_its_equations(warm: bool) -> None:
    """Figure 1 of Bhatt et al. 2024; its normalization is algorithm 1 of Ioffe 2017."""
    torch.manual_seed(3)
    variant = CrossQ(network=SMALL, critic_hidden=[16, 12], gamma=GAMMA, alpha=ALPHA, warmup=0 if warm else 1)
    loss = variant.build(SPECS, device=CPU).loss
    with torch.no_grad():
        for network in (loss.actor_network_params, loss.qvalue_network_params):
            for key, leaf in network.items(True, True):
                if key[-1] in ("running_mean", "running_var", "weight", "bias"):
                    leaf.data.add_(torch.rand_like(leaf) * (6 if key[-1] == "running_var" else 1))
    [batch] = batches(1)
    torch.manual_seed(5)
    found = loss(batch.clone())
    torch.manual_seed(5)

    def act(observation: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        [named] = stacked(loss, "actor_network_params")
        mean, log_std = renormed(named, observation, training=training, warm=warm).chunk(2, -1)
        noise = torch.randn_like(mean)
        u = mean + log_std.clamp(-20, 2).exp() * noise
        normal = -(noise**2) / 2 - log_std.clamp(-20, 2) - math.log(2 * math.pi) / 2
        return u.tanh(), (normal - 2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)

    following, online = batch["next", "observation"], stacked(loss, "qvalue_network_params")
    with torch.no_grad():
        next_action, next_log_prob = act(following, training=False)
    joined = torch.cat(
        [torch.cat([batch["observation"], batch["action"]], -1), torch.cat([following, next_action], -1)]
    )
    both = torch.stack([renormed(named, joined, training=True, warm=warm) for named in online])
    y = target(batch, both[:, ROWS:].detach().amin(0) - ALPHA * next_log_prob.unsqueeze(-1))
    expected = {"loss_qvalue": ((both[:, :ROWS] - y) ** 2).mean((1, 2)).sum()}
    action, log_prob = act(batch["observation"], training=True)
    detached = [{key: leaf.detach() for key, leaf in named.items()} for named in online]
    inputs = torch.cat([batch["observation"], action], -1)
    value = torch.stack([renormed(named, inputs, training=False, warm=warm) for named in detached]).amin(0)
    assert_same(loss, found, expected | of_policy(loss, log_prob, value.squeeze(-1), form="alpha"))


def test_running_statistics_move_once_an_update_and_are_those_that_act() -> None:
    agent = build("crossq", momentum=0.75)
    assert agent.targets == ()
    [batch] = batches(1)
    LearnerConfig(order=Order.critics_first, actor_updates=2, execution=Execution.captured).build(agent).update(batch)
    first = agent.actor.get_submodule("module.0.module.0.0")
    torch.testing.assert_close(first.running_mean, 0.25 * batch["observation"].mean(0))
    torch.testing.assert_close(first.running_var, 0.75 + 0.25 * batch["observation"].var(0, unbiased=False))
    assert int(first.moves) == 1
    # One row is normalized by them, not by itself.
    with torch.no_grad():
        one, other = (
            agent.actor.get_dist(TensorDict({"observation": torch.full((1, 3), x)}, [1])).loc for x in (0, 1.0)
        )
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("dropped", [0, 2])
@pytest.mark.usefixtures("float64")
def test_tqc_is_its_equations(dropped: int) -> None:
    """Equations 9 to 13 of Kuznetsov et al. 2020, element by element."""
    torch.manual_seed(3)
    critics, quantiles = 3, 5
    variant = TQC(
        network=SMALL,
        critic_hidden=[16, 12],
        critics=critics,
        quantiles=quantiles,
        dropped=dropped,
        gamma=GAMMA,
        alpha=ALPHA,
    )
    loss = moved(variant.build(SPECS, device=CPU))
    [batch] = batches(1)
    torch.manual_seed(5)
    found = loss(batch.clone())
    torch.manual_seed(5)
    following = batch["next", "observation"]
    with torch.no_grad():
        action, log_prob = sampled(loss, following)
        inputs = torch.cat([following, action], -1)
        pool = torch.cat([perceptron(named, inputs) for named in stacked(loss, "target_qvalue_network_params")], -1)
        kept = pool.sort(-1).values[:, : critics * (quantiles - dropped)]
        y = target(batch, kept - ALPHA * log_prob.unsqueeze(-1))
    expected = torch.zeros(())
    inputs = torch.cat([batch["observation"], batch["action"]], -1)
    for named in stacked(loss, "qvalue_network_params"):
        predicted = perceptron(named, inputs)
        for m in range(quantiles):
            fraction = (2 * m + 1) / (2 * quantiles)
            u = y - predicted[:, m : m + 1]
            huber = torch.where(u.abs() <= 1, u**2 / 2, u.abs() - 0.5)
            expected = expected + ((fraction - (u < 0).double()).abs() * huber).mean() / (critics * quantiles)
    action, log_prob = sampled(loss, batch["observation"])
    inputs = torch.cat([batch["observation"], action], -1)
    online = [{key: leaf.detach() for key, leaf in named.items()} for named in stacked(loss, "qvalue_network_params")]
    value = torch.stack([perceptron(named, inputs) for named in online]).mean((0, 2))
    assert_same(loss, found, {"loss_qvalue": expected} | of_policy(loss, log_prob, value))


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


@pytest.mark.usefixtures("float64")
def test_fastsac_is_its_equations() -> None:
    """Each critic on the projection of its own target, atom by atom (Bellemare et al. 2017, algorithm 1)."""
    torch.manual_seed(3)
    variant = FastSAC(
        network=SMALL,
        critic_hidden=[16, 12],
        atoms=7,
        v_min=-2,
        v_max=1,
        gamma=GAMMA,
        alpha=ALPHA,
        reward_scale=0.5,
    )
    loss = moved(variant.build(SPECS, device=CPU))
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.add_(torch.randn_like(parameter))
    [batch] = batches(1)
    batch["next", "reward"] = batch["next", "reward"].round()  # on the atoms, between them and beyond them
    torch.manual_seed(5)
    found = loss(batch.clone())
    torch.manual_seed(5)

    def chosen(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, output = perceptron(stacked(loss, "actor_network_params")[0], observation, activation=silu).chunk(2, -1)
        log_std = 2.5 * output.tanh() - 2.5
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        normal = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
        return u.tanh(), (normal - 2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)

    atoms = torch.linspace(-2, 1, 7)
    following = batch["next", "observation"]
    with torch.no_grad():
        action, log_prob = chosen(following)
    inputs, now = torch.cat([following, action], -1), torch.cat([batch["observation"], batch["action"]], -1)
    expected, beyond = torch.zeros(()), 0.0
    critics = zip(stacked(loss, "target_qvalue_network_params"), stacked(loss, "qvalue_network_params"), strict=True)
    for target_critic, critic in critics:
        probabilities = perceptron(target_critic, inputs, activation=silu).softmax(-1)
        predicted = perceptron(critic, now, activation=silu).softmax(-1).log()
        for row in range(ROWS):
            projected = torch.zeros(7)
            alive = not batch["next", "terminated"][row]
            for probability, atom in zip(probabilities[row], atoms, strict=True):
                y = 0.5 * batch["next", "reward"][row] + GAMMA * alive * (atom - ALPHA * log_prob[row])
                beyond += float(probability * ((y < -2) | (y > 1))) / (2 * ROWS)
                projected += probability * (1 - (y.clamp(-2, 1) - atoms).abs() / 0.5).clamp(min=0)
            assert float(projected.sum()) == pytest.approx(1)
            expected = expected - (projected.detach() * predicted[row]).sum() / ROWS
    action, log_prob = chosen(batch["observation"])
    inputs = torch.cat([batch["observation"], action], -1)
    online = [{key: leaf.detach() for key, leaf in named.items()} for named in stacked(loss, "qvalue_network_params")]
    value = sum((perceptron(named, inputs, activation=silu).softmax(-1) * atoms).sum(-1) for named in online) / 2
    assert 0.1 < beyond < 0.9
    assert float(found.pop("clipped")) == pytest.approx(beyond)
    rest = of_policy(loss, log_prob, torch.as_tensor(value), target_entropy=0, form="alpha")
    assert_same(loss, found, {"loss_qvalue": expected} | rest)


def test_a_new_policy_of_fastsac_stays_near_the_middle() -> None:
    actor = FastSAC().build(SPECS, device=CPU).actor
    policy = actor.get_dist(TensorDict({"observation": torch.randn(5, OBSERVED)}, [5]))
    assert torch.equal(policy.loc, torch.zeros(5, DIMENSIONS))
    torch.testing.assert_close(policy.scale, torch.full((5, DIMENSIONS), math.exp(-2.5)))


@pytest.mark.usefixtures("float64")
def test_simba_is_sac_on_residual_networks() -> None:
    """Figure 3 of Lee et al. 2025: pre-norm residual blocks, four times as wide inside, and a norm behind them."""
    torch.manual_seed(3)
    loss = moved(SimBa(actor_width=6, critic_width=8, gamma=GAMMA, alpha=ALPHA).build(SPECS, device=CPU))
    [batch] = batches(1)
    torch.manual_seed(5)
    found = loss(batch.clone())
    torch.manual_seed(5)

    def residual(named: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
        prefix = next(key for key in named if ".1.inner.0." in key).partition("1.inner.0.")[0]

        def part(name: str) -> tuple[Tensor, Tensor]:
            return named[f"{prefix}{name}.weight"], named[f"{prefix}{name}.bias"]

        x = linear(x, *part("0"))
        for block in range(1, blocks + 1):
            inner = linear(layer_norm(x, x.shape[-1:], *part(f"{block}.inner.0")), *part(f"{block}.inner.1"))
            assert inner.shape[-1] == 4 * x.shape[-1]
            x = x + linear(inner.relu(), *part(f"{block}.inner.3"))
        return linear(layer_norm(x, x.shape[-1:], *part(f"{blocks + 1}")), *part(f"{blocks + 2}"))

    def act(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = residual(stacked(loss, "actor_network_params")[0], observation, 1).chunk(2, -1)
        log_std = -10 + 12 * (raw.tanh() + 1) / 2
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        normal = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
        return u.tanh(), (normal - 2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)

    def q(which: str, observation: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat([observation, action], -1)
        return torch.stack([residual(named, inputs, 2) for named in stacked(loss, which)])

    following = batch["next", "observation"]
    with torch.no_grad():
        action, log_prob = act(following)
        y = target(batch, q("target_qvalue_network_params", following, action).amin(0) - ALPHA * log_prob.unsqueeze(-1))
    error = q("qvalue_network_params", batch["observation"], batch["action"]) - y
    action, log_prob = act(batch["observation"])
    frozen = {key: leaf.detach() for key, leaf in loss.qvalue_network_params.items(True, True)}
    inputs = torch.cat([batch["observation"], action], -1)
    value = torch.stack(
        [residual({".".join(key): leaf[i] for key, leaf in frozen.items()}, inputs, 2) for i in range(2)]
    ).amin(0)
    expected = {"loss_qvalue": (error**2).mean((1, 2)).sum()}
    expected |= of_policy(loss, log_prob, value.squeeze(-1), target_entropy=-DIMENSIONS / 2, form="alpha")
    assert_same(loss, found, expected)
