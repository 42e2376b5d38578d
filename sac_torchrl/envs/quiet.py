"""Warnings of simulators that a run does not show."""

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*, mujoco: bool) -> Iterator[None]:
    """Drops remarks about ids, spaces and model files, which MuJoCo also writes to a file in this folder."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\x1b\[33mWARN: ")
        if not mujoco or importlib.util.find_spec("mujoco") is None:
            yield
            return
        engine = importlib.import_module("mujoco")
        said = engine.get_mju_user_warning()
        engine.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            engine.set_mju_user_warning(said)


@contextmanager
def rendering() -> Iterator[None]:
    """Has MuJoCo draw off screen (EGL) where Linux has no display and MUJOCO_GL says nothing else."""
    chosen = {"DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"} & os.environ.keys()
    if chosen or sys.platform != "linux":
        yield
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
