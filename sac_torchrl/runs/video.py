"""One episode as a video."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import imageio.v2 as imageio
import numpy as np
from tensordict.nn import TensorDictModuleBase

from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.quiet import rendering
from sac_torchrl.errors import ConfigError, short
from sac_torchrl.extras import PACKAGES, require
from sac_torchrl.files import replacing
from sac_torchrl.runs.episodes import deterministic_mode, steps_of


def record_video(actor: TensorDictModuleBase, plan: EnvConfig, path: Path, *, seed: int) -> Path:
    """Films one deterministic episode, in real time, into the mp4 file `path`.

    At most about 30 pictures a second are drawn. Raises ConfigError where nothing can be drawn.
    """
    require("imageio_ffmpeg", "evaluate.video")
    path.parent.mkdir(parents=True, exist_ok=True)
    env: Any = plan.build(seed=seed, count=1, render_mode="rgb_array")
    rate: float = env.metadata.get("render_fps", 30)
    stride = max(1, round(rate / 30))
    try:
        with replacing(path) as draft:
            video: Any = imageio.get_writer(draft, fps=rate / stride, macro_block_size=2)
            with deterministic_mode(actor), video:
                for number, step in enumerate(steps_of(actor, env), start=1):
                    done = bool(step["next", "done"].any())
                    if done or number % stride == 0:
                        video.append_data(_picture(env, plan.id))
                    if done:
                        break
    finally:
        env.close()
    return path


def try_out(env: Any, id: str) -> None:
    """Draw and encode one picture of an environment that was opened to be drawn; raises ConfigError where it fails."""
    require("imageio_ffmpeg", "evaluate.video")
    with TemporaryDirectory() as folder:
        video: Any = imageio.get_writer(Path(folder) / "trial.mp4", fps=30, macro_block_size=2)
        with video:
            video.append_data(_picture(env, id))


def _picture(env: Any, id: str) -> Any:
    try:
        with rendering():
            picture = np.asarray(env.render()[0])
        if picture.dtype != np.uint8 or picture.ndim != 3:
            raise TypeError(f"its picture is {picture.dtype} {picture.shape} and not uint8 (height, width, 3)")
        return picture
    except Exception as error:  # every graphics library fails in its own way
        raise ConfigError(
            f"env.id={id} cannot be rendered here ({short(repr(error))}): {PACKAGES['pygame'].advice}, "
            "for MuJoCo also a driver for EGL, or leave evaluate.video=false."
        ) from error
