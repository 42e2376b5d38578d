"""Offline data: a part of every batch comes from an existing dataset (RLPD)."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Composite, TensorDictReplayBuffer

from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.observations import adapt_observation, named_leaves
from sac_torchrl.errors import ConfigError, short
from sac_torchrl.extras import require
from sac_torchrl.fields import check, field
from sac_torchrl.replay.buffer import generator, layout
from sac_torchrl.specs import SPAN, Specs

_ROUNDED = 1e-4  # how far beyond its bounds an action may lie, in halves of their range


class Source(Protocol):
    """A source of batches."""

    def sample(self) -> TensorDictBase:
        """Draw a batch."""


@dataclass
class OfflineConfig:
    """A part of each batch from offline data (Ball et al. 2023, arXiv 2302.02948, algorithm 1).

    A dataset is the folder of another run, or one of Minari on this machine, below $MINARI_DATASETS_PATH or
    ~/.minari/datasets. Nothing is downloaded.
    """

    dataset: str | None = field(None, "a run, or the id of a Minari dataset on this machine; null: none")
    fraction: float = field(0.5, "part of each batch from the dataset", above=0, below=1)

    def __post_init__(self) -> None:
        check(self, "offline")

    def load(self, specs: Specs, *, batch_size: int, rows: TensorDict | None = None) -> TensorDict | None:
        """Read the dataset's rows, or None without a dataset.

        `rows` are those of a dataset that is a run, as `runs.init.rows_of_run` reads them; one of Minari is read here.
        Raises ConfigError where it is missing, is of other spaces than `specs`, or gives no row of a batch.
        """
        if self.dataset is None:
            return None
        count = math.floor(self.fraction * batch_size)
        if not 0 < count < batch_size:
            raise ConfigError(
                f"offline.fraction={self.fraction} of batch_size={batch_size} is {count} rows: give a larger batch."
            )
        return load_rows(self.dataset, specs) if rows is None else rows

    def build(
        self, buffer: TensorDictReplayBuffer, rows: TensorDict | None, *, batch_size: int, device: torch.device
    ) -> Source:
        """Mix the `rows` of a dataset into the samples of `buffer`, or return `buffer` itself without any."""
        if rows is None:
            return buffer
        count = math.floor(self.fraction * batch_size)
        return Mixed(buffer, rows.to(device), online=batch_size - count, offline=count)


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
    parts = [_rows(_Episode(one, found, specs, dataset), specs) for one in found.iterate_episodes()]
    if not parts:
        raise ConfigError(f"offline.dataset={dataset} holds no episode.")
    return torch.cat(parts)


class _Episode:
    """One episode in the agent's spaces, through the adapter of its environment; raises ConfigError."""

    def __init__(self, episode: Any, found: Any, specs: Specs, dataset: str) -> None:
        self._where = f"offline.dataset={dataset}, episode {episode.id}"
        self.rewards = self._numbers("rewards", episode.rewards)
        self.terminations = np.asarray(episode.terminations, np.bool_)
        self.length = len(self.rewards)
        wanted = {key[-1] for key in specs.leaves}
        several = isinstance(specs.observation, Composite) and isinstance(found.observation_space, (Dict, Tuple))
        ignored = [name for name in named_leaves(found.observation_space) if name not in wanted] if several else []
        space, adapt = adapt_observation(found.observation_space, f"{dataset} (a dataset)", ignored)
        try:
            seen = [adapt(_at(episode.observations, number)) for number in range(self.length + 1)]
        except (TypeError, ValueError, IndexError) as error:
            raise self._refused("observations", f"{short(error)}; {self.length + 1} are needed") from error
        names = space.spaces if isinstance(space, Dict) else None
        if (names is None) != (set(specs.leaves) == {("observation",)}):
            raise self._refused("observations", f"{short(found.observation_space)}, and the environment has others")
        self.observations = (
            {("observation",): np.stack(seen)}
            if names is None
            else {("observation", name): np.stack([one[name] for one in seen]) for name in names}
        )
        self.actions = self._actions(episode.actions, found.action_space, specs, dataset)

    def fit(self, key: tuple[str, ...], values: Any, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        """A column of the replay buffer."""
        column = torch.as_tensor(np.asarray(values)).to(dtype)
        if column.shape != (self.length, *shape):
            raise ConfigError(
                f"{self._where}: its {'.'.join(key)} is of shape {tuple(column.shape[1:])}, and this "
                f"environment's of {tuple(shape)}: give a dataset of this environment."
            )
        return column

    def _numbers(self, column: str, values: Any) -> NDArray[np.float64]:
        numbers = np.asarray(values, np.float64)
        fits = np.abs(numbers) <= np.finfo(np.float32).max  # NaN is not
        if not fits.all():
            at = int(np.argmin(fits.reshape(len(fits), -1).all(-1)))
            raise self._refused(column, f"{short(numbers[at])} at step {at} is no finite float32")
        return numbers

    def _actions(self, taken: Any, space: Any, specs: Specs, dataset: str) -> NDArray[Any]:
        """In [-1, 1], or indices from 0."""
        agents, _ = adapt_action(space, f"{dataset} (a dataset)")
        if isinstance(space, (Dict, Tuple)):
            raise self._refused("actions", f"those of {short(space)} are not read from datasets")
        taken = np.asarray(taken)
        if len(taken) != self.length:
            raise self._refused("actions", f"there are {len(taken)} for {self.length} rewards")
        if isinstance(space, (Discrete, MultiDiscrete)):
            indices: NDArray[Any] = taken - space.start
            if isinstance(space, MultiDiscrete):
                indices = indices.reshape(self.length, -1)
            counts = agents.n if isinstance(agents, Discrete) else np.asarray(getattr(agents, "nvec", -1))
            here: Any = getattr(specs.action, "nvec", getattr(specs.action.space, "n", None))
            if not np.array_equal(counts, here) or ((indices < 0) | (indices >= counts)).any():
                raise self._refused("actions", f"{taken.min()} to {taken.max()} of {short(space)}, of {here} here")
            return indices
        if not isinstance(space, Box):
            raise self._refused("actions", f"{short(space)} is not read from datasets")
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        native = specs.action_space
        if isinstance(native, Box) and not (np.array_equal(native.low, low) and np.array_equal(native.high, high)):
            raise self._refused("actions", f"their space is {short(space)}, and the environment's {short(native)}")
        scaled = 2 * (self._numbers("actions", taken) - low) / (high - low) - 1
        if (np.abs(scaled) > 1 + _ROUNDED).any():
            raise self._refused("actions", f"{taken.min():g} to {taken.max():g} lie outside of {short(space)}")
        clipped: NDArray[Any] = np.clip(scaled, -1, 1).reshape(self.length, -1)
        return clipped

    def _refused(self, column: str, why: str) -> ConfigError:
        return ConfigError(f"{self._where}: {column}: {why}: give a dataset of this environment.")


def _at(observations: Any, number: int) -> Any:
    """One observation of an episode, of a dictionary or tuple of columns too."""
    if isinstance(observations, dict):
        return {name: _at(column, number) for name, column in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_at(column, number) for column in observations)
    return observations[number]


def _rows(episode: _Episode, specs: Specs) -> TensorDict:
    """The rows of one episode, each of `specs.n_steps` frames, or fewer at its end."""
    length = episode.length
    spans = np.minimum(specs.n_steps, length - np.arange(length))
    rewards = np.zeros(length)
    for power in range(specs.n_steps):
        within = spans > power
        rewards[within] += specs.gamma**power * episode.rewards[np.arange(length)[within] + power]
    ends = np.arange(length) + spans
    columns: dict[tuple[str, ...], Any] = {
        ("action",): episode.actions,
        ("next", "reward"): rewards[:, None],
        ("next", "terminated"): episode.terminations[ends - 1][:, None],
        (SPAN,): spans[:, None],
    }
    columns.update({key: leaf[:-1] for key, leaf in episode.observations.items()})
    columns.update({("next", *key): leaf[ends] for key, leaf in episode.observations.items()})
    rows = TensorDict(batch_size=[length])
    for key, (dtype, shape) in layout(specs).items():
        if key not in columns:
            raise ConfigError(f"the offline dataset has no {'.'.join(key)}: give a dataset of this environment.")
        rows.set(key, episode.fit(key, columns[key], dtype, shape))
    return rows
