"""Sweeps of the command line: folders, failures, signals, and Hydra's sweepers."""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from sac_torchrl import Evaluation, Result, TrainConfig, launch
from sac_torchrl.errors import LearnerFault, Preempted

Sweep = Callable[..., tuple[int, list[TrainConfig]]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Launch a sweep whose task calls `act` with the configuration; returns exit code and the configurations."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, act: Callable[[TrainConfig], Any] = lambda config: None) -> tuple[int, list[TrainConfig]]:
        configs: list[TrainConfig] = []

        def task(config: TrainConfig) -> Result:
            configs.append(config)
            act(config)
            assert config.run.folder is not None
            return Result(Path(config.run.folder), Evaluation([float(config.seed)], [1]), config.env)

        monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
        try:
            launch(TrainConfig(), task)
        except SystemExit as end:
            return int(end.code or 0), configs
        return 0, configs

    return run


@pytest.mark.parametrize("words", [["-m", "seed=3,4"], ["seed=3,4", "-m"], ["seed=3,4", "--multirun", "batch_size=8"]])
def test_the_flag_stands_anywhere_and_a_table_ends_the_sweep(
    sweep: Sweep, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, configs = sweep(*words)
    assert code == 0
    assert [config.seed for config in configs] == [3, 4]
    folders = [Path(str(config.run.folder)) for config in configs]
    assert [folder.name for folder in folders] == ["seed=3", "seed=4"]
    assert folders[0].parent == folders[1].parent and folders[0].parent.parent == Path("runs")
    *_, head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["seed", "return", "folder"]
    assert first.split() == ["3", "3.0", "±", "0.0", str(folders[0])]
    assert second.split()[:2] == ["4", "4.0"]


def test_several_keys_make_every_combination_and_a_given_folder_holds_them(sweep: Sweep) -> None:
    _, configs = sweep("-m", "env.id=Pendulum-v1,torch/pendulum", "learner.lr=1e-3,3e-4", "run.folder=mine")
    assert [(config.env.id, config.learner.lr) for config in configs] == [
        ("Pendulum-v1", 1e-3),
        ("Pendulum-v1", 3e-4),
        ("torch/pendulum", 1e-3),
        ("torch/pendulum", 3e-4),
    ]
    assert configs[-1].run.folder == "mine/env.id=torch-pendulum_learner.lr=0.0003"


def test_a_mistake_in_any_run_is_found_before_the_first(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, configs = sweep("-m", "batch_size=8,20000")
    assert (code, configs) == (64, [])
    assert "batch_size=20000: give 1 to 10000" in capsys.readouterr().err
    (tmp_path / "mine" / "seed=1").mkdir(parents=True)
    (tmp_path / "mine" / "seed=1" / "notes").touch()
    code, configs = sweep("-m", "seed=0,1", "run.folder=mine")
    assert (code, configs) == (64, [])
    assert "seed=1: run.folder=mine/seed=1 holds files" in capsys.readouterr().err


def test_a_sweep_continues_after_a_failed_run_and_exits_with_the_highest_code(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(config: TrainConfig) -> None:
        if config.seed == 0:
            raise LearnerFault("not finite")
        if config.seed == 1:
            raise OSError(28, "No space left on device")

    code, configs = sweep("-m", "seed=0,1,2", act=act)
    assert [config.seed for config in configs] == [0, 1, 2]
    assert code == 74
    printed = capsys.readouterr()
    assert "error: not finite" in printed.err
    assert [line.split()[:4] for line in printed.out.splitlines()[-3:]][:2] == [
        ["0", "exit", "code", "70"],
        ["1", "exit", "code", "74"],
    ]


@pytest.mark.parametrize("inside", [True, False])
def test_a_signal_ends_the_sweep_and_says_how_to_continue(
    sweep: Sweep, inside: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(config: TrainConfig) -> None:
        if config.seed == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            if inside:
                raise Preempted("SIGTERM came; saved at 20 frames.")

    code, configs = sweep("-m", "seed=0,1,2", act=act)
    assert [config.seed for config in configs] == [0, 1]
    assert code == 75
    folder = Path(str(configs[0].run.folder)).parent
    last = capsys.readouterr().err.splitlines()[-1]
    left = "2 of 3 runs of the sweep did not finish: seed=1; seed=2" if inside else "1 of 3 runs of the sweep did not"
    assert left in last
    assert last.endswith(f"Continue with: python recipe.py -m seed=0,1,2 run.folder={folder}")


SWEEPER = """
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Two(Sweeper):
    returned = []

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        jobs = [[*arguments, f"learner.lr={rate}"] for rate in (0.1, 0.2)]
        self.returned += [job.return_value for job in self.launcher.launch(jobs, initial_job_idx=0)]
"""


def test_a_sweeper_of_hydra_gets_the_mean_return_of_each_run(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "two.py").write_text(SWEEPER)
    monkeypatch.syspath_prepend(tmp_path)
    ConfigStore.instance().store(group="hydra/sweeper", name="two", node={"_target_": "hydra_plugins.two.Two"})
    code, configs = sweep(
        "seed=7", "-m", "hydra/sweeper=two", "total_frames=5e3", "variant=redq", "run.folder=x", "variant.sampled=1"
    )
    assert code == 0
    assert [config.learner.lr for config in configs] == [0.1, 0.2]
    assert [type(config.variant).__name__ for config in configs] == ["REDQ", "REDQ"]
    assert {config.total_frames for config in configs} == {5_000}
    assert importlib.import_module("hydra_plugins.two").Two.returned == [7.0, 7.0]
