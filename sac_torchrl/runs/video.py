"""One episode as a video."""

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
from tensordict.nn import TensorDictModuleBase

from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.quiet import rendering
from sac_torchrl.errors import SacError, short
from sac_torchrl.extras import PACKAGES, require
from sac_torchrl.files import replacing
from sac_torchrl.runs.episodes import deterministic_mode, steps_of


def record_video(actor: TensorDictModuleBase, plan: EnvConfig, path: Path, *, seed: int) -> Path:
    """Films one deterministic episode, in real time, into the mp4 file `path`.

    At most about 30 pictures a second are drawn. Raises SacError where nothing can be drawn.
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


def _picture(env: Any, id: str) -> Any:
    try:
        with rendering():
            return env.render()[0]
    except Exception as error:  # every graphics library fails in its own way
        raise SacError(
            f"env.id={id} cannot be rendered here ({short(repr(error))}): {PACKAGES['pygame'].advice}, "
            "for MuJoCo also a driver for EGL, or leave evaluate.video=false."
        ) from error
