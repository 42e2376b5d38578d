"""What a run takes from another one: weights to begin with, and replay rows to learn from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import TensorDictReplayBuffer

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.normalization import Normalizer
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import check, field
from sac_torchrl.replay.buffer import layout
from sac_torchrl.runs import snapshot
from sac_torchrl.runs.folder import CONFIG
from sac_torchrl.runs.settings import read_settings
from sac_torchrl.runs.snapshot import Snapshot
from sac_torchrl.specs import Specs

# The tensors of a loss that belong to a part: all with names that begin so.
PARTS = {
    "actor": ("actor_network_params.",),
    "critics": (
        "qvalue_network_params.",
        "target_qvalue_network_params.",
        "value_network_params.",
        "target_value_network_params.",
    ),
    "alpha": ("log_alpha",),
    "normalizer": ("normalizer.",),
}


@dataclass
class InitConfig:
    """Another run's weights to begin with; optimizers, replay rows and counters are new.

    Environment settings and learning rates may differ, spaces and networks may not. `frames` and `digest` record which
    checkpoint was taken; a new run fills them in.
    """

    run: str | None = field(None, "a run, or runs/NAME/checkpoints/N, to begin from; null: new weights")
    parts: list[str] = field(list(PARTS), "what is taken from it", choices=tuple(PARTS))
    frames: int | None = field(None, "frames of the checkpoint that was taken; null: the newest", least=0)
    digest: str | None = field(None, "SHA-256 of that checkpoint's content; null: any")

    def __post_init__(self) -> None:
        check(
            self,
            "init",
            (
                bool(self.parts) and len(set(self.parts)) == len(self.parts),
                f"init.parts=[{','.join(map(str, self.parts))}]: give one or more of {', '.join(PARTS)}, each once.",
            ),
            (
                self.run is not None or (self.frames is None and self.digest is None),
                "init.frames and init.digest belong to init.run: give all of them or none.",
            ),
        )

    def prepare(self, agent: Agent, specs: Specs) -> dict[str, Tensor]:
        """Read the tensors that `agent`, one like that of the run, takes over, and note where they are from.

        Empty without `run`. Raises ConfigError where the source is missing, has other spaces or other networks.
        """
        if self.run is None:
            return {}
        folder, saved = _checkpoint(self.run, self.frames)
        digest = snapshot.digest(folder, saved)
        if self.digest not in (None, digest):
            raise ConfigError(f"init.run={self.run}: its checkpoint at {saved.frames} frames has another init.digest.")
        self._refuse_other_spaces(saved, specs)
        tensors = saved.state["parts"]["learner"]["loss"]
        chosen = {name for part in self.parts for name in _names(part, tensors)}
        for part in self.parts:
            self._refuse_other_networks(part, tensors, agent.loss.state_dict())
        self.frames, self.digest = saved.frames, digest
        return {name: tensors[name] for name in sorted(chosen)}

    def load(self, agent: Agent, tensors: Mapping[str, Tensor], buffer: TensorDictReplayBuffer) -> None:
        """Copy `tensors` into an agent, and tell its normalizers how many of their rows are not in `buffer`."""
        own = agent.loss.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        for module in (part for part in agent.observers if isinstance(part, nn.Module) and self.run is not None):
            for normalizer in (one for one in module.modules() if isinstance(one, Normalizer)):
                normalizer.elsewhere = int(normalizer.seen) - buffer.write_count

    def _refuse_other_spaces(self, saved: Snapshot, specs: Specs) -> None:
        there = saved.state["rows"]["columns"]
        for key, (dtype, shape) in layout(specs).items():
            name, here = "/".join(key), f"{dtype} {tuple(shape)}"
            if key[0] not in ("next", "action", *(leaf[0] for leaf in specs.leaves)) or there.get(name) == here:
                continue
            raise ConfigError(
                f"init.run={self.run}: {name.replace('/', '.')} is {there.get(name, 'missing')} there and {here} here: "
                "give a run with these spaces."
            )

    def _refuse_other_networks(self, part: str, there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
        for name in sorted({*_names(part, there), *_names(part, here)}):
            shapes = [tuple(one[name].shape) if name in one else "missing" for one in (there, here)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"init.run={self.run}: {name} is {shapes[0]} there and {shapes[1]} here: give the settings of its "
                    f"networks, or init.parts without {part}."
                )


def rows_of_run(dataset: str | None, specs: Specs) -> TensorDict | None:
    """The replay rows of a run's newest checkpoint; None where `dataset` is no run folder.

    Raises ConfigError where the rows are not as `specs` has them.
    """
    if dataset is None or not (Path(dataset) / CONFIG).is_file():
        return None
    folder, saved = _checkpoint(dataset, None, key="offline.dataset")
    there = saved.state["rows"]["columns"]
    for key, (dtype, shape) in layout(specs).items():
        name, here = "/".join(key), f"{dtype} {tuple(shape)}"
        if there.get(name) != here:
            raise ConfigError(
                f"offline.dataset={dataset}: {name.replace('/', '.')} is {there.get(name, 'missing')} there and {here} "
                "here: give a run with these spaces and n_steps."
            )
    settings = read_settings(Path(dataset) / CONFIG)
    horizon = settings["n_steps"], settings["variant"]["gamma"]
    if specs.n_steps > 1 and horizon != (specs.n_steps, specs.gamma):
        raise ConfigError(
            f"offline.dataset={dataset}: its rows span n_steps={horizon[0]} with variant.gamma={horizon[1]}, and here "
            f"it is {specs.n_steps} with {specs.gamma}: give a run with the same."
        )
    oldest = max(0, saved.state["rows"]["write_count"] - saved.state["rows"]["capacity"])
    parts = [
        {name: column[max(0, oldest - one.start) :] for name, column in snapshot.read_segment(folder, one).items()}
        for one in saved.segments
    ]
    if not parts:
        raise ConfigError(f"offline.dataset={dataset} has no replay rows yet.")
    columns = {"/".join(key): torch.cat([part["/".join(key)] for part in parts]) for key in layout(specs)}
    count = len(next(iter(columns.values())))
    return TensorDict(columns, batch_size=[count]).unflatten_keys("/")


def _checkpoint(run: str, frames: int | None, *, key: str = "init.run") -> tuple[Path, Snapshot]:
    """The folder of a run's checkpoints and the one of them that is meant, verified."""
    path = Path(run).expanduser()
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        path, named = path.parents[1], int(path.name)
        if frames not in (None, named):
            raise ConfigError(f"{key}={run}: it is of {named} frames and init.frames={frames}: give one of them.")
        frames = named
    folder = path / "checkpoints"
    known = snapshot.frames_in(folder)
    if not known or frames not in (None, *known):
        kept = f"checkpoints at {', '.join(map(str, reversed(known)))} frames" if known else "no checkpoint"
        raise ConfigError(f"{key}={run}{'' if frames is None else f' at {frames} frames'}: {path} has {kept}.")
    saved = snapshot.newest(folder) if frames is None else snapshot.verify(folder / str(frames))
    assert saved is not None
    return folder, saved


def _names(part: str, tensors: Mapping[str, Any]) -> list[str]:
    return [name for name in tensors if name.startswith(PARTS[part])]
