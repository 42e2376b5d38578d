"""Offline data beside the run's own: a part of every batch comes from a dataset that exists already (RLPD)."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Composite, TensorDictReplayBuffer

from sac_torchrl.envs.observations import leaf_at, named_leaves
from sac_torchrl.errors import ConfigError
from sac_torchrl.extras import require
from sac_torchrl.fields import check, field
from sac_torchrl.replay.buffer import generator, layout
from sac_torchrl.specs import SPAN, Specs


class Source(Protocol):
    """Something that gives batches to learn from."""

    def sample(self) -> TensorDictBase:
        """Draw a batch."""


@dataclass
class OfflineConfig:
    """A part of each batch from offline data (Ball et al. 2023, arXiv 2302.02948, algorithm 1).

    Datasets are those of Minari on this machine, below $MINARI_DATASETS_PATH or ~/.minari/datasets. Nothing is
    downloaded.
    """

    dataset: str | None = field(None, "id of a Minari dataset on this machine; null: none")
    fraction: float = field(0.5, "part of each batch from the dataset", above=0, below=1)

    def __post_init__(self) -> None:
        check(self, "offline")

    def build(self, buffer: TensorDictReplayBuffer, specs: Specs, *, batch_size: int, device: torch.device) -> Source:
        """Mix the dataset's rows into the samples of `buffer`, or give `buffer` itself where there is no dataset.

        Raises ConfigError where the dataset is missing or is of other spaces than `specs`.
        """
        if self.dataset is None:
            return buffer
        count = math.floor(self.fraction * batch_size)
        if not 0 < count < batch_size:
            raise ConfigError(
                f"offline.fraction={self.fraction} of batch_size={batch_size} is {count} rows: give a larger batch."
            )
        return Mixed(buffer, load_rows(self.dataset, specs).to(device), online=batch_size - count, offline=count)


class Mixed:
    """Batches of `online` rows of a replay buffer and `offline` of other `rows`, in this order.

    Both are drawn uniformly with replacement, from the buffer's own generator.
    """

    def __init__(self, buffer: TensorDictReplayBuffer, rows: TensorDict, *, online: int, offline: int) -> None:
        self._buffer = buffer
        self._rows = rows
        self._online = online
        self._offline = offline

    def sample(self) -> TensorDictBase:
        """Draw a batch `(online + offline,)`."""
        # The buffer gives batches of its own size, and warns of every other.
        online = self._buffer.sample()[: self._online]
        random = generator(self._buffer)
        drawn = torch.randint(len(self._rows), (self._offline,), generator=random, device=random.device)
        rows = self._rows[drawn.to(self._rows.device)]
        return torch.cat([online.select(*rows.keys(include_nested=True, leaves_only=True)), rows])


def load_rows(dataset: str, specs: Specs) -> TensorDict:
    """The transitions of a local Minari dataset as rows of the replay buffer; raises ConfigError."""
    minari: Any = require("minari", f"offline.dataset={dataset}")
    try:
        found = minari.load_dataset(dataset, download=False)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f"offline.dataset={dataset} is not on this machine ({' '.join(str(error).split())}): make it, or fetch it "
            f"with `minari download {dataset}`."
        ) from error
    parts = [_rows(episode, found, specs, dataset) for episode in found.iterate_episodes()]
    if not parts:
        raise ConfigError(f"offline.dataset={dataset} holds no episode.")
    return torch.cat(parts)


def _rows(episode: Any, found: Any, specs: Specs, dataset: str) -> TensorDict:
    """The rows of one episode, each of `specs.n_steps` frames or what is left of them."""
    length = len(episode.rewards)
    spans = np.minimum(specs.n_steps, length - np.arange(length))
    rewards = np.zeros(length)
    for power in range(specs.n_steps):
        within = spans > power
        rewards[within] += specs.gamma**power * episode.rewards[np.arange(length)[within] + power]
    ends = np.arange(length) + spans
    observed = _observations(episode.observations, found.observation_space, specs, dataset)
    columns: dict[tuple[str, ...], Any] = {
        **{key: leaf[:-1] for key, leaf in observed.items()},
        ("action",): _actions(episode.actions, found.action_space),
        **{("next", *key): leaf[ends] for key, leaf in observed.items()},
        ("next", "reward"): rewards[:, None],
        ("next", "terminated"): np.asarray(episode.terminations, np.bool_)[ends - 1][:, None],
        (SPAN,): spans[:, None],
    }
    rows = TensorDict(batch_size=[length])
    for key, (dtype, shape) in layout(specs).items():
        column = torch.as_tensor(np.asarray(columns[key])).to(dtype)
        if column.shape != (length, *shape):
            raise ConfigError(
                f"offline.dataset={dataset}: its {'.'.join(key)} is of shape {tuple(column.shape[1:])}, and this "
                f"environment's of {tuple(shape)}: give a dataset of this environment."
            )
        rows.set(key, column)
    return rows


def _observations(seen: Any, space: Any, specs: Specs, dataset: str) -> dict[tuple[str, ...], NDArray[Any]]:
    """The observations of an episode as the agent has them, by key: vectors, and indices from 0."""
    if not isinstance(specs.observation, Composite):
        return {("observation",): _leaf(seen, space)}
    named = named_leaves(space)
    if missing := [key[-1] for key in specs.leaves if key[-1] not in named]:
        raise ConfigError(f"offline.dataset={dataset} observes no {missing[0]}: give a dataset of this environment.")
    return {key: _leaf(leaf_at(seen, named[key[-1]][0]), named[key[-1]][1]) for key in specs.leaves}


def _leaf(seen: Any, space: Any) -> NDArray[Any]:
    values = np.asarray(seen)
    if isinstance(space, (Discrete, MultiDiscrete)):
        values = values - space.start
    return values if isinstance(space, Discrete) else values.reshape(len(values), -1)


def _actions(taken: NDArray[Any], space: Any) -> NDArray[Any]:
    """The actions as the agent has them: in [-1, 1], or indices from 0."""
    if isinstance(space, Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return np.clip(2 * (taken - low) / (high - low) - 1, -1, 1)
    return taken - space.start if isinstance(space, Discrete) else taken
