"""Whole deterministic episodes on environments of their own: returns, lengths and a video."""

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from sac_torchrl.agents.policies import aligned
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.quiet import rendering
from sac_torchrl.envs.vector import seeds
from sac_torchrl.errors import ConfigError, EnvironmentFault, SacError, short
from sac_torchrl.extras import PACKAGES, require
from sac_torchrl.files import replacing, write_whole

LONGEST = 100_000  # frames in an episode; one that goes on for longer is taken to have no end


@dataclass(frozen=True)
class Evaluation:
    """The undiscounted return and the length in frames of each episode.

    Where every environment played one, `seeds` are those that they were reset with, once before their episode's reset.
    """

    returns: list[float]
    lengths: list[int]
    seeds: list[int] = field(default_factory=list, compare=False)

    @property
    def mean(self) -> float:
        """The mean return."""
        return statistics.fmean(self.returns)

    @property
    def std(self) -> float:
        """The population standard deviation of the returns."""
        return statistics.pstdev(self.returns)

    def metrics(self) -> dict[str, float]:
        """Mean and deviation of the returns and the mean length, named for a log."""
        return {
            "eval/return_mean": self.mean,
            "eval/return_std": self.std,
            "eval/length_mean": statistics.fmean(self.lengths),
        }

    def as_json(self) -> dict[str, Any]:
        """Mean and deviation of the returns, and the return and length of every episode, as in evaluation.json."""
        return {
            "return_mean": self.mean,
            "return_std": self.std,
            "returns": self.returns,
            "lengths": self.lengths,
            "seeds": self.seeds,
        }


@dataclass
class EvaluationConfig:
    """How often (in frames) and on how many episodes the actor is evaluated; `video` films one of them."""

    every: int = 1000
    episodes: int = 10
    video: bool = False

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("episodes", self.episodes)):
            if value < 1:
                raise ConfigError(f"evaluate.{name}={value}: give 1 or more.")


def evaluate(actor: TensorDictModuleBase, env: EnvBase, *, episodes: int, seed: int) -> Evaluation:
    """Plays exactly `episodes` whole episodes with the actor's deterministic actions.

    `env` has batch size `(count,)` and may be another size than `episodes`: each of its environments plays a
    number of episodes fixed beforehand, since taking whichever end first would prefer short ones. `env` is
    reseeded with `seed`; neither the actor's mode nor any global generator is changed.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: evaluate on 1 or more.")
    count = env.batch_size[0]
    shares = [episodes // count + (number < episodes % count) for number in range(count)]
    finished: list[list[tuple[float, int]]] = [[] for _ in shares]
    total = torch.zeros(count, dtype=torch.float64)
    length = torch.zeros(count, dtype=torch.int64)
    env.set_seed(seed)
    with _deterministic(actor):
        for step in _play(actor, env):
            total += step["next", "reward"].reshape(count).to(total)
            length += 1
            done = step["next", "done"].reshape(count).to(total.device)
            for number in done.nonzero().flatten().tolist():
                if len(finished[number]) < shares[number]:
                    finished[number].append((float(total[number]), int(length[number])))
            total[done], length[done] = 0.0, 0
            if all(len(played) == share for played, share in zip(finished, shares, strict=True)):
                break
    played = [episode for episodes_of_one in finished for episode in episodes_of_one]
    own = seeds(seed, count) if episodes == count else []
    return Evaluation([total for total, _ in played], [length for _, length in played], own)


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
            with _deterministic(actor), video:
                for number, step in enumerate(_play(actor, env), start=1):
                    done = bool(step["next", "done"].any())
                    if done or number % stride == 0:
                        video.append_data(_picture(env, plan.id))
                    if done:
                        break
    finally:
        env.close()
    return path


def write_evaluation(evaluation: Evaluation, path: Path, *, env: str, frames: int, seed: int) -> None:
    """Writes the evaluation of environment id `env` after `frames` frames as JSON, whole or not at all."""
    content = {"env": env, "frames": frames, "seed": seed, **evaluation.as_json()}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _play(actor: TensorDictModuleBase, env: EnvBase) -> Iterator[TensorDictBase]:
    weight = next(actor.parameters(), None)
    device = None if weight is None else weight.device
    root = env.reset()
    length = torch.zeros(env.batch_size, dtype=torch.int64)
    while True:
        seen = root.select(*actor.in_keys).apply(aligned)
        action = actor(seen if device is None else seen.to(device))["action"]
        root["action"] = action.to(root["done"].device)
        step = env.step(root)
        # Before the reset, so that who draws a picture now draws the final state.
        yield step
        length = (length + 1) * ~step["next", "done"].reshape(length.shape).to(length.device)
        if length.max() >= LONGEST:
            raise EnvironmentFault(
                f"an episode of the evaluation had no end after {LONGEST:,} frames: set env.max_episode_steps."
            )
        root = env.maybe_reset(env.step_mdp(step))


def _picture(env: Any, id: str) -> Any:
    try:
        with rendering():
            return env.render()[0]
    except Exception as error:  # every graphics library fails in its own way
        raise SacError(
            f"env.id={id} cannot be rendered here ({short(repr(error))}): {PACKAGES['pygame'].advice}, "
            "for MuJoCo also a driver for EGL, or leave evaluate.video=false."
        ) from error


@contextmanager
def _deterministic(actor: TensorDictModuleBase) -> Iterator[None]:
    modes = [(module, module.training) for module in actor.modules()]
    actor.eval()
    try:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            yield
    finally:
        for module, training in modes:
            module.training = training
