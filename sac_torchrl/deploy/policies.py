"""The policies of a run: the newest and the best, and how a path names one."""

import logging
import math
from pathlib import Path

import torch
from torchrl.modules import ProbabilisticActor

from sac_torchrl.config.files import load
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.deploy.saved import FILE, SavedPolicy, read_policy
from sac_torchrl.errors import CheckpointError, ConfigError
from sac_torchrl.runs import snapshot
from sac_torchrl.runs.evaluation import Evaluation
from sac_torchrl.runs.folder import CONFIG
from sac_torchrl.specs import Specs

log = logging.getLogger(__name__)

POLICIES, NEWEST, BEST = "policies", "newest", "best"


class Policies:
    """Keeps the newest and the best policy of a run in its folder `policies/`, each a file that is replaced whole.

    The best has the highest mean return of all evaluations; of equal ones the first stays.
    """

    def __init__(self, folder: Path, config: TrainConfig, specs: Specs) -> None:
        self._folder = folder
        self._config = config
        self._specs = specs
        newest, best = (_kept(folder / name / FILE) for name in (NEWEST, BEST))
        self._newest = -1 if newest is None else newest.frames
        self._best = -math.inf if best is None or best.evaluation is None else best.evaluation["return_mean"]

    def save(self, actor: ProbabilisticActor, frames: int, evaluation: Evaluation | None = None) -> None:
        """Write `newest`, and `best` where `evaluation`, of these very weights, is better than every one before.

        A call with the same `frames` as the last and no evaluation does nothing.
        """
        if evaluation is None and frames == self._newest:
            return
        policy = SavedPolicy.of(actor, self._config, self._specs, frames=frames, evaluation=evaluation)
        policy.write(self._folder / NEWEST)
        self._newest = frames
        if evaluation is not None and evaluation.mean > self._best:
            policy.write(self._folder / BEST)
            self._best = evaluation.mean


def policy_path(folder: Path, checkpoint: str | None) -> Path:
    """Where a run keeps its policy `newest`, `best` or that of checkpoint N; the folder itself where none is named."""
    if checkpoint is None:
        return folder
    if checkpoint in (NEWEST, BEST):
        return folder / POLICIES / checkpoint
    path = folder / "checkpoints" / checkpoint
    if not checkpoint.isdecimal() or not path.is_dir():
        kept = ", ".join(str(frames) for frames in reversed(snapshot.frames_in(folder / "checkpoints"))) or "none"
        raise ConfigError(f"--checkpoint {checkpoint}: give newest, best or the frames of a checkpoint ({kept}).")
    return path


def find_policy(path: Path) -> SavedPolicy:
    """Read the policy of a run, of a checkpoint of it, of one of its `policies/`, or of an exported folder.

    That of a run is its newest. Raises ConfigError where `path` is none of these and CheckpointError where it is
    damaged.
    """
    for file in (path, path / FILE, path / POLICIES / NEWEST / FILE):
        if file.is_file() and file.name == FILE:
            return read_policy(file)
    if path.name.isdecimal() and path.parent.name == "checkpoints" and path.is_dir():
        return _from_checkpoint(path)
    if (path / CONFIG).is_file():
        raise CheckpointError(f"{path} holds no policy yet: resume the run, which saves one at once.")
    raise ConfigError(f"{path} holds no policy: give a run, one of its checkpoints or policies, or an exported folder.")


def _from_checkpoint(path: Path) -> SavedPolicy:
    run = path.parents[1]
    config = load(run)
    spaces = read_policy(run / POLICIES / NEWEST / FILE)
    saved = snapshot.verify(path)
    specs = spaces.specs()
    with torch.random.fork_rng(devices=[]):
        agent = config.agent(specs, device=torch.device("cpu"))
    config.learner.build(agent, updates=config.updates).load_state_dict(saved.state["parts"]["learner"])
    return SavedPolicy.of(agent.actor, config, specs, frames=saved.frames)


def _kept(path: Path) -> SavedPolicy | None:
    """The policies that an earlier process saved; a damaged one is ignored, and the next save replaces it."""
    try:
        return read_policy(path) if path.exists() else None
    except CheckpointError as error:
        log.warning("%s It is written again.", error)
        return None
