"""A discrete temperature that does not run away: its bounds, its moving target, its warning."""

import copy
import logging
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Categorical, Unbounded

from sac_torchrl import DiscreteSAC, Execution, Learner, LearnerConfig, NetworkConfig, Specs
from sac_torchrl.agents.temperature import BoundedTemperature

ACTIONS = 4
EXECUTIONS = pytest.mark.parametrize("execution", [Execution.eager, Execution.captured])


def build(*, execution: Execution = Execution.captured, lr: float = 1e-2, **fields: Any) -> Learner:
    torch.manual_seed(0)
    variant = DiscreteSAC(NetworkConfig([16]), **fields)
    agent = variant.build(Specs(Unbounded(shape=3), Categorical(ACTIONS)), device=torch.device("cpu"))
    return LearnerConfig(lr=lr, execution=execution).build(agent)


def batches(count: int) -> list[TensorDict]:
    """Only the first action pays."""
    torch.manual_seed(1)
    rows = []
    for _ in range(count):
        action = torch.randint(ACTIONS, (64,))
        following = {
            "observation": torch.randn(64, 3),
            "reward": 10.0 * (action == 0).float().unsqueeze(-1),
            "terminated": torch.ones(64, 1, dtype=torch.bool),
        }
        rows.append(TensorDict({"observation": torch.randn(64, 3), "action": action, "next": following}, [64]))
    return rows


def targets(learner: Learner, data: list[TensorDict]) -> list[float]:
    """The entropy target that each update uses, as a part of log(actions)."""
    used = []
    for batch in data:
        used.append(float(learner.agent.loss.target_entropy) / math.log(ACTIONS))
        learner.update(batch)
    return used


@EXECUTIONS
def test_the_target_moves_on_a_line_and_stays_at_its_end(execution: Execution) -> None:
    learner = build(
        execution=execution, target_entropy_ratio=0.9, target_entropy_ratio_end=0.1, target_entropy_updates=8
    )
    expected = [0.9 - 0.1 * update for update in range(9)] + [0.1] * 3
    assert targets(learner, batches(12)) == pytest.approx(expected, rel=1e-6)


@EXECUTIONS
def test_the_temperatures_loss_sees_the_target_of_its_update(execution: Execution) -> None:
    learner = build(
        execution=execution, target_entropy_ratio=0.9, target_entropy_ratio_end=0.1, target_entropy_updates=8, alpha=2.0
    )
    for update, batch in enumerate(batches(6)):
        log_alpha = float(learner.agent.loss.log_alpha.detach())
        metrics = learner.update(batch)
        above = float(metrics["entropy"]) - (0.9 - 0.1 * update) * math.log(ACTIONS)
        assert float(metrics["loss_alpha"]) == pytest.approx(log_alpha * above, rel=1e-4, abs=1e-6)


def test_a_loaded_learner_continues_with_the_target() -> None:
    fields: dict[str, Any] = {"target_entropy_ratio": 0.9, "target_entropy_ratio_end": 0.1, "target_entropy_updates": 8}
    data = batches(12)
    uninterrupted, first, resumed = (build(**fields) for _ in range(3))
    expected = targets(uninterrupted, data)
    targets(first, data[:5])
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert targets(resumed, data[5:]) == expected[5:]


@EXECUTIONS
def test_the_temperature_stays_within_its_bounds(execution: Execution) -> None:
    # Far above and far below what the policy does, so that the temperature runs to either bound.
    for ratio, bound in ((0.99, 1.5), (0.0, 0.7)):
        learner = build(
            execution=execution, lr=0.1, target_entropy_ratio=ratio, alpha=1.0, min_alpha=0.7, max_alpha=1.5, critics=1
        )
        with torch.no_grad():
            for leaf in learner.agent.actor.parameters():
                leaf.mul_(8)
        alphas = [float(learner.update(batch)["alpha"]) for batch in batches(12)]
        assert all(0.7 - 1e-6 <= alpha <= 1.5 + 1e-6 for alpha in alphas)
        assert alphas[-1] == pytest.approx(bound, rel=1e-6)


def test_without_bounds_the_temperature_leaves_them() -> None:
    learner = build(lr=0.1, target_entropy_ratio=0.0)
    assert [float(learner.update(batch)["alpha"]) for batch in batches(12)][-1] < 0.7


def kept(*, low: float = 0.0, high: float = math.inf, target: float = 1.0) -> BoundedTemperature:
    return BoundedTemperature(
        torch.tensor(0.0), torch.tensor(target), bounds=(low, high), targets=(target, target), over=0
    )


def warnings(temperature: BoundedTemperature, log: pytest.LogCaptureFixture, *seen: tuple[float, float]) -> list[str]:
    log.clear()
    for alpha, entropy in seen:
        temperature.watch({"alpha": alpha, "entropy": entropy})
    assert all(record.levelno == logging.WARNING for record in log.records)
    return log.messages


def test_an_entropy_below_its_target_at_the_upper_bound_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    temperature = kept(high=5.0)
    assert warnings(temperature, caplog, (4.9, 0.2), (5.0, 0.99), (5.0, 1.5)) == []
    [said] = warnings(temperature, caplog, (5.0, 0.2), (5.0, 0.2))
    assert "alpha is at variant.max_alpha=5 and the entropy at 0.2, for a target of 1 nats" in said
    assert warnings(temperature, caplog, (5.0, 0.2)) == []


def test_an_entropy_above_its_target_at_the_lower_bound_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(kept(low=0.5), caplog, (0.5, 0.99), (0.6, 1.4), (0.5, 1.01)) == []
    [said] = warnings(kept(low=0.5), caplog, (0.5, 1.4))
    assert "variant.min_alpha=0.5" in said


def test_a_temperature_that_grows_tenfold_without_effect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    [said] = warnings(kept(), caplog, (0.1, 0.5), (0.5, 0.52), (0.9, 0.5), (1.1, 0.54))
    assert "alpha grew from 0.1 to 1.1 and the entropy stays at 0.54" in said


def test_no_warning_while_the_entropy_approaches_its_target(caplog: pytest.LogCaptureFixture) -> None:
    following = [(0.1 * 2**step, 0.3 + 0.08 * step) for step in range(9)]
    assert warnings(kept(), caplog, *following) == []
    assert warnings(kept(), caplog, (0.1, 0.5), (0.5, 1.0), (1.1, 0.5), (9.0, 0.5)) == []


def test_a_target_out_of_reach_is_logged_when_metrics_are_read(caplog: pytest.LogCaptureFixture) -> None:
    learner = build(target_entropy_ratio=0.98, alpha=0.01, max_alpha=0.01)
    learner.metrics()
    for batch in batches(60):
        learner.update(batch)
    assert learner.metrics()["train/entropy"] < 0.9 * math.log(ACTIONS)
    [said] = caplog.messages
    assert "variant.max_alpha=0.01" in said
