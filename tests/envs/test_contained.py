"""What an environment does to the process: undone, refused, or the end of the run with an exit code that is not 0."""

import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import configuration, digest, table
from training import tensors

from sac_torchrl import train
from sac_torchrl.agents.policies import tanh_normal_actor
from sac_torchrl.envs import adapter, contained, generators
from sac_torchrl.envs.check import check_env
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.findings import Kind
from sac_torchrl.envs.vector import seeds
from sac_torchrl.errors import ConfigError, EnvironmentFault, SacError
from sac_torchrl.replay.packing import PackedReplayBuffer
from sac_torchrl.runs import snapshot
from sac_torchrl.runs.evaluation import evaluate


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    contained._tell.cache_clear()


def short_run(folder: Path, id: str, **changes: Any) -> Any:
    config = configuration(folder, id, plugins=["unruly"])
    config.total_frames = 80
    config.checkpoint.every = config.evaluate.every = 40
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def state() -> tuple[Any, ...]:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)]
    settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), handlers
    return *settings, logging.root.disabled, list(warnings.filters)


@pytest.mark.parametrize(
    ("id", "what"),
    [
        ("Grad", "grad mode"),
        ("Dtype", "default dtype"),
        ("Threads", "number of threads"),
        ("Silence", "logging"),
        ("Warnings", "warnings"),
        ("Handlers", "handlers of signals"),
    ],
)
def test_what_it_changes_is_put_back_and_the_run_is_the_sound_one(tmp_path: Path, id: str, what: str) -> None:
    before = state()
    train(short_run(tmp_path / "unruly", f"{id}-v0"))
    assert state() == before
    train(short_run(tmp_path / "sound", "Sound-v0"))
    one, other = (
        tensors(snapshot.verify(tmp_path / name / "checkpoints" / "80").state) for name in ("unruly", "sound")
    )
    assert len(one) > 20 and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    said = [line for line in (tmp_path / "unruly" / "run.log").read_text().splitlines() if "WARNING" in line]
    assert len(said) == 1 and what in said[0] and f"env.id={id}-v0" in said[0]


def actions(monkeypatch: pytest.MonkeyPatch, folder: Path, id: str, **changes: Any) -> list[float]:
    taken: list[float] = []
    extend = PackedReplayBuffer.extend_packed

    def extended(self: PackedReplayBuffer, packed: torch.Tensor) -> Any:
        taken.extend(self._storage.packing.unpack(packed)["action"].flatten().tolist())
        return extend(self, packed)

    with monkeypatch.context() as patch:
        patch.setattr(PackedReplayBuffer, "extend_packed", extended)
        train(short_run(folder, id, **{"random_frames": 0, "replay_ratio": 0.0125} | changes))
    return taken


@pytest.mark.parametrize("id", ["Reseeds-v0", "ReseedsAtReset-v0"])
def test_one_that_seeds_takes_no_exploration_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id: str) -> None:
    """With noise that begins again at every step the same observations meet the same actions."""
    taken = actions(monkeypatch, tmp_path / "run", id)
    assert len({round(action, 6) for action in taken}) > 75  # of 80
    noises = torch.tensor(taken)
    assert noises.std() > 0.3
    assert "seeded torch's generator" in (tmp_path / "run" / "run.log").read_text()


def test_the_runs_seed_decides_on_actions_where_an_environment_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (
        actions(monkeypatch, tmp_path / str(seed), "Reseeds-v0", random_frames=80, seed=seed) for seed in (1, 2)
    )
    assert not set(one[1:]) & set(other[1:])  # the first is no action: the buffer learns its columns from it


@pytest.mark.parametrize("id", ["Reseeds-v0", "SeedsItself-v0", "Borrowing-v0"])
def test_an_evaluation_more_changes_nothing_of_the_training(tmp_path: Path, id: str) -> None:
    often, seldom = (short_run(tmp_path / name, id) for name in ("often", "seldom"))
    often.evaluate.every = 8
    train(often)
    train(seldom)
    assert digest(tmp_path / "often", 80) == digest(tmp_path / "seldom", 80)
    assert len([row for row in table(tmp_path / "often") if row["eval/return_mean"]]) == 10


@pytest.mark.parametrize("id", ["Reseeds-v0", "SeedsItself-v0"])
def test_its_own_stream_is_saved(tmp_path: Path, id: str) -> None:
    train(short_run(tmp_path / "whole", id))
    train(short_run(tmp_path / "parts", id, total_frames=40))
    torch.manual_seed(99)
    train(short_run(tmp_path / "parts", id))
    assert digest(tmp_path / "whole", 80) == digest(tmp_path / "parts", 80)


def test_evaluations_with_one_seed_are_equal_where_it_draws_from_global_generators() -> None:
    env = EnvConfig("Borrowing-v0", plugins=["faulty"])
    specs = env.specs()
    actor = tanh_normal_actor(torch.nn.Linear(2, 2), specs)
    first = evaluate(actor, env.build(count=2), episodes=2, seed=5)
    state = generators.get_states()
    assert evaluate(actor, env.build(count=2), episodes=2, seed=5) == first
    assert evaluate(actor, env.build(count=2), episodes=2, seed=6) != first
    assert torch.equal(state["torch"], torch.get_rng_state())


def test_one_that_leaves_the_folder_leaves_the_run_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = short_run(Path("here"), "Wanders-v0")
    try:
        train(config)
    finally:
        os.chdir(tmp_path)
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert {"config.yaml", "metrics.csv", "run.log", "checkpoints", "replay", "curve.png", "evaluation.json"} <= names
    assert not Path("/here").exists()


@pytest.mark.parametrize("id", ["Closes-v0", "ExitsAtClose-v0", "HangsAtClose-v0"])
def test_what_close_raises_is_a_line_in_the_log(tmp_path: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "CLOSING", 0.2)
    train(short_run(tmp_path / "run", id))
    log = (tmp_path / "run" / "run.log").read_text()
    assert "finished: the results are in" in log
    assert f"env.id={id} raised" in log and "when it was closed" in log


@pytest.mark.parametrize(
    ("id", "what"),
    [
        ("Exits-v0", "raised SystemExit: 0"),
        ("ExitsWithWords-v0", "raised SystemExit: license expired"),
        ("Generates-v0", "raised GeneratorExit"),
        ("Iterates-v0", "raised StopIteration"),
        ("Denied-v0", "raised PermissionError: .*/dev/arm"),
    ],
)
def test_whatever_it_raises_is_its_fault(tmp_path: Path, id: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unruly._Ends.taken", 0)
    with pytest.raises(EnvironmentFault, match=f"env.id={id} {what}.*unruly.py") as caught:
        train(short_run(tmp_path / "run", id))
    assert caught.value.exit_code == 69
    assert "finished" not in (tmp_path / "run" / "run.log").read_text()


def test_a_run_that_something_ends_with_0_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*arguments: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("sac_torchrl.runs.loggers.Logger.log", leave)
    with pytest.raises(SacError, match=r"sys\.exit\(0\) before the run was finished") as caught:
        train(short_run(tmp_path / "run", "Sound-v0"))
    assert caught.value.exit_code == 70


def test_an_evaluation_has_a_limit(tmp_path: Path) -> None:
    config = short_run(tmp_path / "run", "Waits-v0")
    config.evaluate.timeout = 0.3
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(EnvironmentFault, match=r"an evaluation took longer than 0\.3 s \(evaluate\.timeout\)"):
        train(config)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize(
    ("id", "what"),
    [
        ("Wants-v0", r"TypeError: .*'track': give env\.kwargs\.track=VALUE"),
        ("Missing-v0", r"FileNotFoundError: .*robot\.urdf"),
        ("Expired-v0", "SystemExit: 0"),
    ],
)
def test_a_constructor_that_raises_is_refused(id: str, what: str) -> None:
    env = EnvConfig(id, plugins=["unruly"])
    with pytest.raises(ConfigError, match=f"env.id={id} cannot be made: .*{what}"):
        env.specs()
    (finding,) = check_env(env)
    assert finding.kind is Kind.fault and "cannot be made" in finding.text


@pytest.mark.parametrize("line", ["import sys; sys.exit(0)", "1 / 0"])
def test_a_plugin_that_raises_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "broken_plugin.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"env.plugins names broken_plugin, which raised .*broken_plugin\.py:1"):
        EnvConfig("Sound-v0", plugins=["broken_plugin"]).specs()


def test_a_discrete_action_is_what_its_space_samples() -> None:
    env = EnvConfig("Typed-v0", plugins=["unruly"]).build(seed=0, count=2)
    env.rollout(5)
    env.close()


@pytest.mark.parametrize("seed", [*range(12), 2**31 - 1, [5, 1]])
def test_every_seed_fits_into_31_bits(seed: int | list[int]) -> None:
    """Of a run's environments, of an evaluation's and of those that replace a worker's."""
    given = seeds(seed, 8)
    assert len(set(given)) == 8 and max(given) < 2**31
    if isinstance(seed, int):
        EnvConfig("Signed-v0", plugins=["unruly"]).build(seed=seed, count=4).close()
