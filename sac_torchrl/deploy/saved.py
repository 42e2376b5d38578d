"""A policy on disk: one safetensors file with the actor's weights, and in its header whatever is needed to act."""

import json
from dataclasses import dataclass, field
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
from sac_torchrl.config.layers import layer
from sac_torchrl.config.schema import TrainConfig, chosen
from sac_torchrl.deploy.spaces import agent_specs, environment_spaces, space_from_json, space_to_json
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.masks import MaskSource
from sac_torchrl.errors import CheckpointError, ConfigError, short
from sac_torchrl.files import write_whole
from sac_torchrl.runs.evaluation import Evaluation
from sac_torchrl.runs.snapshot import versions
from sac_torchrl.specs import MASK, Specs

FILE = "policy.safetensors"
_KEY = "sac_torchrl"
_FORMAT = 1
_CPU = torch.device("cpu")


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
    versions: dict[str, str] = field(default_factory=versions)

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
        env["mask"] = _mask_source(specs, config.env, observation).value
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

    @property
    def mask(self) -> MaskSource:
        """Where the mask of legal actions is: `none`, `observation`, or any other, which is not in the observation."""
        return MaskSource[self.env.get("mask", MaskSource.none.value)]

    def specs(self) -> Specs:
        """The spaces as the agent sees them."""
        return agent_specs(
            self.observation_space,
            self.action_space,
            self.env["id"],
            ignore=self.env["ignore"],
            bins=self.env.get("bins"),
            mask=self.mask,
            parameters=self.env.get("parameters"),
        )

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


def _mask_source(specs: Specs, plan: EnvConfig, observation: Space[Any]) -> MaskSource:
    """What env.mask=auto came to, as far as acting without the environment needs it."""
    if specs.mask is None:
        return MaskSource.none
    observed = MASK not in plan.ignore and MASK in getattr(observation, "spaces", ())
    return MaskSource.observation if plan.mask is MaskSource.auto and observed else plan.mask


def _settings(plan: object) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.structured(plan), enum_to_str=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
