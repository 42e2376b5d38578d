"""One matrix: the same updates however they are executed, and after a resume, whatever is trained."""

import copy
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from training import assert_equal_state, tensors, train

from sac_torchrl import (
    Execution,
    Learner,
    LearnerConfig,
    NetworkConfig,
    Order,
    Precision,
    ReplayConfig,
    Specs,
    Storage,
    TrainConfig,
)
from sac_torchrl.agents.crossq import CrossQ
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.droq import DroQ
from sac_torchrl.agents.fastsac import FastSAC
from sac_torchrl.agents.heads import PolicyForm
from sac_torchrl.agents.mixture import Gradient
from sac_torchrl.agents.multi_discrete import ActionCritic
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.agents.redq import REDQ
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.sac_v1 import SACv1
from sac_torchrl.agents.simba import SimBa
from sac_torchrl.agents.tqc import TQC
from sac_torchrl.agents.variant import Variant
from sac_torchrl.config.layers import SHIPPED, read
from sac_torchrl.config.recipes import configure
from sac_torchrl.specs import ENTROPY, SPAN, HybridAction

CPU = torch.device("cpu")
ROWS = 8
VECTOR, BOX, DISCRETE, SEVERAL = (
    Unbounded(shape=3),
    Bounded(-1, 1, shape=2),
    Categorical(4),
    MultiCategorical([3, 2, 4]),
)
SMALL = NetworkConfig([16, 12])
MEMBERS: dict[str, Variant] = {
    "sac": SAC(network=SMALL),
    "sac_v1": SACv1(SMALL, reward_scale=5.0),
    "discrete_sac": DiscreteSAC(SMALL, q_clip=0.5, entropy_penalty=0.5, max_alpha=2.0),
    "redq": REDQ(network=SMALL, critics=4),
    "droq": DroQ(network=SMALL),
    "crossq": CrossQ(network=SMALL, critic_hidden=[16, 16], warmup=4),
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
    "hybrid": SAC(network=SMALL),
}
ACTIONS = {"several": SEVERAL, "hybrid": Bounded(-1, 1, shape=4)}
HYBRID = HybridAction((3, 2), 2, ((0,), (1,), (0, 1), (), (0,), (1,)))


@dataclass
class Case:
    """What is trained: an agent on spaces, with settings of its learner."""

    variant: Variant
    observation: TensorSpec = field(default_factory=VECTOR.clone)
    action: TensorSpec | None = None
    learning: dict[str, Any] = field(default_factory=dict)
    normalize: bool = False
    prioritized: bool = False
    updates: int = 0  # that are done already

    def specs(self) -> Specs:
        discrete = isinstance(self.variant, DiscreteSAC)
        action = self.action or (DISCRETE if discrete else BOX)
        hybrid = HYBRID if action is ACTIONS["hybrid"] else None
        return Specs(self.observation, action, n_steps=3 * self.prioritized or 1, hybrid=hybrid)

    def learner(self, execution: Execution, *, seed: int = 0, **settings: Any) -> Learner:
        torch.manual_seed(seed)
        agent = self.variant.build(self.specs(), device=CPU)
        if self.normalize:
            agent = with_normalization(agent, self.specs(), device=CPU)
        learner = LearnerConfig(**{"lr": 1e-2, **self.learning, **settings, "execution": execution}).build(agent)
        learner.updates = self.updates
        return learner

    def batches(self, count: int) -> list[TensorDict]:
        torch.manual_seed(42)
        return [self._batch() for _ in range(count)]

    def _batch(self) -> TensorDict:
        terminated = torch.randn(ROWS, 1) > 1
        following = {"observation": self._observed(terminated), "reward": torch.randn(ROWS, 1)}
        rows = {
            "observation": self._observed(),
            "action": self._action(),
            "next": following | {"terminated": terminated},
            SPAN: torch.randint(1, 4, (ROWS, 1), dtype=torch.int32),
            ENTROPY: torch.rand(ROWS),
        }
        if self.prioritized:
            rows["priority_weight"] = torch.rand(ROWS)
        return TensorDict(rows, batch_size=[ROWS])

    def _action(self) -> Tensor:
        spec = self.specs().action
        if isinstance(spec, Bounded):
            return torch.randn(ROWS, *spec.shape).tanh()
        chosen: Tensor = spec.rand(torch.Size([ROWS]))
        return chosen.zero_() if isinstance(self.observation, Composite) else chosen  # the action that is always legal

    def _observed(self, terminated: Tensor | None = None) -> Any:
        if isinstance(self.observation, Categorical):
            return self.observation.rand(torch.Size([ROWS]))
        seen = torch.randn(ROWS, 3)
        if not isinstance(self.observation, Composite):
            return seen
        legal = torch.rand(ROWS, self.observation["action_mask"].shape[0]) < 0.5
        legal[:, [0] if self.action is None else [0, 3, 5]] = True
        if terminated is not None:
            legal &= ~terminated
        return {"action_mask": legal, "seen": seen}


def system(name: str) -> Case:
    """A preset on narrow networks, two updates before its target networks move next."""
    config = configure(read(SHIPPED / "presets" / f"{name}.yaml").head or "continuous", preset=name)
    assert isinstance(config.variant, SAC | SACv1 | DiscreteSAC)
    config.variant.network.hidden = [10, 8]
    return Case(config.variant, learning=vars(config.learner), updates=1_998)


def masked(action: TensorSpec | None, count: int) -> Case:
    legal = Composite(action_mask=Binary(count, dtype=torch.bool), seen=Unbounded(torch.Size([3])))
    return Case(DiscreteSAC(SMALL), legal, action)


DELAYED = {"actor_every": 2, "actor_updates": 2, "target_every": 3}
PLAIN: dict[str, Variant] = {"sac": SAC(network=SMALL), "discrete": DiscreteSAC(SMALL)}
SYSTEMS = ["spinup", "haarnoja2018a", "softlearning", "pytorch_sac", "cleanrl", "sb3", "tianshou", "torchrl"]
SYSTEMS += ["jaxrl", "christodoulou2019", "sd_sac", "haarnoja2018_gmm", "haarnoja2018_lsp"]
CASES: dict[str, Case] = {
    **{name: Case(variant, learning={"actor_every": 2}) for name, variant in MEMBERS.items()},
    **{
        name: Case(variant, action=ACTIONS.get(name.partition("_")[0]), learning={"actor_every": 2})
        for name, variant in POLICIES.items()
    },
    "crossq-critics_first": Case(MEMBERS["crossq"], learning={"order": Order.critics_first}),
    "redq-one_by_one": Case(MEMBERS["redq"], learning={"order": Order.one_by_one}),
    **{
        f"{name}-{order.value}": Case(variant, learning={"order": order, **DELAYED})
        for name, variant in PLAIN.items()
        for order in Order
    },
    "sac-fixed_alpha": Case(SAC(network=SMALL, fixed_alpha=True)),
    "discrete-fixed_alpha": Case(DiscreteSAC(SMALL, fixed_alpha=True)),
    "sac-states": Case(PLAIN["sac"], Categorical(5)),
    "discrete-states": Case(PLAIN["discrete"], Categorical(5)),
    "sac-embedding": Case(SAC(network=NetworkConfig([16], 4)), Categorical(5)),
    "discrete-embedding": Case(DiscreteSAC(NetworkConfig([16], 4)), Categorical(5)),
    "sac-bfloat16": Case(PLAIN["sac"], learning={"precision": Precision.bfloat16}),
    "discrete-masked": masked(None, 4),
    "several-masked": masked(SEVERAL, 9),
    **{
        f"{name}-normalized": Case(MEMBERS[name], normalize=True) for name in ("sac", "simba", "crossq", "discrete_sac")
    },
    **{
        f"{name}-prioritized": Case(MEMBERS[name], prioritized=True, learning={"actor_every": 2})
        for name in ("sac", "droq", "crossq", "tqc")
    },
    "sac-normalized-prioritized": Case(
        PLAIN["sac"], prioritized=True, normalize=True, learning={"order": Order.critics_first}
    ),
    **{f"preset-{name}": system(name) for name in SYSTEMS},
}


def test_every_variant_is_a_member() -> None:
    variants = {name: variant for head in TrainConfig.variants.values() for name, variant in head.items()}
    assert variants == {name: type(variant) for name, variant in MEMBERS.items()}


def trained(learner: Learner, data: list[TensorDict], *, seed: int = 7) -> list[Any]:
    """The metrics of an update on every batch, with the errors of its rows where they have priorities."""
    own = [batch.clone() for batch in data]
    metrics = train(learner, own, seed=seed)
    return [
        one | {"rows": batch.get("td_error", torch.zeros(0)).tolist()} for one, batch in zip(metrics, own, strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_captured_updates_are_bit_for_bit_the_eager_ones_loaded_or_not(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    executions = (Execution.eager, Execution.captured)
    eager, captured = (case.learner(execution) for execution in executions)
    loaded = [case.learner(execution, seed=99) for execution in executions if name in MEMBERS | POLICIES]
    rows = ReplayConfig(50, Storage.ram).build(tmp_path, case.specs(), rows=50, batch_size=1, seed=0, device=CPU)
    data = case.batches(14)
    start = {key: tensor.clone() for key, tensor in tensors(eager.state_dict()["loss"]).items()}

    def observed(batch: TensorDict, *learners: Learner) -> None:
        """New rows move the statistics of observations, between two updates."""
        if case.normalize:
            rows.extend(batch)
            for learner in learners:
                learner.agent.observe(rows)

    observed(data[0], eager, captured, *loaded)
    first = trained(eager, data[:7])  # the next update leaves a delayed actor out
    assert trained(captured, data[:7]) == first
    assert all((len(metrics["rows"]) == ROWS and min(metrics["rows"]) > 0) == case.prioritized for metrics in first)
    state = copy.deepcopy(captured.state_dict())
    for other in loaded:
        train(other, data[:2], seed=1)
        other.load_state_dict(state)
    observed(data[1], eager, captured, *loaded)
    expected = trained(eager, data[7:])
    assert all(math.isfinite(value) for metrics in expected for value in metrics.values() if isinstance(value, float))
    for other in (captured, *loaded):
        assert trained(other, data[7:]) == expected
        assert_equal_state(eager, other)
    moved = {key for key, tensor in tensors(eager.state_dict()["loss"]).items() if not torch.equal(tensor, start[key])}
    assert {key for key in start if "network_params" in key} <= moved


@pytest.mark.parametrize(
    "name", [name if name == "sac" else pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS | POLICIES]
)
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_updates_are_the_eager_ones(name: str) -> None:
    """But for the order in which sums are taken, in float64, where 14 updates do not make much of it."""
    torch.set_default_dtype(torch.float64)
    try:
        case = CASES[name]
        eager, compiled = (case.learner(execution, lr=1e-3) for execution in (Execution.eager, Execution.compiled))
        data = case.batches(14)
        for expected, found in zip(train(eager, data), train(compiled, data), strict=True):
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
        first, second = tensors(eager.state_dict()["loss"]), tensors(compiled.state_dict()["loss"])
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, rtol=1e-6, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)
