"""A policy on disk: one safetensors file with the actor's weights, and in its header whatever is needed to act."""

import json
import logging
import math
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from gymnasium import Space
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from sac_torchrl.config.compose import from_layer
from sac_torchrl.config.files import load
from sac_torchrl.config.layers import layer
from sac_torchrl.config.schema import TrainConfig, chosen
from sac_torchrl.deploy.spaces import agent_specs, environment_spaces, space_from_json, space_to_json
from sac_torchrl.errors import CheckpointError, ConfigError, short
from sac_torchrl.files import write_whole
from sac_torchrl.runs import snapshot
from sac_torchrl.runs.evaluation import Evaluation
from sac_torchrl.runs.folder import CONFIG
from sac_torchrl.specs import Specs

log = logging.getLogger(__name__)

FILE = "policy.safetensors"
POLICIES, NEWEST, BEST = "policies", "newest", "best"
_KEY = "sac_torchrl"
_FORMAT = 1
_LIBRARIES = ("torch", "torchrl", "tensordict", "gymnasium", "numpy")
_CPU = torch.device("cpu")


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


@dataclass(frozen=True)
class SavedPolicy:
    """The weights of an actor, the networks they belong to, and the environment they were trained on.

    `env` holds the settings `env.` of the run, `variant` its settings `variant.` and their `name`, `evaluation` the
    results with exactly these weights, if there are any, and `parity` that of an export, as `export.Parity` has it.
    """

    recipe: str
    env: dict[str, Any]
    variant: dict[str, Any]
    normalize: bool
    seed: int
    frames: int
    observation_space: Space[Any]
    action_space: Space[Any]
    weights: dict[str, Tensor]
    evaluation: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=_versions)

    @classmethod
    def of(
        cls,
        actor: ProbabilisticActor,
        config: TrainConfig,
        specs: Specs,
        *,
        frames: int,
        evaluation: Evaluation | None = None,
    ) -> "SavedPolicy":
        """Copy the weights of `actor`, which `config` was used to build, after `frames` frames of training."""
        env = _settings(config.env)
        # What a policy was collected with says nothing about the environment, and modules are code.
        for key in ("count", "faults", "plugins"):
            env.pop(key, None)
        observation, action = environment_spaces(specs, config.env)
        return cls(
            recipe=config.head,
            env=env,
            variant={"name": chosen(config)["variant"], **_settings(config.variant)},
            normalize=config.normalize,
            seed=config.seed,
            frames=frames,
            observation_space=observation,
            action_space=action,
            weights={
                name: value.detach().to("cpu", copy=True).contiguous()
                for name, value in actor.state_dict().items()
                if isinstance(value, Tensor)
            },
            evaluation=None if evaluation is None else evaluation.as_json(),
        )

    def metadata(self) -> dict[str, Any]:
        """Everything but the weights, as JSON."""
        return {
            "format": _FORMAT,
            "recipe": self.recipe,
            "env": self.env,
            "variant": self.variant,
            "normalize": self.normalize,
            "seed": self.seed,
            "frames": self.frames,
            "evaluation": self.evaluation,
            "parity": self.parity,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "versions": self.versions,
        }

    def specs(self) -> Specs:
        """The spaces as the agent sees them."""
        id, ignore, bins = self.env["id"], self.env["ignore"], self.env.get("bins")
        return agent_specs(self.observation_space, self.action_space, id, ignore=ignore, bins=bins)

    def build(self) -> ProbabilisticActor:
        """Build the actor on the CPU, in evaluation mode; torch's global generator stays as it is.

        Raises CheckpointError where the weights are not those of such an actor.
        """
        try:
            networks = {"variant": self.variant, "normalize": self.normalize}
            settings = layer({**networks, "recipe": self.recipe, "collector": "direct", "device": "cpu"})
            with torch.random.fork_rng(devices=[]):
                actor: ProbabilisticActor = from_layer(TrainConfig(), settings).agent(self.specs(), device=_CPU).actor
            actor.load_state_dict(self.weights)
        except (KeyError, RuntimeError, ConfigError) as error:
            raise CheckpointError(
                f"the weights of the policy at {self.frames} frames do not fit its settings ({short(error)})."
            ) from error
        actor.eval()
        return actor

    def write(self, folder: Path) -> Path:
        """Write `policy.safetensors` into `folder`, whole or not at all, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        header = {_KEY: json.dumps(self.metadata(), separators=(",", ":"))}
        write_whole(folder / FILE, safetensors.torch.save(self.weights, header))
        return folder / FILE


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


def read_policy(path: Path) -> SavedPolicy:
    """Read one policy.safetensors; raises CheckpointError where it is damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it cannot be iterated
            content = json.loads((file.metadata() or {})[_KEY])
        if content["format"] != _FORMAT:
            raise CheckpointError(f"{path}: has format {content['format']}, this version reads {_FORMAT}.")
        return SavedPolicy(
            **{key: content[key] for key in ("recipe", "env", "variant", "normalize", "seed", "frames")},
            observation_space=space_from_json(content["observation_space"]),
            action_space=space_from_json(content["action_space"]),
            weights=weights,
            evaluation=content["evaluation"],
            parity=content["parity"],
            versions=content["versions"],
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a policy of format {_FORMAT} ({short(repr(error))}).") from error


def _from_checkpoint(path: Path) -> SavedPolicy:
    run = path.parents[1]
    config = load(run)
    spaces = read_policy(run / POLICIES / NEWEST / FILE)
    saved = snapshot.verify(path)
    specs = spaces.specs()
    with torch.random.fork_rng(devices=[]):
        agent = config.agent(specs, device=_CPU)
    config.learner.build(agent, updates=config.updates).load_state_dict(saved.state["parts"]["learner"])
    return SavedPolicy.of(agent.actor, config, specs, frames=saved.frames)


def _kept(path: Path) -> SavedPolicy | None:
    """The policies that an earlier process saved; a damaged one is ignored, and the next save replaces it."""
    try:
        return read_policy(path) if path.exists() else None
    except CheckpointError as error:
        log.warning("%s It is written again.", error)
        return None


def _settings(plan: object) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.structured(plan), enum_to_str=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
