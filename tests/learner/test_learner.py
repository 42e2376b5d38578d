import copy
import json
import math
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Categorical, Unbounded
from training import assert_equal_state, tensors, train

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.sac import SAC
from sac_torchrl.errors import ConfigError
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.learner import Learner, LearnerConfig, Order, trained_parameters
from sac_torchrl.learner.precision import Precision
from sac_torchrl.specs import Specs

CPU = torch.device("cpu")
VECTOR = Unbounded(shape=3)
VARIANTS = pytest.mark.parametrize("discrete", [False, True], ids=["sac", "discrete"])
EXECUTIONS = pytest.mark.parametrize("execution", [Execution.eager, Execution.captured])


def build(
    *,
    discrete: bool = False,
    execution: Execution = Execution.eager,
    seed: int = 0,
    width: int = 16,
    lr: float = 1e-2,
    states: int | None = None,
    embedding: int | None = None,
    learning: dict[str, Any] | None = None,
    updates: int | None = None,
    **fields: Any,
) -> Learner:
    torch.manual_seed(seed)
    network = NetworkConfig([width], embedding)
    observation = VECTOR if states is None else Categorical(states)
    agent: Agent
    if discrete:
        agent = DiscreteSAC(network, **fields).build(Specs(observation, Categorical(4)), device=CPU)
    else:
        agent = SAC(network=network, **fields).build(Specs(observation, Bounded(-1, 1, shape=2)), device=CPU)
    return LearnerConfig(lr=lr, execution=execution, **(learning or {})).build(agent, updates=updates)


def batches(count: int, *, discrete: bool = False, rows: int = 8, states: int | None = None) -> list[TensorDict]:
    generator = torch.Generator().manual_seed(42)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def observed() -> Tensor:
        return normal(rows, 3) if states is None else normal(rows, states).argmax(-1)

    return [
        TensorDict(
            {
                "observation": observed(),
                "action": normal(rows, 4).argmax(-1) if discrete else normal(rows, 2).tanh(),
                "next": {
                    "observation": observed(),
                    "reward": normal(rows, 1),
                    "terminated": normal(rows, 1) > 1,
                },
            },
            batch_size=[rows],
        )
        for _ in range(count)
    ]


def through_json(tree: Any) -> Any:
    """What a checkpoint does: tensors to one file, all else to another as JSON."""
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        assert all(isinstance(key, str) for key in tree)
        return {key: through_json(branch) for key, branch in tree.items()}
    return json.loads(json.dumps(tree, allow_nan=False))


@VARIANTS
@pytest.mark.parametrize("critics", [1, 2, 3])
@pytest.mark.parametrize("fixed_alpha", [False, True])
def test_every_parameter_has_exactly_one_optimizer(discrete: bool, critics: int, fixed_alpha: bool) -> None:
    learner = build(discrete=discrete, critics=critics, fixed_alpha=fixed_alpha)
    expected = {"loss_qvalue", "loss_actor"} | (set() if fixed_alpha else {"loss_alpha"})
    assert learner.optimizers.keys() == expected
    held = [
        id(parameter)
        for optimizer in learner.optimizers.values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in learner.agent.loss.parameters()}


@EXECUTIONS
def test_a_learning_rate_that_is_changed_between_updates_is_used(execution: Execution) -> None:
    learner = build(execution=execution)
    train(learner, batches(4))
    before = [parameter.detach().clone() for parameter in learner.agent.loss.parameters()]
    for optimizer in learner.optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.0
    train(learner, batches(4))
    assert all(map(torch.equal, before, learner.agent.loss.parameters()))


@VARIANTS
@pytest.mark.parametrize("critics", [1, 2])
def test_an_update_is_one_adam_step_on_every_loss_and_then_one_target_step(discrete: bool, critics: int) -> None:
    """Adam's first step is lr x gradient / (|gradient| + eps); all gradients are of the weights before."""
    learner, reference = (build(discrete=discrete, critics=critics, alpha=0.5, tau=0.005, lr=1e-3) for _ in range(2))
    [batch] = batches(1, discrete=discrete)
    [metrics] = train(learner, [batch])
    loss = reference.agent.loss
    torch.manual_seed(7)
    losses = loss(batch.clone())
    assert metrics == pytest.approx({name: float(value) for name, value in losses.detach().items()})
    targets = {key: leaf.clone() for key, leaf in loss.target_qvalue_network_params.items(True, True)}
    groups = trained_parameters(loss)
    assert groups.keys() == {"loss_qvalue", "loss_actor", "loss_alpha"}
    gradients = {
        name: torch.autograd.grad(losses[name], parameters, retain_graph=True) for name, parameters in groups.items()
    }
    with torch.no_grad():
        for name, parameters in groups.items():
            for parameter, gradient in zip(parameters, gradients[name], strict=True):
                parameter.sub_(1e-3 * gradient / (gradient.abs() + 1e-8))
    for name, parameters in trained_parameters(learner.agent.loss).items():
        for parameter, expected in zip(parameters, groups[name], strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
    for key, moved in learner.agent.loss.target_qvalue_network_params.items(True, True):
        value = torch.lerp(targets[key], loss.qvalue_network_params[key].detach(), 0.005)
        torch.testing.assert_close(moved, value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("actor_updates", [1, 2])
def test_losses_see_the_weights_that_the_order_says(order: Order, actor_updates: int) -> None:
    """Plain Adam steps written out here, on the losses of a second agent, are the update."""
    [batch] = batches(1)
    learner = build(learning={"order": order, "actor_updates": actor_updates})
    train(learner, [batch])
    reference = build().agent.loss
    groups = trained_parameters(reference)
    adams = {name: torch.optim.Adam(parameters, lr=1e-2) for name, parameters in groups.items()}
    policy = ["loss_actor", "loss_alpha"]
    steps = {
        Order.together: [["loss_qvalue", *policy], *[policy] * (actor_updates - 1)],
        Order.critics_first: [["loss_qvalue"], *[policy] * actor_updates],
        Order.one_by_one: [["loss_qvalue"], *[["loss_actor"], ["loss_alpha"]] * actor_updates],
    }[order]
    torch.manual_seed(7)
    for names in steps:
        losses = reference(batch.clone())
        for name in names:
            gradients = torch.autograd.grad(losses[name], groups[name], retain_graph=True)
            for parameter, gradient in zip(groups[name], gradients, strict=True):
                parameter.grad = gradient
        for name in names:
            adams[name].step()
    found = trained_parameters(learner.agent.loss)
    for name, parameters in groups.items():
        for parameter, expected in zip(found[name], parameters, strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)


@EXECUTIONS
@pytest.mark.parametrize(
    "learning",
    [{"order": order, "actor_every": 2, "target_every": 3} for order in Order] + [{"lr_warmup": 5}],
    ids=str,
)
def test_several_updates_at_once_are_as_many_calls(execution: Execution, learning: dict[str, Any]) -> None:
    single, several = (build(execution=execution, learning=learning) for _ in range(2))
    data = batches(9)
    torch.manual_seed(7)
    expected = [single.update(batch) for batch in data][2::3]
    torch.manual_seed(7)
    found = [several.update(*data[first : first + 3]) for first in (0, 3, 6)]
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys() and (one == other).all()
    assert several.updates == 9
    assert_equal_state(single, several)


@EXECUTIONS
def test_a_delayed_actor_and_delayed_targets_move_only_when_they_are_due(execution: Execution) -> None:
    learner = build(execution=execution, learning={"actor_every": 2, "target_every": 3})
    loss = learner.agent.loss
    moved: dict[str, list[int]] = {"qvalue": [], "actor": [], "log_alpha": [], "target_qvalue": []}
    for number, batch in enumerate(batches(6), start=1):
        before = {name: tensor.clone() for name, tensor in loss.state_dict().items() if isinstance(tensor, Tensor)}
        metrics = learner.update(batch)
        assert ("entropy" in set(metrics.keys())) == (number > 1)
        for prefix, numbers in moved.items():
            changed = (
                not torch.equal(before[name], loss.state_dict()[name]) for name in before if name.startswith(prefix)
            )
            numbers += [number] * any(changed)
    assert moved == {
        "qvalue": [1, 2, 3, 4, 5, 6],
        "actor": [2, 4, 6],
        "log_alpha": [2, 4, 6],
        "target_qvalue": [3, 6],
    }


@EXECUTIONS
def test_an_update_hands_back_detached_scalars_and_leaves_the_batch_alone(execution: Execution) -> None:
    learner = build(execution=execution)
    [batch] = batches(1)
    before = batch.clone()
    metrics = learner.update(batch)
    assert set(metrics.keys()) == {"loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert set(batch.keys(include_nested=True)) == set(before.keys(include_nested=True))
    assert (batch == before).all()


def test_metrics_are_not_overwritten_by_the_next_update() -> None:
    learner = build(discrete=True, execution=Execution.captured)
    first, second = batches(2, discrete=True)
    metrics = learner.update(first)
    kept = metrics.clone()
    learner.update(second)
    assert (metrics == kept).all()


@VARIANTS
def test_recording_draws_no_random_numbers(discrete: bool) -> None:
    [batch] = batches(1, discrete=discrete)
    states = []
    for execution in (Execution.eager, Execution.captured):
        train(build(discrete=discrete, execution=execution), [batch])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@VARIANTS
def test_large_matrix_products_alone_are_reduced_in_precision(discrete: bool) -> None:
    """Captured, the numbers are those of eager bfloat16; both stay near float32, and weights are float32."""
    reduced = {"precision": Precision.bfloat16}
    size: dict[str, Any] = {"discrete": discrete, "states": 256, "width": 256}
    eager, captured = (
        build(**size, lr=3e-4, execution=it, learning=reduced) for it in (Execution.eager, Execution.captured)
    )
    exact = build(**size, lr=3e-4)
    data = batches(5, discrete=discrete, states=256, rows=128)  # 128 x 256 x 256 are the smallest that are reduced
    found = train(eager, data)
    assert found == train(captured, data)
    assert_equal_state(eager, captured)
    expected = train(exact, data)
    assert found != expected
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=0.05, abs=0.05)
    assert {parameter.dtype for parameter in eager.agent.loss.parameters()} == {torch.float32}


@VARIANTS
def test_small_matrix_products_are_exact_in_bfloat16(discrete: bool) -> None:
    size: dict[str, Any] = {"discrete": discrete, "states": 256, "width": 256}
    reduced, exact = (
        build(**size, learning={"precision": precision}) for precision in (Precision.bfloat16, Precision.float32)
    )
    data = batches(2, discrete=discrete, states=256, rows=127)
    assert train(reduced, data) == train(exact, data)


def test_a_batch_of_another_shape_is_recorded_separately() -> None:
    eager, captured = (build(execution=it) for it in (Execution.eager, Execution.captured))
    small, large = (batches(2, rows=rows) for rows in (5, 9))
    data = [large[0], small[0], large[1], small[1]]
    assert train(eager, data) == train(captured, data)
    assert_equal_state(eager, captured)


def test_a_batch_with_further_columns_gives_the_same_update() -> None:
    plain, wide = (build(discrete=True, execution=Execution.captured) for _ in range(2))
    data = batches(2, discrete=True)
    rich = [batch.clone() for batch in data]
    for batch in rich:
        batch["next", "done"] = torch.ones(8, 1, dtype=torch.bool)
        batch["episode"] = torch.arange(8)
    assert train(plain, data) == train(wide, [rich[0], data[1]])
    assert_equal_state(plain, wide)


def test_metrics_for_a_log_are_those_of_the_newest_update() -> None:
    learner = build(discrete=True)
    assert learner.metrics() == {"time/updates": 0}
    newest = train(learner, batches(2, discrete=True))[-1]
    assert learner.metrics() == {"time/updates": 2} | {f"train/{name}": value for name, value in newest.items()}


def test_updates_are_counted() -> None:
    learner = build(discrete=True)
    counts = [learner.updates]
    for batch in batches(3, discrete=True):
        learner.update(batch)
        counts.append(learner.updates)
    assert counts == [0, 1, 2, 3]
    assert learner.state_dict()["updates"] == 3


@VARIANTS
@EXECUTIONS
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used before"])
def test_a_loaded_learner_continues_bit_for_bit(discrete: bool, execution: Execution, used: bool) -> None:
    data = batches(12, discrete=discrete)
    learner = build(discrete=discrete, execution=execution)
    train(learner, data[:6])
    # JSON makes lists of tuples: settings that look changed have all recorded anew.
    state = copy.deepcopy(learner.state_dict()) if used else through_json(learner.state_dict())
    # What a state holds counts, and a recording made before the loading must see it too.
    resumed = build(discrete=discrete, execution=execution, seed=99, gamma=0.5, alpha=0.1)
    if used:
        train(resumed, data[6:9], seed=1)
    resumed.load_state_dict(state)
    assert resumed.updates == 6
    assert_equal_state(learner, resumed)
    assert train(learner, data[6:]) == train(resumed, data[6:])
    assert_equal_state(learner, resumed)


@VARIANTS
def test_a_learner_saved_before_its_first_update_continues_too(discrete: bool) -> None:
    data = batches(3, discrete=discrete)
    learner, resumed = build(discrete=discrete), build(discrete=discrete, seed=99)
    resumed.load_state_dict(through_json(learner.state_dict()))
    assert train(learner, data) == train(resumed, data)


def test_a_loaded_learner_shares_nothing_with_the_saved_one() -> None:
    data = batches(4)
    learner, other, reference = build(), build(seed=99), build(seed=98)
    train(learner, data[:2])
    reference.load_state_dict(copy.deepcopy(learner.state_dict()))
    other.load_state_dict(learner.state_dict())
    train(learner, data[2:])
    assert train(other, data[2:]) == train(reference, data[2:])
    assert_equal_state(other, reference)


@pytest.mark.parametrize(
    ("saved", "loading"),
    [
        ({"width": 8}, {"width": 16}),
        ({"critics": 1}, {"critics": 2}),
        ({"critics": 2}, {"critics": 3}),
        ({"fixed_alpha": True}, {}),
        ({}, {"fixed_alpha": True}),
        ({"discrete": True}, {}),
    ],
    ids=["width", "one critic", "critics", "fixed to learned", "learned to fixed", "variant"],
)
def test_a_state_of_another_learner_is_refused_and_changes_nothing(
    saved: dict[str, Any], loading: dict[str, Any]
) -> None:
    other, learner = build(seed=1, **saved), build(seed=2, **loading)
    train(other, batches(1, discrete="discrete" in saved))
    train(learner, batches(1))
    state = through_json(other.state_dict())
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises((KeyError, RuntimeError)):
        learner.load_state_dict(state)
    after = tensors(learner.state_dict())
    assert [name for name, tensor in tensors(before).items() if not torch.equal(tensor, after[name])] == []
    assert learner.updates == before["updates"]


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_without_instructions_for_it_is_a_warning(
    has: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has})
    build(learning={"precision": Precision.bfloat16})
    assert ("this processor has no instructions for it" in caplog.text) is not has


@VARIANTS
def test_a_fixed_temperature_stays(discrete: bool) -> None:
    learner = build(discrete=discrete, fixed_alpha=True, alpha=0.2)
    before = learner.agent.loss.log_alpha.clone()
    metrics = train(learner, batches(5, discrete=discrete))
    assert "loss_alpha" not in learner.optimizers
    assert torch.equal(learner.agent.loss.log_alpha, before)
    assert [entry["alpha"] for entry in metrics] == pytest.approx([0.2] * 5)


@pytest.mark.parametrize(("target", "direction"), [(-50.0, -1), (50.0, 1)], ids=["entropy above", "entropy below"])
def test_the_temperature_follows_the_entropy(target: float, direction: int) -> None:
    learner = build(target_entropy=target)
    metrics = train(learner, batches(6))
    assert all(direction * (target - entry["entropy"]) > 0 for entry in metrics)
    alphas = [entry["alpha"] for entry in metrics]
    assert alphas[0] == 1
    assert all(direction * (later - earlier) > 0 for earlier, later in pairwise(alphas))


def test_the_discrete_temperature_falls_from_an_almost_uniform_policy() -> None:
    learner = build(discrete=True, target_entropy_ratio=0.2)
    metrics = train(learner, batches(6, discrete=True))
    assert all(entry["entropy"] > 0.2 * math.log(4) for entry in metrics)
    alphas = [entry["alpha"] for entry in metrics]
    assert alphas == sorted(alphas, reverse=True)
    assert alphas[-1] < alphas[0]


@pytest.mark.parametrize("name", ["lr", "actor_lr", "critic_lr", "alpha_lr"])
@pytest.mark.parametrize("rate", [0.0, -1e-3, math.inf, math.nan])
def test_a_bad_learning_rate_is_refused(name: str, rate: float) -> None:
    with pytest.raises(ConfigError, match=rf"learner\.{name}={rate}: "):
        LearnerConfig(**cast(Any, {name: rate}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actor_every", 0),
        ("actor_updates", 0),
        ("target_every", 0),
        ("eps", 0.0),
        ("betas", (0.9, 1.0)),
        ("weight_decay", -0.1),
        ("resets", (0,)),
    ],
)
def test_a_field_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"learner\.{field}="):
        LearnerConfig(**{field: value})


def test_the_learning_rate_reaches_every_optimizer() -> None:
    rates = [group["lr"] for it in build(lr=0.123).optimizers.values() for group in it.param_groups]
    assert rates == [0.123] * 3


def test_every_loss_may_have_a_learning_rate_of_its_own() -> None:
    learning = {"critic_lr": 0.1, "alpha_lr": 0.3, "eps": 1e-4, "betas": (0.5, 0.9), "weight_decay": 0.01}
    learner = build(lr=0.2, learning=learning)
    groups = {name: it.param_groups[0] for name, it in learner.optimizers.items()}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "loss_qvalue": 0.1,
        "loss_actor": 0.2,
        "loss_alpha": 0.3,
    }
    assert {group["eps"] for group in groups.values()} == {1e-4}
    assert {tuple(group["betas"]) for group in groups.values()} == {(0.5, 0.9)}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "loss_qvalue": 0.01,
        "loss_actor": 0.01,
        "loss_alpha": 0.0,
    }
    assert all(isinstance(it, torch.optim.AdamW) for it in learner.optimizers.values())
