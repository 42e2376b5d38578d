"""Watching a policy: on screen, or as an mp4 or gif file."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio

from sac_torchrl.deploy.policy import Policy
from sac_torchrl.deploy.recorded import mask_for, native_environment
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.quiet import rendering
from sac_torchrl.errors import ConfigError, SacError, short
from sac_torchrl.extras import PACKAGES, require
from sac_torchrl.files import replacing

SUFFIXES = ".mp4", ".gif"


def play(
    policy: Policy, env: EnvConfig, path: Path | None, *, episodes: int = 1, seed: int, deterministic: bool = True
) -> list[float]:
    """Play whole episodes on screen, or into the file `path`, NAME.mp4 or NAME.gif; returns their returns.

    The first episode is seeded with `seed`, and so are actions that are not `deterministic`. At most about 30 pictures
    a second are drawn. Raises ConfigError for another name or an environment without pictures, and SacError where
    nothing can be drawn here.
    """
    if episodes < 1:
        raise ConfigError(f"episodes={episodes}: give 1 or more.")
    if path is not None and path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: give NAME.mp4 or NAME.gif.")
    if path is not None and path.suffix == ".mp4":
        require("imageio_ffmpeg", str(path))
    with ExitStack() as stack:
        played = native_environment(env.open("human" if path is None else "rgb_array"))
        stack.callback(played.close)
        rate: float = played.metadata.get("render_fps", 30)
        stride = max(1, round(rate / 30))
        film = None if path is None else stack.enter_context(_film(path, rate / stride))
        totals = list[float]()
        for number in range(episodes):
            total = 0.0
            for frame, reward, done in _steps(policy, played, seed if number == 0 else None, deterministic, seed):
                total += reward
                if film is not None and (done or frame % stride == 0):
                    film.append_data(_picture(played, env.id))
            totals.append(total)
    return totals


def _steps(
    policy: Policy, env: gym.Env[Any, Any], seed: int | None, deterministic: bool, actions: int
) -> Iterator[tuple[int, float, bool]]:
    observation, info = env.reset(seed=seed)
    frame, done = 0, False
    while not done:
        fresh = actions if frame == 0 and seed is not None else None
        mask = mask_for(policy, env, info)
        action = policy(observation, deterministic=deterministic, seed=fresh, action_mask=mask)
        observation, reward, terminated, truncated, info = env.step(action)
        frame, done = frame + 1, bool(terminated or truncated)
        yield frame, float(reward), done


@contextmanager
def _film(path: Path, rate: float) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A gif is shown for so many milliseconds a picture, and again without end.
    options: dict[str, Any] = {"duration": 1000 / rate, "loop": 0}
    if path.suffix == ".mp4":
        options = {"fps": rate, "macro_block_size": 2}
    with replacing(path) as draft, imageio.get_writer(draft, **options) as writer:
        yield writer


def _picture(env: gym.Env[Any, Any], id: str) -> Any:
    try:
        with rendering():
            return env.render()
    except Exception as error:  # every graphics library fails in its own way
        raise SacError(
            f"env.id={id} cannot be rendered here ({short(repr(error))}): {PACKAGES['pygame'].advice}, "
            "for MuJoCo also a driver for EGL."
        ) from error
