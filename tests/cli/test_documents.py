"""What the documents say is what happens: their programs and commands run, and their names exist."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sac_torchrl
from sac_torchrl import TrainConfig

ROOT = Path(__file__).parents[2]
# Enough to go through everything once, and to be over in seconds.
SHORT = [
    "total_frames=300",
    "random_frames=100",
    "replay_ratio=0.1",
    "batch_size=16",
    "variant.network.hidden=[8]",
    "evaluate.every=150",
    "evaluate.episodes=1",
    "checkpoint.every=150",
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), "."])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def recipe_command(line: str) -> list[str]:
    """The words of a documented command, on this interpreter and with a small budget."""
    words = [word for word in shlex.split(line) if not word.startswith("PYTHONPATH=")]
    assert words[0] == "python"
    if "--help" in words:
        return [sys.executable, str(ROOT / words[1]), *words[2:]]
    shortened = {word.partition("=")[0] for word in SHORT}
    kept = [word for word in words[2:] if word.partition("=")[0] not in shortened]
    return [sys.executable, str(ROOT / words[1]), *kept, *SHORT]


TRAINING = [
    line for block in blocks("README.md", "bash") for line in block.splitlines() if line.startswith("python recipes/")
]


@pytest.mark.parametrize("line", TRAINING)
def test_a_training_command_of_the_readme_runs(line: str, tmp_path: Path) -> None:
    said = run(recipe_command(line), tmp_path)
    if "--help" in line:
        assert "total_frames" in said
        return
    runs = list((tmp_path / "runs").glob("*/seed=*" if "seed=0,1,2" in line else "*"))
    assert len(runs) == (3 if "seed=0,1,2" in line else 1)
    for made in (
        "config.yaml",
        "metrics.csv",
        "curve.png",
        "evaluation.json",
        "checkpoints/300/manifest.json",
    ):
        assert all((folder / made).stat().st_size for folder in runs), made


def test_the_commands_of_the_readme_take_a_run_further(tmp_path: Path) -> None:
    run(recipe_command("python recipes/discrete.py run.folder=runs/NAME"), tmp_path)
    shutil.copytree(tmp_path / "runs/NAME", tmp_path / "runs/OTHER")
    lines = [line for block in blocks("README.md", "bash") for line in block.splitlines() if "runs/NAME" in line]
    assert [line.split()[1] for line in lines] == ["resume", "evaluate", "verify", "plot"]
    for line in lines:
        words = shlex.split(line.replace("total_frames=20000", "total_frames=450"))
        assert words[0] == "sac-torchrl"
        run([sys.executable, "-m", "sac_torchrl", *words[1:]], tmp_path)
    assert (tmp_path / "runs/NAME/checkpoints/450/manifest.json").exists()
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["returns"]) == 20
    assert (tmp_path / "curves.png").exists()


def test_the_mistake_in_the_readme_is_answered_as_it_says(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("README.md", "text") if block.startswith("$ python")]
    command, answer = block.rstrip("\n").split("\n")
    words = shlex.split(command.removeprefix("$ "))
    done = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    assert done.stderr.rstrip("\n") == answer
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose")
    for number, program in enumerate(blocks("docs/compose.md", "python")):
        name = "reach" if "gym.register(" in program else f"program{number}"
        (folder / f"{name}.py").write_text(program)
    return folder


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_a_program_on_composition_runs(composed: Path, number: int) -> None:
    assert run([sys.executable, "-W", "error::UserWarning", f"program{number}.py"], composed).strip()


def test_an_environment_of_your_own_trains_by_command(composed: Path) -> None:
    (line,) = [
        line for line in "".join(blocks("docs/compose.md", "bash")).splitlines() if "env.plugins=[reach]" in line
    ]
    run(recipe_command(line), composed)
    assert "Reach-v0" in next(composed.glob("runs/Reach*/evaluation.json")).read_text()


def test_the_package_exports_what_it_lists() -> None:
    assert sorted(sac_torchrl.__all__, key=str.lower) == sorted(set(sac_torchrl.__all__), key=str.lower)
    for name in sac_torchrl.__all__:
        assert getattr(sac_torchrl, name).__doc__, name


def test_what_is_listed_for_type_checkers_is_what_is_exported() -> None:
    (block,) = [node for node in ast.parse(Path(sac_torchrl.__file__).read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    listed = {alias.asname: node.module for node in imports for alias in node.names}
    assert listed == sac_torchrl._EXPORTS


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("name", [name for options in TrainConfig.variants.values() for name in options])
def test_every_variant_has_a_page_with_the_same_parts(name: str) -> None:
    page = (ROOT / "docs" / "variants" / f"{name}.md").read_text()
    wanted = ["Idea", "Equations", "Metrics", "Deviations", "Results"]
    assert [heading for heading in re.findall(r"^## (\w+)", page, re.MULTILINE) if heading in wanted] == wanted
