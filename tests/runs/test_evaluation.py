import json
from pathlib import Path
from typing import Any

import counting
import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal
from trial import files_of_at_most

from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import seeds
from sac_torchrl.errors import ConfigError, EnvironmentFault, SacError
from sac_torchrl.runs import episodes
from sac_torchrl.runs.evaluation import Evaluation, evaluate, write_evaluation
from sac_torchrl.runs.video import record_video

COUNTING = EnvConfig("Counting-v0", plugins=["counting"])


def still(size: int) -> TensorDictModule:
    """An actor without parameters that always does the same."""
    return TensorDictModule(lambda seen: torch.zeros(len(seen), size), ["observation"], ["action"])


def noisy_actor() -> ProbabilisticActor:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(network, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )


@pytest.mark.parametrize("episodes", [1, 4, 7, 17])
def test_each_environment_plays_its_share_of_whole_episodes(episodes: int) -> None:
    env = COUNTING.build(seed=0, count=7)
    evaluation = evaluate(still(1), env, episodes=episodes, seed=11)
    numbers = [seed % 9973 for seed in seeds(11, 7)]
    shares = [len(range(number, episodes, 7)) for number in range(7)]
    lengths = [
        counting.length(number, episode)
        for number, share in zip(numbers, shares, strict=True)
        for episode in range(1, share + 1)
    ]
    assert len(lengths) == episodes
    assert evaluation.lengths == lengths
    assert evaluation.returns == [length * (length + 1) / 2 for length in lengths]


def test_one_environment_plays_all() -> None:
    evaluation = evaluate(still(1), COUNTING.build(seed=0, count=1), episodes=5, seed=2)
    number = seeds(2, 1)[0] % 9973
    assert evaluation.lengths == [counting.length(number, episode) for episode in range(1, 6)]


def test_no_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate(still(1), COUNTING.build(seed=0), episodes=0, seed=0)


def test_actions_are_deterministic_and_nothing_global_moves() -> None:
    actor = noisy_actor()
    env = EnvConfig("Pendulum-v1").build(seed=0, count=2)
    next(module for module in actor.modules() if isinstance(module, NormalParamExtractor)).eval()
    modes = [module.training for module in actor.modules()]
    generator = torch.get_rng_state()
    first = evaluate(actor, env, episodes=2, seed=5)
    assert torch.equal(generator, torch.get_rng_state())
    assert [module.training for module in actor.modules()] == modes
    assert torch.is_grad_enabled()
    torch.manual_seed(1)
    assert evaluate(actor, env, episodes=2, seed=5) == first
    assert evaluate(actor, env, episodes=2, seed=6) != first
    assert evaluate(actor, env, episodes=2, seed=5, deterministic=False) != first


def test_an_episode_without_an_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "LONGEST", 30)
    with pytest.raises(EnvironmentFault, match=r"no end after 30 frames: set env\.max_episode_steps"):
        evaluate(still(1), EnvConfig("Endless-v0", plugins=["faulty"]).build(), episodes=1, seed=0)


def test_nothing_is_kept_for_gradients() -> None:
    asked: list[bool] = []

    def act(seen: torch.Tensor) -> torch.Tensor:
        asked.append(torch.is_grad_enabled())
        return torch.zeros(len(seen), 1)

    evaluate(TensorDictModule(act, ["observation"], ["action"]), COUNTING.build(seed=0), episodes=1, seed=0)
    assert set(asked) == {False}


def test_mean_and_population_deviation() -> None:
    evaluation = Evaluation([1.0, 2.0, 6.0], [4, 5, 6])
    assert evaluation.mean == 3.0
    assert evaluation.std == pytest.approx((14 / 3) ** 0.5, abs=1e-12)


def test_the_file_says_all(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text("an older one")
    write_evaluation(Evaluation([1.0, 3.0], [4, 5], seeds=[6, 7]), path, env="Pendulum-v1", frames=800, seed=3)
    assert json.loads(path.read_text()) == {
        "env": "Pendulum-v1",
        "frames": 800,
        "seed": 3,
        "return_mean": 2.0,
        "return_std": 1.0,
        "returns": [1.0, 3.0],
        "lengths": [4, 5],
        "seeds": [6, 7],
    }
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_whole_or_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text("an older one")
    with files_of_at_most(20), pytest.raises(OSError, match="File too large"):
        write_evaluation(Evaluation([1.0, 3.0], [4, 5]), path, env="Pendulum-v1", frames=800, seed=3)
    assert path.read_text() == "an older one"


def test_one_episode_is_filmed(tmp_path: Path) -> None:
    path = record_video(still(1), EnvConfig("Pendulum-v1"), tmp_path / "videos" / "1.mp4", seed=0)
    assert list(path.parent.iterdir()) == [path]
    film: Any = imageio.get_reader(path)
    with film:
        assert film.count_frames() == 200
        first, last = film.get_data(0), film.get_data(199)
    assert first.shape == (500, 500, 3)
    assert (first != last).any()


class Blind(gym.Env[Any, Any]):
    """Can be asked for pictures, but fails to draw the third."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    closed = False
    drawn = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        self.drawn += 1
        if self.drawn == 3:
            raise RuntimeError("no light")
        return np.zeros((64, 64, 3), np.uint8)

    def close(self) -> None:
        Blind.closed = True


def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path: Path) -> None:
    gym.register("Blind-v0", lambda **options: Blind(**options))
    (tmp_path / "film.mp4").write_text("an older one")
    try:
        with pytest.raises(SacError, match=r"env.id=Blind-v0 cannot be rendered here \(RuntimeError\('no light'\)\)"):
            record_video(still(1), EnvConfig("Blind-v0"), tmp_path / "film.mp4", seed=0)
        assert (tmp_path / "film.mp4").read_text() == "an older one"
        assert Blind.closed
    finally:
        gym.registry.pop("Blind-v0")
    with pytest.raises(ConfigError, match=r"env.id=Counting-v0 cannot be rendered"):
        record_video(still(1), COUNTING, tmp_path / "film.mp4", seed=0)
