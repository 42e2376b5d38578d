"""Short runs from Python, and what is compared of them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from sac_torchrl import (
    SAC,
    CheckpointConfig,
    DiscreteSAC,
    EnvConfig,
    EvaluationConfig,
    Execution,
    Hindsight,
    LearnerConfig,
    NetworkConfig,
    ReplayConfig,
    RunConfig,
    TrainConfig,
)
from sac_torchrl.runs import snapshot

FRAMES = 240


def configuration(folder: Path, id: str, *, ratio: float = 0.3, plugins: Sequence[str] = ()) -> TrainConfig:
    """A run of 240 frames in two environments, with four checkpoints."""
    discrete = id.startswith(("CartPole", "Masked"))
    small = NetworkConfig([8])
    known = {"Borrowing-v0": "faulty", "Levers-v0": "buttons", "Line-v0": "goals", "Masked-v0": "masked"}
    plugins = [known[id]] if id in known else plugins
    return TrainConfig(
        variant=DiscreteSAC(network=small) if discrete else SAC(network=small),
        env=EnvConfig(id, 2, list(plugins)),
        total_frames=FRAMES,
        random_frames=40,
        replay_ratio=ratio,
        batch_size=16,
        log_every=36,
        device="cpu",
        learner=LearnerConfig(execution=Execution.eager),
        replay=ReplayConfig(capacity=150, hindsight=Hindsight.future if id == "Line-v0" else Hindsight.none),
        evaluate=EvaluationConfig(every=100 if id == "Pendulum-v1" else FRAMES, episodes=1),
        checkpoint=CheckpointConfig(every=60),
        run=RunConfig(str(folder)),
    )


def digest(folder: Path, frames: int = FRAMES) -> str:
    """The digest of the run's checkpoint at so many frames."""
    folder = folder / "checkpoints"
    return snapshot.digest(folder, snapshot.verify(folder / str(frames)))


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if not key.startswith("time/")} for row in csv.DictReader(file)]
