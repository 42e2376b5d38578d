"""What works on this machine, and what to install for the rest."""

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sac_torchrl.extras import PACKAGES

_BASE = ("torch", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy", "safetensors", "hydra-core")
_DRAW = """
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.quiet import rendering
env = EnvConfig({id!r}).build(seed=0, count=1, render_mode="rgb_array")
env.reset()
with rendering():
    env.render()
"""


def diagnose() -> Iterator[str]:
    """One line a thing, `ok` or `missing` first."""
    yield f"ok      Python {platform.python_version()} on {platform.platform()}"
    for name in _BASE:
        yield f"ok      {name} {version(name)}"
    for package in PACKAGES.values():
        try:
            yield f"ok      {package.distribution} {version(package.distribution)}"
        except PackageNotFoundError:
            yield f"missing {package.name}, for {package.purpose}: {package.advice}"
    yield _extension()
    yield f"ok      {torch.get_num_threads()} threads of PyTorch on {len(os.sched_getaffinity(0))} cores"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield f"ok      GPU: {', '.join(gpus)}" if gpus else "missing a GPU that PyTorch can use; device=cpu works without"
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    yield f"ok      C++ compiler {compiler}" if compiler else "missing a C++ compiler, for learner.execution=compiled"
    yield f"ok      {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB of disk free here"
    yield _drawing("Pendulum-v1", PACKAGES["pygame"].advice)
    yield _drawing("InvertedPendulum-v5", "a driver for EGL or a display, or MUJOCO_GL=osmesa with libosmesa6")


def _extension() -> str:
    try:
        importlib.import_module("torchrl._torchrl")
    except ImportError as error:
        return (
            f"missing TorchRL's C++ extension, for prioritized replay ({error}): pip install --force-reinstall torchrl"
        )
    return "ok      TorchRL's C++ extension"


def _drawing(id: str, advice: str) -> str:
    # In a process of its own: a graphics library that does not work may end it.
    try:
        done = subprocess.run(  # noqa: S603 - this very Python, on the lines above
            [sys.executable, "-c", _DRAW.format(id=id)], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return f"missing pictures of {id}: drawing hangs; {advice}"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"missing pictures of {id} ({reason[:100]}): {advice}"
    return f"ok      pictures of {id}"
