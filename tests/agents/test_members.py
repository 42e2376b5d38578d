"""What every variant and every policy must do: the same updates however they are executed, and after a resume."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded
from training import assert_equal_state, tensors, train

import sac_torchrl
from sac_torchrl import Execution, Learner, LearnerConfig, NetworkConfig, Order, Specs, TrainConfig
from sac_torchrl.agents.crossq import CrossQ
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.droq import DroQ
from sac_torchrl.agents.fastsac import FastSAC
from sac_torchrl.agents.heads import PolicyForm
from sac_torchrl.agents.mixture import Gradient
from sac_torchrl.agents.multi_discrete import ActionCritic
from sac_torchrl.agents.redq import REDQ
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.sac_v1 import SACv1
from sac_torchrl.agents.simba import SimBa
from sac_torchrl.agents.tqc import TQC
from sac_torchrl.agents.variant import Variant

PAGES = Path(sac_torchrl.__file__).parents[1] / "docs" / "variants"
OBSERVED, DIMENSIONS, ACTIONS, ROWS = 3, 2, 4, 8
SMALL = NetworkConfig([16, 12])
MEMBERS: dict[str, Variant] = {
    "sac": SAC(network=SMALL),
    "sac_v1": SACv1(SMALL, reward_scale=5.0),
    "discrete_sac": DiscreteSAC(SMALL, q_clip=0.5, entropy_penalty=0.5, max_alpha=2.0),
    "redq": REDQ(network=SMALL, critics=4),
    "droq": DroQ(network=SMALL),
    "crossq": CrossQ(network=SMALL, critic_hidden=[16, 16], warmup=50),
    "tqc": TQC(network=SMALL, critic_hidden=[16], critics=3, quantiles=5),
    "simba": SimBa(actor_width=8, critic_width=8),
    "fastsac": FastSAC(network=SMALL, critic_hidden=[16], atoms=11),
}
LIKELIHOOD_RATIO = Gradient.likelihood_ratio
POLICIES: dict[str, Variant] = {
    "mixture": SAC(network=SMALL, policy=PolicyForm.mixture, components=3),
    "likelihood_ratio": SAC(network=SMALL, policy=PolicyForm.mixture, components=3, gradient=LIKELIHOOD_RATIO),
    "flow": SAC(network=SMALL, policy=PolicyForm.flow),
    **{f"several_{kind.value}": DiscreteSAC(SMALL, critic=kind) for kind in ActionCritic},
    "several_sampled": DiscreteSAC(SMALL, enumerate_up_to=0),
}
CASES = MEMBERS | POLICIES
EVERY = pytest.mark.parametrize("name", CASES)


def action_spec(name: str) -> TensorSpec:
    if isinstance(CASES[name], DiscreteSAC):
        return Categorical(ACTIONS) if name in MEMBERS else MultiCategorical([3, 2, 4])
    return Bounded(-1, 1, shape=DIMENSIONS)


def learner(name: str, execution: Execution, *, seed: int = 0, **settings: Any) -> Learner:
    torch.manual_seed(seed)
    agent = CASES[name].build(Specs(Unbounded(shape=OBSERVED), action_spec(name)), device=torch.device("cpu"))
    return LearnerConfig(**{"lr": 1e-2, **settings}, execution=execution).build(agent)


def batches(name: str, count: int) -> list[TensorDict]:
    generator = torch.Generator().manual_seed(42)

    def normal(*shape: int) -> Tensor:
        return torch.randn(ROWS, *shape, generator=generator, dtype=torch.get_default_dtype())

    def row() -> dict[str, Any]:
        following = {"observation": normal(OBSERVED), "reward": normal(1), "terminated": normal(1) > 1}
        if name == "discrete_sac":
            action = {"action": normal(ACTIONS).argmax(-1), "entropy": normal().abs()}
        elif isinstance(CASES[name], DiscreteSAC):
            action = {"action": torch.stack([normal(count).argmax(-1) for count in (3, 2, 4)], -1)}
        else:
            action = {"action": normal(DIMENSIONS).tanh()}
        return {"observation": normal(OBSERVED), **action, "next": following}

    return [TensorDict(row(), batch_size=[ROWS]) for _ in range(count)]


def test_every_variant_is_a_member() -> None:
    variants = {name: variant for head in TrainConfig.variants.values() for name, variant in head.items()}
    assert variants == {name: type(variant) for name, variant in MEMBERS.items()}


@pytest.mark.parametrize(
    ("name", "order"),
    [*((name, Order.together) for name in CASES), ("crossq", Order.critics_first), ("redq", Order.one_by_one)],
)
def test_captured_and_loaded_learners_train_bit_for_bit_as_the_eager_one(name: str, order: Order) -> None:
    def pair(seed: int) -> list[Learner]:
        return [
            learner(name, execution, seed=seed, order=order, actor_every=2)
            for execution in (Execution.eager, Execution.captured)
        ]

    (eager, captured), loaded, data = pair(0), pair(99), batches(name, 100)
    start = {key: tensor.clone() for key, tensor in tensors(eager.state_dict()["loss"]).items()}
    assert train(eager, data[:51]) == train(captured, data[:51])  # the next update leaves the actor out
    state = copy.deepcopy(captured.state_dict())
    for other in loaded:
        train(other, data[:2], seed=1)
        other.load_state_dict(state)
    expected = train(eager, data[51:])
    for other in (captured, *loaded):
        assert train(other, data[51:]) == expected
        assert_equal_state(eager, other)
    moved = {key for key, tensor in tensors(eager.state_dict()["loss"]).items() if not torch.equal(tensor, start[key])}
    assert {key for key in start if "network_params" in key} <= moved


@EVERY
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_hundred_compiled_updates_are_the_eager_ones(name: str) -> None:
    """But for the order in which sums are taken, in float64, where a hundred updates do not make much of it."""
    torch.set_default_dtype(torch.float64)
    try:
        eager, compiled = (
            learner(name, execution, lr=1e-3, actor_every=2) for execution in (Execution.eager, Execution.compiled)
        )
        data = batches(name, 100)
        for expected, found in zip(train(eager, data), train(compiled, data), strict=True):
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
        first, second = tensors(eager.state_dict()["loss"]), tensors(compiled.state_dict()["loss"])
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, rtol=1e-6, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_has_a_page_with_the_same_parts(name: str) -> None:
    headings = re.findall(r"^## (\w+)", (PAGES / f"{name}.md").read_text(), re.MULTILINE)
    wanted = ["Idea", "Equations", "Metrics", "Deviations", "Results"]
    assert [heading for heading in headings if heading in wanted] == wanted
