"""Learning rates over a run, and gradients clipped by their norm."""

from typing import Any

import pytest
import torch
from test_learner import batches, build
from torch.optim.lr_scheduler import CosineAnnealingLR
from training import assert_equal_state, tensors, train

from sac_torchrl.errors import ConfigError
from sac_torchrl.learner import capture
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.learner import Learner
from sac_torchrl.learner.programs import _clip
from sac_torchrl.learner.rates import Schedule

EVERY = [Execution.eager, Execution.captured]


def test_the_cosine_is_that_of_torch_and_all_begin_after_the_warm_up() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = CosineAnnealingLR(optimizer, T_max=20)
    for number in range(1, 21):
        assert Schedule.cosine.factor(number, warmup=0, updates=20) == pytest.approx(reference.get_last_lr()[0])
        assert Schedule.linear.factor(number + 5, warmup=5, updates=25) == pytest.approx(1 - (number - 1) / 20)
        optimizer.step()
        reference.step()
    for schedule in Schedule:
        assert [schedule.factor(number, warmup=4, updates=9) for number in range(1, 6)] == [0.25, 0.5, 0.75, 1, 1]
    assert Schedule.linear.factor(99, warmup=0, updates=9) == 0


def scheduled(execution: Execution, **learning: Any) -> Learner:
    return build(execution=execution, learning={"lr_schedule": Schedule.linear, "lr_warmup": 3} | learning, updates=10)


def test_a_schedule_is_adam_with_these_rates_and_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[object] = []
    record = capture.Captured._record

    def counted(self: capture.Captured, inputs: Any) -> Any:
        recorded.append(self)
        return record(self, inputs)

    monkeypatch.setattr(capture.Captured, "_record", counted)
    one, other, plain = (scheduled(execution) for execution in [*EVERY, Execution.eager])
    plain._rates = None
    data = batches(9)
    train(one, data)
    train(other, data)
    assert_equal_state(one, other)
    assert len(recorded) == 2  # losses, and what follows them
    torch.manual_seed(7)
    for number, batch in enumerate(data, start=1):
        for optimizer in plain.optimizers.values():
            optimizer.param_groups[0]["lr"] = 1e-2 * Schedule.linear.factor(number, warmup=3, updates=10)
        plain.update(batch)
    first, second = tensors(one.state_dict()["loss"]), tensors(plain.state_dict()["loss"])
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("execution", EVERY)
def test_a_schedule_continues_where_it_was_saved(execution: Execution) -> None:
    data = batches(8)
    whole, first, second = (scheduled(execution, max_grad_norm=0.5) for _ in range(3))
    train(whole, data[:4])
    train(first, data[:4])
    second.load_state_dict(first.state_dict())
    train(whole, data[4:])
    train(second, data[4:])
    assert_equal_state(whole, second)


@pytest.mark.parametrize("execution", EVERY)
def test_gradients_of_each_loss_are_clipped_together(execution: Execution) -> None:
    learner, free = (build(execution=execution, learning=learning) for learning in ({"max_grad_norm": 0.01}, {}))
    data = batches(1)
    train(learner, data)
    train(free, data)
    for name in learner.optimizers:
        # After one step Adam's first moment is a tenth of the gradient.
        moments = [
            torch.cat([state["exp_avg"].flatten() for state in one.optimizers[name].state.values()]).double() * 10
            for one in (learner, free)
        ]
        norm = moments[1].norm()
        torch.testing.assert_close(moments[0], moments[1] * min(1.0, 0.01 / float(norm)), rtol=1e-4, atol=1e-9)
        assert name == "loss_alpha" or norm > 0.01


def test_clipping_is_that_of_torch() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    for largest in (0.1, 100.0):
        for weight in weights:
            weight.grad = torch.full_like(weight, 2.0)
        _clip(weights, largest)
        ours = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = torch.full_like(weight, 2.0)
        torch.nn.utils.clip_grad_norm_(weights, largest)
        assert all(torch.equal(own, weight.grad) for own, weight in zip(ours, weights, strict=True))  # type: ignore[arg-type]


def test_a_schedule_needs_its_length() -> None:
    with pytest.raises(ConfigError, match=r"learner.lr_schedule=linear: give build the number of `updates`"):
        build(learning={"lr_schedule": Schedule.linear})
