"""Every line that docs/coming-from.md gives for this package runs."""

import re
import shlex
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import sac_torchrl as sac
from sac_torchrl.cli.main import main

PAGE = Path(sac.__file__).parents[1] / "docs" / "coming-from.md"
LINES = re.findall(r"^\|[^|]*\|[^|]*\| `(sac.*)` \|$", PAGE.read_text(), re.MULTILINE)
SHORT = {
    "total_frames": "120",
    "random_frames": "64",
    "batch_size": "16",
    "variant.network.hidden": "[8]",
    "learner.execution": "eager",
    "evaluate.every": "60",
    "evaluate.episodes": "1",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/NAME and runs/OTHER."""
    folder = tmp_path_factory.mktemp("week")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, name in enumerate(("NAME", "OTHER")):
            shorter = [f"{key}={value}" for key, value in SHORT.items()]
            main(["train", "continuous", *shorter, f"seed={seed}", f"run.folder=runs/{name}"])
    return folder


def test_every_row_of_the_page_has_a_line() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and "`" in line]
    assert len(LINES) == len(rows) == 27


@pytest.mark.parametrize("line", LINES)
def test_a_line_runs(line: str, week: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(week)
    if not line.startswith("sac-torchrl"):
        names = {"sac": sac, "torch": torch, "observation": np.zeros(3, np.float32)}
        keys = ", ".join(f"{name!r}: {value!r}" for name, value in {"total_frames": 120, "random_frames": 64}.items())
        small = "'batch_size': 16, 'evaluate': {'episodes': 1}, 'variant': {'network': {'hidden': [8]}}"
        result = eval(line.replace('sac.train("continuous"', f'sac.train("continuous", **{{{keys}, {small}}}'), names)
        if isinstance(result, np.ndarray):
            assert gymnasium.make("Pendulum-v1").action_space.contains(result)
        return
    words = shlex.split(line)[1:]
    if words[0] == "train":
        words = [word for word in words if word.partition("=")[0] not in SHORT]
        words += [f"{key}={value}" for key, value in SHORT.items()]
    main([word.replace("20000", "180") for word in words])
