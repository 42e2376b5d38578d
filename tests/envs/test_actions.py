"""Several discrete actions at the edge of an environment, and continuous ones that are made discrete."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete, Space
from torchrl.data import MultiCategorical

from sac_torchrl import train
from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.errors import LearnerFault


@pytest.mark.parametrize(
    ("space", "sizes", "chosen", "taken"),
    [
        (MultiDiscrete([3, 2]), [3, 2], [2, 0], [2, 0]),
        (MultiDiscrete([3, 2], start=[5, -1]), [3, 2], [2, 0], [7, -1]),
        (MultiBinary(3), [2, 2, 2], [1, 0, 1], [1, 0, 1]),
    ],
    ids=str,
)
def test_several_discrete_actions_are_indices_from_0(
    space: Space[Any], sizes: list[int], chosen: list[int], taken: list[int]
) -> None:
    choices, take = adapt_action(space, "Toy-v0")
    assert isinstance(choices, MultiDiscrete) and choices.nvec.tolist() == sizes
    action = take(np.array(chosen))
    assert action.tolist() == taken
    assert space.contains(action)
    with pytest.raises(LearnerFault, match=r"is not one of 0 to"):
        take(np.array(sizes))


def test_bins_lie_evenly_between_the_bounds() -> None:
    choices, take = adapt_action(Box(np.array([-2, 0], np.float32), np.array([2, 8], np.float32)), "Toy-v0", bins=5)
    assert isinstance(choices, MultiDiscrete) and choices.nvec.tolist() == [5, 5]
    assert [take(np.array([k, 4 - k])).tolist() for k in range(5)] == [[-2, 8], [-1, 6], [0, 4], [1, 2], [2, 0]]


@pytest.mark.parametrize("count", [1, 3])
def test_the_agent_sees_how_many_values_each_action_has(count: int) -> None:
    config = EnvConfig("HalfCheetah-v5", count=count, bins=3)
    spec = config.specs().action
    assert isinstance(spec, MultiCategorical) and spec.shape == (6,)
    env = config.build(seed=0)
    torch.manual_seed(0)
    drawn = torch.stack([env.rand_action()["action"] for _ in range(200)])
    env.close()
    assert drawn.shape == (200, count, 6)
    assert drawn.dtype == torch.int64
    shares = torch.stack([(drawn == value).float().mean((0, 1)) for value in range(3)])
    torch.testing.assert_close(shares, torch.full((3, 6), 1 / 3), rtol=0.0, atol=0.12)


def test_a_run_in_processes_learns_to_press_a_button(tmp_path: Path) -> None:
    result = train(
        "discrete",
        env={"id": "Buttons-v0", "plugins": ["buttons"], "count": 2},
        collector={"name": "processes", "workers": 2},
        variant={"network": {"hidden": [8]}},
        learner={"lr": 0.01, "execution": "eager"},
        n_steps=2,
        total_frames=400,
        random_frames=40,
        batch_size=16,
        evaluate={"every": 400, "episodes": 1},
        run={"folder": tmp_path / "run"},
        device="cpu",
    )
    assert result.evaluation.mean == 10.0
