"""What the program advises works when it is followed: keys, commands, and packages to install."""

import ast
import importlib.metadata
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import only  # noqa: F401 - registers them once
import pytest
import yaml

import sac_torchrl
from sac_torchrl.cli.main import _parser, main
from sac_torchrl.config.recipes import configure
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.errors import ConfigError
from sac_torchrl.extras import PACKAGES
from sac_torchrl.replay import prioritized

PACKAGE = Path(sac_torchrl.__file__).parent


def texts() -> Iterator[str]:
    """Every text in the package that is no docstring; a blank stands where a value is put in."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in plain | inside:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


KEY = r"\b((?:[a-z_]+\.)+[a-z_]+|collector|device|normalize|variant|n_steps)=([\w.+-]+|\[[^\]\0]*\])(?![\w\0])"


def test_every_key_that_is_advised_with_a_value_can_be_given() -> None:
    advised = {found for text in texts() for found in re.findall(KEY, text)}
    advised = {(key, value.strip(".")) for key, value in advised if not re.search("[A-Z]{2}", value)}
    assert len(advised) > 10
    for key, value in sorted(advised):
        accepted = []
        for recipe in ("continuous", "discrete"):
            for variant in TrainConfig.variants[recipe]:
                try:
                    configure(recipe, **{"variant": variant, key: yaml.safe_load(value)})
                except (ConfigError, TypeError) as refusal:
                    last = refusal
                else:
                    accepted.append(variant)
        assert accepted, f"{key}={value}: {last}"


def test_every_package_and_extra_that_is_advised_exists() -> None:
    pattern = r"pip install '?([\w-]+)\[([\w,-]+)\]|^(sac_torchrl|gymnasium)\[([\w-]+)\]$"
    found = [groups for text in texts() for groups in re.findall(pattern, text)]
    advised = {(one or other, extra or another) for one, extra, other, another in found}
    advised |= {("sac_torchrl", package.extra) for package in PACKAGES.values()}
    assert ("gymnasium", "other") in advised
    for package, extra in advised:
        if package in ("sac_torchrl", "gymnasium"):
            known = importlib.metadata.metadata(package).get_all("Provides-Extra") or []
            assert extra in [name.replace("_", "-") for name in known], f"{package}[{extra}]"


def test_every_command_that_is_advised_exists() -> None:
    commands = _parser()[1]
    advised = {found for text in texts() for found in re.findall(r"`sac-torchrl ([a-z-]+)", text)}
    assert advised >= {"check-env", "train"}
    assert advised <= set(commands)


@dataclass
class Advice:
    """What a command that failed said, and the words of one that follows it."""

    words: list[str]
    said: str

    def change(self, *settings: str) -> list[str]:
        keys = [setting.partition("=")[0] for setting in settings]
        return [word for word in self.words if word.partition("=")[0] not in keys] + list(settings)

    def keys(self) -> list[str]:
        """As it says, `give KEY=VALUE` or `set KEY`."""
        found = re.findall(r"(?:give|use|set|as in|such as) " + KEY, self.said)
        given = [f"{key}={value.strip('.')}" for key, value in found if "LOW" not in value]
        assert given, self.said
        return self.change(*given)

    def least_or_most(self) -> list[str]:
        """As it says, KEY=VALUE: give FIRST to LAST."""
        key, last = re.search(r"(\w[\w.]*)=[^ ]*: give [\d.]+ to ([\d,]+)", self.said).groups()  # type: ignore[union-attr]
        return self.change(f"{key}={last.replace(',', '')}")

    def meant(self) -> list[str]:
        wrong, right = re.search(
            r"([\w./-]+)(?: is not a registered environment|=\S+ is no key|): did you mean ([\w./-]+)", self.said
        ).groups()  # type: ignore[union-attr]
        return [word.replace(wrong, right) for word in self.words]

    def command(self) -> list[str]:
        found = re.search(r"`sac-torchrl ([^`]*)`", self.said)
        assert found, self.said
        words = shlex.split(found[1])
        return words if words[0] != "train" else [*words, *self.words[2:]]

    def a_lower_capacity(self) -> list[str]:
        assert "train with a lower replay.capacity" in self.said
        return self.change("replay.capacity=100", "total_frames=60")

    def a_time_limit(self) -> list[str]:
        assert "set env.max_episode_steps" in self.said
        return self.change("env.max_episode_steps=10")

    def another_folder(self) -> list[str]:
        assert "give a new folder" in self.said
        return self.change("run.folder=another")

    def the_module(self) -> list[str]:
        assert "needs its module: env.plugins=[MODULE]" in self.said
        return self.change("env.plugins=[late]")

    def wrappers(self) -> list[str]:
        found = re.search(r"(env\.wrappers=.*) makes one vector", self.said)
        assert found, self.said
        return self.change(found[1])


def missing(*_: object, **__: object) -> None:
    """Fail as without TorchRL's C++ extension."""
    raise RuntimeError("no extension")


def late(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write a module that registers Late-v0, which nothing has imported."""
    gym.registry.pop("Late-v0", None)
    sys.modules.pop("late", None)
    patch.syspath_prepend(folder)
    (folder / "late.py").write_text(
        'import gymnasium as gym\ngym.register("Late-v0", "only:Drawn", max_episode_steps=10)\n'
    )


SMALL = {
    "total_frames": "60",
    "random_frames": "20",
    "batch_size": "8",
    "replay_ratio": "0.1",
    "variant.network.hidden": "[8]",
    "learner.execution": "eager",
    "evaluate.episodes": "1",
    "run.folder": "run",
    "device": "cpu",
}
A = Advice


@pytest.mark.parametrize(
    ("words", "follow"),
    [
        ("env.id=Only-v0 env.plugins=[only]", A.keys),
        ("env.id=Port-v0 env.plugins=[only]", A.keys),
        ("env.id=Declared-v0 env.plugins=[only]", A.keys),
        ("env.id=Late-v0", A.the_module),
        ("env.id=Unending-v0 env.plugins=[only]", A.a_time_limit),
        ("env.id=Unbounded-v0 env.plugins=[only]", A.keys),
        ("env.id=Picture-v0 env.plugins=[only]", A.wrappers),
        ("env.id=Vector-v0 env.plugins=[only]", A.command),
        ("env.id=Pendulum-v2", A.meant),
        ("env.id=CartPole-v1", A.command),
        ("checkpoint.evry=9", A.meant),
        ("batch_size=1000", A.least_or_most),
        ("random_frames=1000", A.least_or_most),
        ("learning_starts=1000", A.least_or_most),
        ("device=cuda:7", A.keys),
        ("variant.head=discrete", A.keys),
        ("env.single=true env.count=2", A.keys),
        ("env.single=true collector=processes", A.keys),
        ("replay.prioritized=true", A.keys),
        ("total_frames=100000000000000 replay.capacity=100000000000000", A.a_lower_capacity),
        ("total_frames=100000000000000 replay.capacity=100000000000000 replay.storage=ram", A.a_lower_capacity),
        ("run.folder=taken", A.another_folder),
    ],
)
def test_a_command_that_failed_works_when_what_it_advised_is_followed(
    tmp_path: Path,
    words: str,
    follow: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prioritized, "PackedPrioritizedSampler", missing)
    late(tmp_path, monkeypatch)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    settings = SMALL | dict(word.partition("=")[::2] for word in words.split())
    failing = ["train", "continuous", *(f"{key}={value}" for key, value in settings.items())]
    with pytest.raises(SystemExit) as ended:
        main(failing)
    assert ended.value.code in (64, 69, 74)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()
    following = follow(Advice(failing, said))
    assert following != failing
    if following[0] == "check-env":  # it finds the fault
        with pytest.raises(SystemExit, match="64"):
            main(following)
        assert "fault" in capsys.readouterr().out
        return
    main(following)
    assert "60/60 frames" in capsys.readouterr().err


def test_the_advice_about_runs_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    late(tmp_path, monkeypatch)
    settings = SMALL | {"env.id": "Late-v0", "env.plugins": "[late]"}
    main(["train", "continuous", *(f"{key}={value}" for key, value in settings.items())])
    for file in sorted((tmp_path / "run" / "policies").rglob("*"), reverse=True):
        file.unlink() if not file.is_dir() or file.is_symlink() else file.rmdir()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="65"):
        main(["evaluate", "run", "--plugin", "late"])
    assert "holds no policy yet: resume the run, which saves one at once" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="64"):
        main(["resume", "run", "replay.capacity=10", "env.plugins=[late]"])
    assert "Give the saved values to resume it, or another folder" in capsys.readouterr().err
    main(["resume", "run", "replay.capacity=1000000", "env.plugins=[late]"])
    capsys.readouterr()
    late(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="64"):
        main(["evaluate", "run"])
    assert "needs its module: env.plugins=[MODULE]" in capsys.readouterr().err
    main(["evaluate", "run", "--plugin", "late"])
