"""Several discrete actions at the edge of an environment, and continuous ones that are made discrete."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text, Tuple
from torchrl.data import MultiCategorical

from sac_torchrl import train
from sac_torchrl.agents.hybrid import discrete_values
from sac_torchrl.agents.layout import Layout
from sac_torchrl.envs import actions
from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.hybrid_actions import hybrid_action
from sac_torchrl.errors import ConfigError, LearnerFault


@pytest.mark.parametrize(
    ("space", "sizes", "chosen", "taken"),
    [
        (MultiDiscrete([3, 2]), [3, 2], [2, 0], [2, 0]),
        (MultiDiscrete([3, 2], start=[5, -1]), [3, 2], [2, 0], [7, -1]),
        (MultiBinary(3), [2, 2, 2], [1, 0, 1], [1, 0, 1]),
        (MultiBinary((2, 2)), [2, 2, 2, 2], [1, 0, 1, 1], [[1, 0], [1, 1]]),
        (
            MultiDiscrete(np.array([[3, 2], [2, 4]]), start=np.array([[5, -1], [0, 0]])),
            [3, 2, 2, 4],
            [2, 0, 1, 3],
            [[7, -1], [1, 3]],
        ),
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


@pytest.mark.parametrize("shape", [(), (2, 3), (5, 3)], ids=str)
def test_a_box_of_any_shape_is_a_vector_for_the_agent(shape: tuple[int, ...]) -> None:
    low = -np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    space = Box(low, np.asarray(2 - low), dtype=np.float64)
    agents, rescale = adapt_action(space, "Toy-v0")
    assert agents == Box(-1.0, 1.0, (low.size,), np.float32)
    action = rescale(np.linspace(-1, 1, low.size) if shape else np.array([-1.0]))
    assert action.shape == shape and space.contains(action)
    assert action.flat[0] == -1.0 and (not shape or action.flat[-1] == 2.0 + low.size)


@pytest.mark.parametrize("copies", [1, 5], ids=["few numbers", "many"])
def test_actions_are_rescaled_to_the_bounds_and_clipped(copies: int) -> None:
    low, high = np.array([-3.0, 0.1, -1.0]), np.array([1.0, 0.7, 1e5])
    _, rescale = adapt_action(Box(np.tile(low, copies), np.tile(high, copies), dtype=np.float64), "Mine-v0")
    for t in (0.0, 0.3, 1.0):
        taken = rescale(np.full(3 * copies, 2 * t - 1, np.float64))
        part = (2 * t - 1 + 1) / 2  # as float64 has it
        assert taken.tolist() == (low * (1 - part) + high * part).tolist() * copies
        assert t == 0.3 or taken.tolist() == (high if t else low).tolist() * copies, "both bounds exactly"
    assert rescale(np.full(3 * copies, 9.0)).tolist() == high.tolist() * copies
    rows = np.linspace(-1, 1, 4 * 3 * copies).reshape(4, -1)
    assert (rescale(rows) == np.stack([rescale(row) for row in rows])).all(), "the rows of a vector environment"
    with pytest.raises(LearnerFault, match="not finite"):
        rescale(np.array([0.0, np.nan, 0.0] * copies))


def test_bins_lie_evenly_between_the_bounds() -> None:
    choices, take = adapt_action(Box(np.array([-2, 0], np.float32), np.array([2, 8], np.float32)), "Toy-v0", bins=5)
    assert isinstance(choices, MultiDiscrete) and choices.nvec.tolist() == [5, 5]
    assert [take(np.array([k, 4 - k])).tolist() for k in range(5)] == [[-2, 8], [-1, 6], [0, 4], [1, 2], [2, 0]]


PLATFORM = Tuple([Discrete(3, start=1), Tuple([Box(0, 30, (1,)), Box(0, 720, (1,)), Box(0, 430, (1,))])])
TWO_PARTS = Box(np.array([0, -2], np.float32), np.array([1, 2], np.float32))
NESTED = Dict(
    arm=Box(-2, 2, (2, 2), np.float64), grip=Discrete(2), head=Tuple([MultiBinary(2), Box(0, 1, ())]), turn=Discrete(3)
)


@pytest.mark.parametrize(
    ("space", "chosen", "taken"),
    [
        (PLATFORM, [-2 / 3, 1, 0, -1], (1, ([30.0], [360.0], [0.0]))),
        (PLATFORM, [0.99, -1, 0.5, -1], (3, ([0.0], [540.0], [0.0]))),
        (Tuple([Discrete(4), TWO_PARTS]), [1, 0, 0], (3, [0.5, 0.0])),
        (
            NESTED,
            [0.5, -0.5, 0.5, 0, 0, 1, -1, 0.5, 1],
            {"arm": [[0, 2], [-2, 1]], "grip": 1, "head": ([0, 1], 1.0), "turn": 1},
        ),
        (Dict(left=Box(-1, 3, (1,)), right=TWO_PARTS), [0, 1, -1], {"left": [1.0], "right": [1.0, -2.0]}),
        (Dict(a=Discrete(3), b=MultiBinary(2)), [2, 1, 0], {"a": 2, "b": [1, 0]}),
    ],
    ids=["platform", "edge of a part", "two parts", "nested", "no discrete", "no continuous"],
)
def test_a_dict_or_tuple_gets_its_own_action(space: Space[Any], chosen: list[float], taken: Any) -> None:
    agents, take = adapt_action(space, "Toy-v0")
    action = take(np.array(chosen, agents.dtype))
    assert space.contains(action)
    assert plain(action) == taken
    for _ in range(20):
        assert space.contains(take(agents.sample()))
    if agents.dtype == np.float32:
        with pytest.raises(LearnerFault, match="not finite any more"):
            take(np.full(agents.shape, np.nan))


def plain(action: Any) -> Any:
    if isinstance(action, dict):
        return {name: plain(part) for name, part in action.items()}
    return tuple(map(plain, action)) if isinstance(action, tuple) else action.tolist()


@pytest.mark.parametrize("size", [2, 3, 7, 1000])
def test_uniform_numbers_are_uniform_values_for_environment_and_critic(size: int) -> None:
    generator = np.random.default_rng(0)
    centers = (2 * np.arange(size, dtype=np.float64) + 1) / size - 1
    edges = 2 * np.arange(size + 1) / size - 1
    near = np.concatenate([np.nextafter(np.float32(edges), np.float32(way)) for way in (-2, 2)]).clip(-1, 1)
    drawn = np.concatenate([generator.uniform(-1, 1, 200_000), centers, edges, near]).astype(np.float32)
    values = actions.discrete_values(drawn[:, None], np.array([size]))[:, 0]
    assert torch.equal(
        discrete_values(torch.from_numpy(drawn[:, None]), Layout([size]))[:, 0], torch.tensor(values).long()
    )
    assert np.array_equal(values[200_000 : 200_000 + size], np.arange(size))
    shares = np.bincount(values[:200_000].astype(int), minlength=size) / 200_000
    assert np.abs(shares * size - 1).max() < 5 * np.sqrt(size / 200_000)


@pytest.mark.parametrize(
    ("space", "parameters", "belongs"),
    [
        (PLATFORM, None, ((0,), (1,), (2,))),
        (Tuple([Discrete(3), Box(-1, 1, (1,)), Box(-1, 1, (2,)), Box(-1, 1, (1,))]), None, ((0,), (1, 2), (3,))),
        (Dict(kind=Discrete(2), numbers=Tuple([Box(0, 1, (2,)), Box(0, 1, (1,))])), None, ((0, 1), (2,))),
        (Tuple([Discrete(3), TWO_PARTS]), None, ((0, 1),) * 3),
        (Tuple([Discrete(3), TWO_PARTS]), [[0], [1], []], ((0,), (1,), ())),
        (Dict(kind=Discrete(2), one=Box(0, 1, (1,)), two=Box(0, 1, (1,))), None, ((0, 1),) * 2),
        (Tuple([MultiBinary(2), TWO_PARTS]), None, ((0, 1),) * 4),
    ],
    ids=str,
)
def test_which_numbers_belong_to_which_value(space: Space[Any], parameters: Any, belongs: Any) -> None:
    hybrid = hybrid_action(space, "Toy-v0", parameters)
    assert hybrid is not None and hybrid.parameters == belongs


@pytest.mark.parametrize(
    ("space", "parameters", "message"),
    [
        (
            Tuple([Discrete(3), TWO_PARTS]),
            [[0], [1]],
            r"env.parameters=\[\[0\], \[1\]\]: give a list for each of the 3",
        ),
        (Tuple([Discrete(2), TWO_PARTS]), [[0], [0]], r"continuous numbers 0 to 1 .* at least once"),
        (Tuple([Discrete(2), TWO_PARTS]), [[0, 2], [1]], r"continuous numbers 0 to 1"),
        (TWO_PARTS, [[0], [1]], r"has no discrete actions with continuous parameters: leave it out"),
        (Tuple([MultiDiscrete([40, 40]), TWO_PARTS]), None, r"1,600 joint values .* at most 1,024"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_refused(space: Space[Any], parameters: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hybrid_action(space, "Toy-v0", parameters)


def test_bounds_replace_those_that_are_missing_in_a_dict() -> None:
    space = Dict(a=Discrete(2), b=Box(-np.inf, np.inf, (2,)), c=Box(0, 1, (1,)))
    with pytest.raises(ConfigError, match=r"without sensible bounds: give env.bounds"):
        adapt_action(space, "Toy-v0")
    _, take = adapt_action(space, "Toy-v0", (-5, 5))
    assert plain(take(np.ones(4))) == {"a": 1, "b": [5.0, 5.0], "c": [1.0]}
    with pytest.raises(ConfigError, match="bounds of their own"):
        adapt_action(Dict(a=Discrete(2), c=Box(0, 1, (1,))), "Toy-v0", (-5, 5))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Dict(), "give it leaves of different names"),
        (Dict({"a.b": Discrete(2), "a": Dict(b=Discrete(2))}), "give it leaves of different names"),
        (
            Tuple([Discrete(2), Box(0, 9, (2,), np.int64)]),
            "its actions hold Box.*give them a Discrete or MultiDiscrete",
        ),
        (Tuple([Discrete(2), Text(3)]), r"Text\(.*\), not a Box"),
    ],
    ids=str,
)
def test_a_dict_or_tuple_of_other_leaves_is_refused(space: Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt_action(space, "Toy-v0")


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
