"""Tests 26 to 31: bad input is named and stops, before it is stored, learned from or saved."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import faulty
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import TensorDictReplayBuffer

from sac_torchrl import (
    SAC,
    Async,
    CheckpointConfig,
    Direct,
    EnvConfig,
    Execution,
    Learner,
    LearnerConfig,
    NetworkConfig,
    Processes,
    ReplayConfig,
    SacError,
    Specs,
    Storage,
    evaluate,
    tanh_normal_actor,
)
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.collectors.experience import Experience
from sac_torchrl.envs.state import capture, restore
from sac_torchrl.envs.tensors import Pendulum
from sac_torchrl.errors import ConfigError, EnvironmentFault, LearnerFault
from sac_torchrl.learner.finite import FiniteFlag, not_finite
from sac_torchrl.specs import SPAN

pytestmark = pytest.mark.timeout(300)
CPU = torch.device("cpu")


class Constant(nn.Module):
    """Parameters of a policy whose actions are about `tanh(height)`."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(height))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.height.expand(*observation.shape[:-1], 1), observation[..., :1] * 0 - 20], -1)


def collect(
    folder: Path, id: str, *, height: float = 0.0, collector: CollectorConfig | None = None, frames: int = 100
) -> tuple[Experience, TensorDictReplayBuffer]:
    collector = collector or Direct()
    plan = EnvConfig(id, plugins=["faulty"])
    specs = plan.specs()
    buffer = ReplayConfig(1_000, Storage.ram).build(folder, specs, rows=1_000, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(Constant(height), specs)
    experience = collector.build(plan, actor, buffer, specs=specs, total_frames=frames, random_frames=0, seed=1)
    return experience, buffer


FAULTS = [
    ("observation-nan", "observation .* not finite at index 0"),
    ("observation-inf", "observation .* not finite at index 1"),
    ("observation-long", r"observation .* of shape \(3,\), not \(2,\)"),
    ("observation-empty", r"observation .* of shape \(0,\)"),
    ("observation-none", "observation None, which holds no real numbers"),
    ("observation-words", "observation .* which holds no real numbers"),
    ("observation-objects", "observation .* which holds no real numbers"),
    ("observation-complex", "observation .* which holds no real numbers"),
    ("reward-nan", "reward nan, which is not finite"),
    ("reward-inf", "reward -inf, which is not finite"),
    ("reward-none", "reward None, which is no number"),
    ("reward-array", "reward array.* which is no number"),
    ("reward-complex", "reward 1j, which is no number"),
    ("reward-text", "reward '1.0', which is no number"),
    ("result-none", "returned None, not"),
    ("result-four", r"returned \(array.*, not \(observation"),
    ("terminated-none", "terminated=None, which is neither"),
    ("raises", r"raised ArithmeticError: the arm is stuck \(faulty.py:\d+\)"),
]


def check_fault(folder: Path, collector: CollectorConfig, name: str, complaint: str, *, when: int) -> None:
    """The failure names environment, step, field and value; what came before it is stored, and nothing else."""
    id = f"Faulty-{name}-v0" if when == faulty.WHEN else f"Faulty-{name}-at-{when}-v0"
    experience, buffer = collect(folder, id, collector=collector, frames=when + 100)
    with pytest.raises(SacError, match=rf"{id} .*{complaint}.* at step {when} ") as fault:
        list(experience)
    assert fault.value.exit_code == 69
    assert "\n" not in str(fault.value)
    # The last steps of a worker with a policy may not have been taken yet: eight come at once where pipelined.
    lost = when - 1 - experience.frames
    pipelined = isinstance(collector, Processes) and collector.pipelined
    assert 0 <= lost <= (16 if isinstance(collector, Async) else 7 * pipelined)
    assert buffer.write_count == experience.frames
    assert not_finite(buffer.storage[:].items(True, True)) is None


@pytest.mark.parametrize("when", [1, faulty.WHEN])
@pytest.mark.parametrize(("name", "complaint"), FAULTS, ids=[name for name, _ in FAULTS])
def test_a_faulty_environment_is_named_and_its_row_is_not_stored(
    tmp_path: Path, name: str, complaint: str, when: int
) -> None:
    check_fault(tmp_path, Direct(), name, complaint, when=when)


@pytest.mark.parametrize(("name", "complaint"), FAULTS, ids=[name for name, _ in FAULTS])
def test_a_faulty_environment_in_a_worker_is_named_and_its_row_is_not_stored(
    tmp_path: Path, name: str, complaint: str
) -> None:
    check_fault(tmp_path, Processes(workers=1, timeout=1000), name, complaint, when=1)


KINDS = {
    "direct": Direct(),
    "processes": Processes(workers=1, timeout=1000),
    "pipelined": Processes(workers=1, timeout=1000, pipelined=True),
    "async": Async(workers=1, timeout=1000),
}


@pytest.mark.parametrize("kind", ["pipelined", "async"])
@pytest.mark.parametrize(("name", "complaint"), FAULTS[:1] + FAULTS[-1:], ids=["observation-nan", "raises"])
def test_a_faulty_environment_in_a_worker_with_a_policy_is_named(
    tmp_path: Path, kind: str, name: str, complaint: str
) -> None:
    check_fault(tmp_path, KINDS[kind], name, complaint, when=faulty.WHEN)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", [1, 10_000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "complaint"), FAULTS, ids=[name for name, _ in FAULTS])
def test_every_fault_is_named_early_and_late_wherever_the_environment_is(
    tmp_path: Path, name: str, complaint: str, kind: str, when: int
) -> None:
    check_fault(tmp_path, KINDS[kind], name, complaint, when=when)


def episodes(rows: TensorDict) -> list[int]:
    """The lengths of the chains that rows of one frame make: each observes what the one before led to."""
    seen, led_to = ([tuple(row) for row in rows.get(key).tolist()] for key in ("observation", ("next", "observation")))
    after = {observation: row for row, observation in enumerate(seen)}
    lengths = []
    for first in range(len(rows)):
        if seen[first] not in led_to:
            lengths.append(1)
            row = first
            while led_to[row] in after:
                row = after[led_to[row]]
                lengths[-1] += 1
    return lengths


def collect_glitches(folder: Path, kind: str, *, n_steps: int) -> tuple[Experience, Any]:
    """Collect 12 x 8 sound frames of two environments whose every 13th step is faulty."""
    plan = EnvConfig("Glitch-v0", 2, plugins=["faulty"], faults=100)
    specs = replace(plan.specs(), n_steps=n_steps)
    buffer = ReplayConfig(1_000, Storage.ram).build(folder, specs, rows=1_000, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(Constant(0.0), specs)
    experience = KINDS[kind].build(plan, actor, buffer, specs=specs, total_frames=96, random_frames=0, seed=1)
    assert sum(experience) == 96
    return experience, buffer.storage[:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_step_that_is_allowed_is_not_stored_and_cuts_its_episode(tmp_path: Path, kind: str) -> None:
    experience, rows = collect_glitches(tmp_path, kind, n_steps=1)
    assert len(rows) == 96
    assert not_finite(rows.items(True, True)) is None
    assert sorted(episodes(rows)) == [2] * 8 + [10] * 8
    metrics = experience.metrics()
    assert metrics["train/length"] == 10  # those that were cut are nobody's return
    assert metrics["train/faults"] in (6, 7, 8)  # the last may come after the last frame


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_reaches_beyond_a_faulty_step(tmp_path: Path, kind: str) -> None:
    _, rows = collect_glitches(tmp_path, kind, n_steps=3)
    assert not_finite(rows.items(True, True)) is None
    spans = rows[SPAN].flatten().tolist()
    # An episode of ten has rows of 3, ..., 3, 2 and 1 frames, one that was cut after two has 2 and 1. The rows of the
    # last two that were cut may be held back.
    assert {span: spans.count(span) for span in set(spans)}[3] == 8 * 8
    assert 14 <= spans.count(2) == spans.count(1) <= 16


@pytest.mark.parametrize("kind", KINDS)
def test_one_faulty_step_more_than_allowed_ends_the_run(tmp_path: Path, kind: str) -> None:
    plan = EnvConfig("Faulty-reward-nan-v0", plugins=["faulty"], faults=2)
    specs = plan.specs()
    buffer = ReplayConfig(1_000, Storage.ram).build(tmp_path, specs, rows=1_000, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(Constant(0.0), specs)
    experience = KINDS[kind].build(plan, actor, buffer, specs=specs, total_frames=99, random_frames=0, seed=1)
    with pytest.raises(SacError, match=f"at step {faulty.WHEN + 2} ") as fault:
        list(experience)
    assert fault.value.exit_code == 69
    assert experience.frames <= faulty.WHEN - 1
    assert not_finite(buffer.storage[:].items(True, True)) is None


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (EnvConfig("Sound-v0", plugins=["faulty"], faults=-1), "env.faults=-1: give 0 or more"),
        (EnvConfig("torch/pendulum", faults=1), "a fault of one ends the run"),
    ],
)
def test_a_number_of_faults_that_cannot_be_is_refused(plan: EnvConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plan.specs()


def test_a_run_that_a_fault_ended_resumes_where_faults_are_allowed() -> None:
    strict, tolerate_faults = (EnvConfig("Sound-v0", plugins=["faulty"], faults=faults) for faults in (0, 5))
    first, second = strict.build(seed=0, tolerate_faults=True), tolerate_faults.build(seed=1, tolerate_faults=True)
    for env in (first, second):
        env.reset()
    for ours, theirs in ((first, second), (second, first)):
        restore(theirs, capture(ours))
    root = first.rand_step(first.reset())
    assert torch.equal(second.step(second.reset().set("action", root["action"]))["next", "observation"],
                       root["next", "observation"])  # fmt: skip


def test_observations_of_another_type_than_declared_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        for _ in range(2):
            env = EnvConfig("Double-v0", count=2, plugins=["faulty"]).build(seed=0)
            env.rollout(3)
    assert [record.message for record in caplog.records if "Double" in record.message] == [
        "env.id=Double-v0 observes float64, where its space says float32: the agent sees float32"
    ]


def test_evaluation_is_guarded_too() -> None:
    env = EnvConfig("Faulty-reward-nan-v0", plugins=["faulty"], faults=100)
    actor = tanh_normal_actor(Constant(0.0), env.specs())
    with pytest.raises(EnvironmentFault, match="reward nan"):
        evaluate(actor, env.build(), episodes=5, seed=0)


@pytest.mark.parametrize("height", [float("nan"), float("inf")])
def test_a_poisoned_policy_is_stopped_before_the_environment(
    tmp_path: Path, height: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: list[Any] = []
    monkeypatch.setattr(faulty.Sound, "step", lambda self, action: stepped.append(action))
    experience, buffer = collect(tmp_path, "Sound-v0", height=float("nan") if height != height else height)
    if height == height:
        cast(Any, experience._job.actor).module[0].module[0].height.data.fill_(float("nan"))
    with pytest.raises(LearnerFault, match=r"the policy chose the action \[nan\] in env.id=Sound-v0") as fault:
        list(experience)
    assert fault.value.exit_code == 70
    assert stepped == []
    assert len(buffer) == 0


def test_a_watch_remembers_that_a_number_was_not_finite() -> None:
    watch = FiniteFlag()
    watch.see([torch.full((3,), 3e38), torch.tensor(-1.0)])
    seen = [watch.finite]
    watch.see([torch.tensor([0.0, float("inf")])])
    watch.see([torch.tensor([0.0, 1.0])])
    assert [*seen, watch.finite] == [True, False]


def test_a_poisoned_tensor_environment_is_neither_logged_nor_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Pendulum.take

    def poisoned(self: Pendulum, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        observation, reward, terminated, truncated = sound(self, action)
        reward[1] = float("nan")
        return observation, reward, terminated, truncated

    monkeypatch.setattr(Pendulum, "take", poisoned)
    plan = EnvConfig("torch/pendulum", 3)
    env_specs = plan.specs()
    buffer = ReplayConfig(100, Storage.ram).build(tmp_path, env_specs, rows=100, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(nn.Linear(3, 2), env_specs)
    experience = Direct().build(plan, actor, buffer, specs=env_specs, total_frames=99, random_frames=0, seed=1)
    assert next(iter(experience)) == 3
    for look in (experience.metrics, experience.state_dict):
        with pytest.raises(EnvironmentFault, match="not finite, in the 3 frames up to 3"):
            look()


def learner(execution: Execution = Execution.eager) -> Learner:
    torch.manual_seed(0)
    return LearnerConfig(execution=execution).build(SAC(network=NetworkConfig([8])).build(specs(), device=CPU))


def specs() -> Specs:
    return EnvConfig("Pendulum-v1").specs()


def batch(reward: float = 0.0) -> TensorDict:
    one = TensorDict({"observation": torch.zeros(4, 3), "action": torch.zeros(4, 1)}, batch_size=[4])
    one["next", "observation"] = torch.zeros(4, 3)
    one["next", "reward"] = torch.tensor([[0.0], [reward], [0.0], [0.0]])
    one["next", "terminated"] = one["next", "done"] = torch.zeros(4, 1, dtype=torch.bool)
    return one


@pytest.mark.parametrize("poison", ["batch", "parameter", "moment", "alpha"])
def test_a_poisoned_learner_is_neither_logged_nor_saved_and_the_last_checkpoint_stays(
    tmp_path: Path, poison: str
) -> None:
    one = learner()
    one.update(batch())
    buffer = ReplayConfig(10, Storage.ram).build(tmp_path, specs(), rows=10, batch_size=1, seed=0, device=CPU)
    checkpoints = CheckpointConfig().build(tmp_path / "checkpoints", buffer, learner=one)
    kept = checkpoints.save(1)
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*.*")}
    parameter = next(iter(one.agent.loss.parameters()))
    if poison == "parameter":
        parameter.data.view(-1)[0] = float("inf")
    elif poison == "moment":
        # Adam divides by it: the parameters stay finite, and stand still.
        moments = next(iter(one.optimizers["loss_qvalue"].state.values()))
        moments["exp_avg_sq"].view(-1)[0] = float("inf")
    elif poison == "alpha":
        one.agent.loss.log_alpha.data.fill_(float("nan"))
    one.update(batch(float("nan") if poison == "batch" else 0.0))
    for look in (one.metrics, lambda: checkpoints.save(2)):
        with pytest.raises(LearnerFault, match="is not finite after 2 updates") as fault:
            look()
        assert fault.value.exit_code == 70
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*.*")} == files
    assert kept.is_dir()
