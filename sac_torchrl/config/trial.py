"""What a run does later, done once beforehand: what cannot work is refused before a file is made."""

import logging
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import torch

from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.envs import contained, generators
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.state import unshared
from sac_torchrl.errors import ConfigError, EnvironmentFault
from sac_torchrl.runs import video
from sac_torchrl.runs.device import resolve_device
from sac_torchrl.specs import Specs


def try_out(config: TrainConfig, specs: Specs) -> None:
    """Build the agent, reset and step the environment, draw a picture where one is wanted, and measure the room.

    The run itself draws the same numbers afterward. Raises ConfigError, DiskError, or EnvironmentFault for a first step
    that cannot be stored and is not tolerated.
    """
    with generators.preserve(), _unnoticed():
        config.agent(specs, device=torch.device("cpu"))
        if config.evaluate.video or not config.env.in_one:
            _step_once(config.env, draw=config.evaluate.video)
        if (goals := config.goals()) is not None:
            goals.close()
    # A resumed run has its room already: its new rows take the place of the old ones.
    folder = None if config.run.saved() is not None else _existing(Path(config.run.folder or "runs"))
    config.replay.try_out(folder, specs, rows=config.total_frames, device=resolve_device(config.device))


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Stay in this folder, and leave what an environment does to the process for the log of the run."""
    logger = logging.getLogger("sac_torchrl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with chdir(Path.cwd()):
            yield
    finally:
        logger.setLevel(level)
        contained.forget()


def _step_once(plan: EnvConfig, *, draw: bool) -> None:
    env: Any = plan.build(seed=0, count=1, render_mode="rgb_array" if draw else None)
    try:
        with unshared(env):
            if not plan.single and not plan.in_one:
                _open_second(plan)
            env.rand_step(env.reset())
            if draw:
                video.try_out(env, plan.id)
    except EnvironmentFault:
        if not plan.faults:
            raise
    finally:
        env.close()


def _open_second(plan: EnvConfig) -> None:
    try:
        plan.open().close()
    except ConfigError as error:
        raise ConfigError(
            f"{error} It is the second one that is open, and evaluations need one of their own: where only one can be, "
            "give env.single=true."
        ) from error


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.expanduser().absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())
