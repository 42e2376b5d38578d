"""Every part of a run on a device of its own: on a pretend GPU all of them do what they do on the CPU."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from pretend_device import CPU, counting, pretending
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase

import sac_torchrl as sac
from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.agents.variant import Variant
from sac_torchrl.collectors.experience import Experience
from sac_torchrl.envs.classic import TORCH
from sac_torchrl.envs.tensors import Pendulum
from sac_torchrl.errors import ConfigError
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.learner import Learner, LearnerConfig
from sac_torchrl.learner.precision import Precision
from sac_torchrl.replay.buffer import ReplayConfig, Storage
from sac_torchrl.runs import folder as run
from sac_torchrl.runs.checkpoint import CheckpointConfig, Checkpoints
from sac_torchrl.runs.evaluation import EvaluationConfig
from sac_torchrl.runs.folder import RunConfig

STEPS = 8  # before the checkpoint, and as many after it


class ShortPendulum(Pendulum):
    """Ends often enough for every kind of row."""

    def __init__(self, count: int, device: torch.device) -> None:
        super().__init__(count, device)
        self.limit = 4


ENVIRONMENTS = {
    "gymnasium": sac.EnvConfig("Pendulum-v1", count=2, max_episode_steps=4),
    "tensors": sac.EnvConfig("torch/short", count=4),
    "discrete": sac.EnvConfig("torch/cartpole", count=4),
}


VARIANTS: dict[str, Callable[[], Variant]] = {
    "sac": lambda: sac.SAC(network=sac.NetworkConfig([8])),
    "sac_v1": lambda: sac.SACv1(network=sac.NetworkConfig([8])),
    "redq": lambda: sac.REDQ(network=sac.NetworkConfig([8]), critics=3),
    "droq": lambda: sac.DroQ(network=sac.NetworkConfig([8])),
    "crossq": lambda: sac.CrossQ(network=sac.NetworkConfig([8]), critic_hidden=[8]),
    "tqc": lambda: sac.TQC(network=sac.NetworkConfig([8]), critic_hidden=[8]),
    "simba": lambda: sac.SimBa(actor_width=8, critic_width=8),
    "fastsac": lambda: sac.FastSAC(network=sac.NetworkConfig([8]), critic_hidden=[8], atoms=11),
    "discrete_sac": lambda: sac.DiscreteSAC(network=sac.NetworkConfig([8])),
}


@dataclass(frozen=True)
class Setting:
    """What the numbers of a run depend on."""

    environment: str = "tensors"
    n_steps: int = 1
    prioritized: bool = False
    normalize: bool = False
    variant: str = "sac"


@dataclass
class Parts:
    """A run."""

    agent: Agent
    learner: Learner
    buffer: TensorDictReplayBuffer
    experience: Experience
    frames: Iterator[int]
    checkpoints: Checkpoints
    test_env: EnvBase

    def go(self, steps: int) -> None:
        """So many steps of every environment, with an update each once there are rows."""
        for _, _ in zip(range(steps), self.frames, strict=False):
            self.agent.observe(self.buffer)
            if len(self.buffer):
                batch = self.buffer.sample()
                self.learner.update(batch)
                self.buffer.update_tensordict_priority(batch)

    def outcome(self) -> dict[str, Tensor]:
        """All that it leaves: weights, rows, and what is logged."""
        evaluation = sac.evaluate(self.agent.actor, self.test_env, episodes=3, seed=5)
        metrics = self.learner.metrics() | self.experience.metrics() | evaluation.metrics()
        metrics.pop("time/frames_per_second")
        rows = self.buffer.storage[:].flatten_keys(".").cpu()
        weights = {name: value.detach().cpu() for name, value in self.agent.loss.state_dict().items()}
        return weights | dict(rows.items()) | {name: torch.tensor(value) for name, value in metrics.items()}


def build(setting: Setting, folder: Path, device: torch.device, storage: Storage, execution: Execution) -> Parts:
    torch.manual_seed(0)
    env = ENVIRONMENTS[setting.environment]
    specs = replace(env.specs(), n_steps=setting.n_steps)
    agent = VARIANTS[setting.variant]().build(specs, device=device)
    if setting.normalize:
        agent = with_normalization(agent, specs, device=device)
    buffer = ReplayConfig(capacity=60, storage=storage, prioritized=setting.prioritized).build(
        folder / "rows", specs, rows=10**6, batch_size=16, seed=1, device=device
    )
    learner = LearnerConfig(execution=execution).build(agent)
    experience = sac.Direct().build(
        env, agent.actor, buffer, specs=specs, total_frames=10**6, random_frames=2 * env.count, seed=2
    )
    checkpoints = CheckpointConfig().build(folder / "checkpoints", buffer, learner=learner, experience=experience)
    torch.manual_seed(3)
    return Parts(agent, learner, buffer, experience, iter(experience), checkpoints, env.build(count=2, device=device))


@pytest.fixture(autouse=True)
def _short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TORCH, "short", ShortPendulum)


@cache
def on_the_cpu(setting: Setting) -> dict[str, Tensor]:
    """What comes of the run on the CPU, in one go and without a recording."""
    with TemporaryDirectory() as folder:
        parts = build(setting, Path(folder), CPU, Storage.ram, Execution.eager)
        parts.go(2 * STEPS)
        return parts.outcome()


def check(setting: Setting, storage: Storage, execution: Execution, folder: Path) -> None:
    """Collect, update, save, resume, collect, update and evaluate on the device, and compare."""
    with pretending() as device:
        first = build(setting, folder, device, storage, execution)
        first.go(STEPS)
        first.checkpoints.save(first.experience.frames)
        second = build(setting, folder, device, storage, execution)
        second.checkpoints.restore()
        second.go(STEPS)
        found = second.outcome()
    expected = on_the_cpu(setting)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


FIRST = list(itertools.product(("gymnasium", "tensors"), Storage, (1, 3), (False, True)))
THEN = list(itertools.product((False, True), (Execution.eager, Execution.captured)))
MATRIX = [(*first, *then) for first in FIRST for then in THEN]
# All of the first four with each other, and each value of these with each of the other two. The rest is slow.
CHOSEN = [
    (*first, (storage is Storage.ram) ^ prioritized ^ (n_steps == 3), tuple(Execution)[(place // 2 + place // 12) % 2])
    for place, first in enumerate(FIRST)
    for _, storage, n_steps, prioritized in [first]
]


@pytest.mark.parametrize(
    ("environment", "storage", "n_steps", "prioritized", "normalize", "execution"),
    [pytest.param(*row, marks=() if row in CHOSEN else pytest.mark.slow) for row in MATRIX],
)
def test_a_run_on_a_gpu_is_that_on_the_cpu(
    environment: str,
    storage: Storage,
    n_steps: int,
    prioritized: bool,
    normalize: bool,
    execution: Execution,
    tmp_path: Path,
) -> None:
    check(Setting(environment, n_steps, prioritized, normalize), storage, execution, tmp_path)


@pytest.mark.parametrize("variant", list(VARIANTS)[1:])
def test_every_variant_trains_on_a_gpu_as_on_the_cpu(variant: str, tmp_path: Path) -> None:
    environment = "discrete" if variant == "discrete_sac" else "tensors"
    setting = Setting(environment, normalize=variant == "fastsac", variant=variant)
    check(setting, Storage.device, Execution.captured, tmp_path)


def test_the_first_command_takes_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sac.TrainConfig(
        total_frames=40,
        random_frames=20,
        batch_size=8,
        run=RunConfig(str(tmp_path / "run")),
        evaluate=EvaluationConfig(20, 1),
    )
    with pretending() as device:
        monkeypatch.setattr(run, "resolve_device", lambda name: {"auto": device}[name])
        sac.train(config)
    assert "on pretend, seed 0" in (tmp_path / "run" / "run.log").read_text()
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.parametrize(("variant", "n_steps"), [("sac", 1), ("sac", 3), ("fastsac", 1)])
def test_nothing_waits_for_the_gpu_between_two_log_lines(variant: str, n_steps: int, tmp_path: Path) -> None:
    setting = Setting(n_steps=n_steps, normalize=variant == "fastsac", variant=variant)
    with pretending() as device:
        parts = build(setting, tmp_path, device, Storage.device, Execution.captured)
        parts.go(1)
        with counting() as opening:
            parts.go(1)  # random actions
        parts.go(STEPS)
        with counting() as counts:
            parts.go(3)
            batch = parts.buffer.sample()
            parts.learner.update(batch)
        with counting() as evaluating:
            sac.evaluate(parts.agent.actor, parts.test_env, episodes=2, seed=0)
    assert counts.operators["graph"] == 7  # three steps, four updates
    assert counts.waits == {}
    assert not [wait for wait in opening.waits if "collectors" in wait]  # the first updates may compile
    assert sum(evaluating.waits.values()) < 10  # of fifty steps


@pytest.mark.parametrize("discrete", [False, True])
def test_several_updates_are_one_graph_unless_the_host_sets_something_between(discrete: bool, tmp_path: Path) -> None:
    """SAC's are; with discrete actions the entropy target moves from update to update."""
    setting = Setting("discrete", variant="discrete_sac") if discrete else Setting()
    ends = []
    for device, at_once in ((CPU, 1), (None, 4)):
        with pretending() if device is None else nullcontext(device) as place:
            parts = build(setting, tmp_path / str(at_once), place, Storage.device, Execution.captured)
            parts.go(6)
            torch.manual_seed(4)
            data = [parts.buffer.sample() for _ in range(20)]
            for first in range(0, 16, at_once):
                parts.learner.update(*data[first : first + at_once])
            with counting() as counts:
                for first in range(16, 20, at_once):
                    parts.learner.update(*data[first : first + at_once])
            ends.append(parts.learner.metrics())
    assert ends[0] == pytest.approx(ends[1], rel=1e-4, abs=1e-5)
    assert counts.operators["graph"] == (4 if discrete else 1)
    assert counts.waits == {}


def test_priorities_are_not_set_for_several_updates_at_once() -> None:
    with pytest.raises(ConfigError, match=r"learner\.at_once=2: .* give 1, or replay\.prioritized=false"):
        sac.TrainConfig(learner=LearnerConfig(at_once=2), replay=ReplayConfig(prioritized=True))


def test_tf32_holds_for_an_update_alone_and_is_refused_on_the_cpu(tmp_path: Path) -> None:
    seen = []
    with pretending() as device:
        agent = VARIANTS["sac"]().build(ENVIRONMENTS["tensors"].specs(), device=device)
        learner = LearnerConfig(execution=Execution.eager, precision=Precision.tf32).build(agent)
        agent.loss.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.matmul.fp32_precision))
        rows = torch.zeros(4, 3, device=device)
        learner.update(
            TensorDict(
                {
                    "observation": rows,
                    "action": rows[:, :1],
                    "next": {"observation": rows, "reward": rows[:, :1], "terminated": rows[:, :1].bool()},
                },
                batch_size=4,
            )
        )
    assert seen == ["tf32"] and torch.backends.cuda.matmul.fp32_precision != "tf32"
    config = sac.TrainConfig(
        device="cpu", learner=LearnerConfig(precision=Precision.tf32), run=RunConfig(str(tmp_path / "run"))
    )
    with pytest.raises(ConfigError, match="tf32 is for GPUs"), sac.open_run(config):
        pass
    assert not (tmp_path / "run").exists()
