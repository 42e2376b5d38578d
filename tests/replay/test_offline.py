from dataclasses import replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Space, Tuple
from minari.data_collector import EpisodeBuffer
from torchrl.data import Bounded, Categorical, Composite, Unbounded

from sac_torchrl import SAC, LearnerConfig, NetworkConfig, OfflineConfig, ReplayConfig, Specs, Storage, TrainConfig
from sac_torchrl.errors import ConfigError
from sac_torchrl.replay.offline import load_rows
from sac_torchrl.specs import SPAN

# Minari advises to name an environment, and more, with every dataset.
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:minari")

CPU = torch.device("cpu")
SPECS = Specs(Unbounded(shape=torch.Size([2])), Bounded(-1, 1, shape=torch.Size([1])))
LENGTHS = {0: (4, True), 1: (3, False), 2: (1, True)}  # frames, and whether the episode terminates


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three episodes that observe (episode, step), with a reward of the step and actions between -2 and 6."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    buffers = [
        EpisodeBuffer(
            observations=[np.array([episode, step], np.float32) for step in range(length + 1)],
            actions=[np.array([2 + 4 * np.sin(step)], np.float32) for step in range(length)],
            rewards=[float(step + 1) for step in range(length)],
            terminations=[False] * (length - 1) + [terminates],
            truncations=[False] * (length - 1) + [not terminates],
        )
        for episode, (length, terminates) in LENGTHS.items()
    ]
    minari.create_dataset_from_buffers(
        "toy/numbers-v0",
        buffers,
        observation_space=Box(-np.inf, np.inf, (2,), np.float32),
        action_space=Box(-2, 6, (1,), np.float32),
        algorithm_name="none",
        description="Numbers that say where they belong.",
        author="tests",
        author_email="tests@example.org",
        code_permalink="https://example.org",
    )
    return "toy/numbers-v0"


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_rows_are_the_episodes_transitions(dataset: str, n_steps: int) -> None:
    rows = load_rows(dataset, replace(SPECS, n_steps=n_steps, gamma=0.5))
    assert len(rows) == 8
    for row in rows:
        episode, step = (int(value) for value in row["observation"])
        length, terminates = LENGTHS[episode]
        span = min(n_steps, length - step)
        assert row["next", "observation"].tolist() == [episode, step + span]
        assert row["next", "reward"].item() == sum(0.5**i * (step + 1 + i) for i in range(span))
        assert row["next", "terminated"].item() == (terminates and step + span == length)
        assert row["action"].item() == pytest.approx(np.sin(step), abs=1e-6)
        if n_steps > 1:
            assert row[SPAN].item() == span


def test_a_batch_is_half_of_each_and_repeats_with_the_buffers_generator(dataset: str, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        buffer = ReplayConfig(20, Storage.ram).build(tmp_path, SPECS, rows=20, batch_size=9, seed=3, device=CPU)
        rows = load_rows(dataset, SPECS)
        online = rows[:4].clone()
        online["observation"][:, 0] = 99
        buffer.extend(online)
        offline = OfflineConfig(dataset)
        source = offline.build(buffer, offline.load(SPECS, batch_size=9), batch_size=9, device=CPU)
        batches = [source.sample() for _ in range(40)]
        assert all(batch.shape == (9,) for batch in batches)
        assert all((batch["observation"][:5, 0] == 99).all() for batch in batches)
        drawn = torch.cat([batch["observation"][5:] for batch in batches])
        assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in rows["observation"].tolist()}
        found.append(torch.stack(batches))
    assert (found[0] == found[1]).all()
    learner = LearnerConfig().build(SAC(network=NetworkConfig([8])).build(SPECS, device=CPU))
    assert learner.update(batches[0])["loss_qvalue"].isfinite()


def test_without_a_dataset_batches_are_the_buffers(tmp_path: Path) -> None:
    buffer = ReplayConfig(20, Storage.ram).build(tmp_path, SPECS, rows=20, batch_size=4, seed=3, device=CPU)
    assert OfflineConfig().build(buffer, OfflineConfig().load(SPECS, batch_size=4), batch_size=4, device=CPU) is buffer


def test_a_dataset_that_does_not_fit_is_refused_in_one_line(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"offline\.dataset=none/such-v0 is not on this machine") as it:
        load_rows("none/such-v0", SPECS)
    assert "\n" not in str(it.value)
    wide = replace(SPECS, observation=Unbounded(shape=torch.Size([3])))
    with pytest.raises(ConfigError, match=r"its observation is of shape \(2,\), and this environment's of \(3,\)"):
        load_rows(dataset, wide)
    with pytest.raises(ConfigError, match=r"offline\.fraction=0\.5 of batch_size=1 is 0 rows"):
        OfflineConfig(dataset).load(SPECS, batch_size=1)
    with pytest.raises(ConfigError, match=r"offline\.fraction=1\.0: "):
        OfflineConfig(dataset, 1.0)
    with pytest.raises(ConfigError, match=r"replay\.prioritized=false"):
        TrainConfig(offline=OfflineConfig(dataset), replay=ReplayConfig(prioritized=True))


VECTOR, UNIT = Box(-np.inf, np.inf, (2,), np.float32), Box(-1, 1, (1,), np.float32)
SEEN, TAKEN = np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros((3, 1), np.float32)


def made(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: Space[Any] = VECTOR,
    acts: Space[Any] = UNIT,
    *,
    observations: Any = SEEN,
    actions: Any = TAKEN,
    rewards: Any = (1.0, 2.0, 3.0),
) -> str:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    flags = [False] * 3
    episode = EpisodeBuffer(
        id=0, observations=observations, actions=actions, rewards=list(rewards), terminations=flags, truncations=flags
    )
    about = {"author": "tests", "author_email": "tests@example.org", "code_permalink": "https://example.org"}
    options: Any = {"observation_space": seen, "action_space": acts, "algorithm_name": "none", **about}
    minari.create_dataset_from_buffers("toy/odd-v0", [episode], **options)
    return "toy/odd-v0"


def broken(values: Any, at: Any, value: float) -> Any:
    copy = np.array(values, np.float64 if np.ndim(values) == 1 else np.float32)
    copy[at] = value
    return copy


@pytest.mark.parametrize(
    ("spaces", "columns", "said"),
    [
        ({"acts": Box(-np.inf, np.inf, (1,), np.float32)}, {}, "without sensible bounds"),
        ({"acts": Box(0, np.inf, (1,), np.float32)}, {}, "without sensible bounds"),
        ({"acts": Box(-1e10, 1e10, (1,), np.float32)}, {}, "without sensible bounds"),
        ({"acts": Box(0.5, 0.5, (1,), np.float32)}, {}, "a lower bound that is not below"),
        ({"acts": Box(-2, 2, (1,), np.float32)}, {}, r"actions: their space is Box\(-2"),
        ({}, {"actions": broken(TAKEN, 1, 3.0)}, "actions: 0 to 3 lie outside of"),
        ({}, {"actions": broken(TAKEN, 1, np.nan)}, r"actions: .*nan.* at step 1 is no finite float32"),
        ({}, {"observations": broken(SEEN, 2, np.nan)}, "observations: which is not finite"),
        ({}, {"observations": broken(SEEN, 2, np.inf)}, "observations: which is not finite"),
        ({}, {"rewards": broken((1.0, 2.0, 3.0), 2, -1e39)}, "rewards: .*at step 2 is no finite float32"),
        ({}, {"observations": SEEN[:3]}, "observations: .*4 are needed"),
        ({"seen": Dict(a=VECTOR)}, {"observations": {"a": SEEN}}, "observations: Dict.*the environment has others"),
        ({"acts": Discrete(3)}, {"actions": np.array([0, 1, 2])}, "actions: 0 to 2 of Discrete"),
        (
            {"acts": Tuple([Discrete(3), UNIT])},
            {"actions": (np.array([0, 1, 2]), TAKEN)},
            r"actions: those of Tuple\(Discrete\(3\), .* are not read from datasets",
        ),
    ],
)
def test_a_dataset_that_cannot_be_learned_from_is_refused_by_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spaces: Any, columns: Any, said: str
) -> None:
    dataset = made(tmp_path, monkeypatch, **spaces, **columns)
    with pytest.raises(ConfigError, match=rf"toy/odd-v0.*{said}") as it:
        load_rows(dataset, replace(SPECS, action_space=UNIT))
    assert "\n" not in str(it.value)


def test_indices_and_dictionaries_are_read_as_their_environment_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discrete = Specs(Categorical(4), Categorical(3))
    of_indices = made(
        tmp_path / "one",
        monkeypatch,
        Discrete(4, start=10),
        Discrete(3, start=-1),
        observations=np.array([10, 11, 13, 12]),
        actions=np.array([-1, 1, 0]),
    )
    rows = load_rows(of_indices, discrete)
    assert rows["observation"].tolist() == [0, 1, 3] and rows["next", "observation"].tolist() == [1, 3, 2]
    assert rows["action"].tolist() == [0, 2, 1]
    leaves = Composite(goal=Unbounded(torch.Size([2])), place=Unbounded(torch.Size([2])))
    of_leaves = made(
        tmp_path / "two", monkeypatch, Dict(goal=VECTOR, place=VECTOR), observations={"goal": SEEN, "place": SEEN + 1}
    )
    rows = load_rows(of_leaves, replace(SPECS, observation=leaves))
    assert rows["next", "observation", "place"].tolist() == (SEEN + 1)[1:].tolist()
