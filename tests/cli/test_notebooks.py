"""Notebooks are kept without outputs, and their cells run one after the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sac_torchrl

ROOT = Path(sac_torchrl.__file__).parents[1]


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    assert "total_frames=10_000" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("total_frames=10_000", "total_frames=300")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
