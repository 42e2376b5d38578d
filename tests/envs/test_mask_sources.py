"""Masks from where environments have them to the leaf `action_mask`, checked at every step."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import masked
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torchrl.envs import GymWrapper

from sac_torchrl import Async, DiscreteSAC, EnvConfig, NetworkConfig, Processes, ReplayConfig, Storage
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.collectors.direct import Direct
from sac_torchrl.envs.check import check_env
from sac_torchrl.envs.findings import Kind
from sac_torchrl.envs.masks import MaskSource
from sac_torchrl.errors import ConfigError, EnvironmentFault, LearnerFault
from sac_torchrl.specs import legal_actions

CPU = torch.device("cpu")
LARGE = (70,)  # stored as bits


def plan(mask: MaskSource = MaskSource.auto, *, count: int = 1, **arguments: Any) -> EnvConfig:
    kind = "MaskedMethod-v0" if arguments.get("source") == "method" else "Masked-v0"
    return EnvConfig(kind, count, ["masked"], arguments, mask=mask)


@pytest.mark.parametrize("sizes", [(5,), (3, 4), LARGE], ids=["discrete", "several", "bits"])
@pytest.mark.parametrize("where", ["info", "observation", "method"])
def test_every_source_becomes_the_same_leaf(where: str, sizes: tuple[int, ...]) -> None:
    for source in (MaskSource.auto, MaskSource[where]):
        config = plan(source, source=where, sizes=sizes)
        specs = config.specs()
        assert list(specs.leaves) == [("observation", "action_mask"), ("observation", "observation")]
        assert specs.mask is not None
        assert (specs.mask.dtype, specs.mask.shape) == (
            (torch.uint8, (9,)) if sizes == LARGE else (torch.bool, (sum(sizes),))
        )
        env: Any = config.build(seed=1)
        native = env._env.envs[0].unwrapped
        root = env.reset()
        for _ in range(20):
            assert specs.mask.dtype == root["observation", "action_mask"].dtype
            found = legal_actions(root["observation", "action_mask"], sum(sizes))[0]
            assert found.tolist() == native.legal.astype(bool).tolist()
            step, root = env.step_and_maybe_reset(env.rand_action(root))
            if step["next", "terminated"].any():
                assert not step["next", "observation", "action_mask"].any()
        env.close()


def test_without_masks_nothing_changes() -> None:
    for config in (EnvConfig("CartPole-v1"), plan(MaskSource.none), EnvConfig("Pendulum-v1")):
        specs = config.specs()
        assert specs.mask is None
        assert list(specs.leaves) == [("observation",)]
    specs = plan(MaskSource.none, source="observation").specs()
    assert specs.mask is None
    assert specs.leaves["observation", "action_mask"].dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (plan(MaskSource.method), "has no method action_masks: give env.mask=info."),
        (plan(MaskSource.observation, source="method"), "no key action_mask: give env.mask=method."),
        (plan(MaskSource.info, source="observation"), "has no action_mask: give env.mask=observation."),
        (EnvConfig("CartPole-v1", mask=MaskSource.info), "has no action_mask: give env.mask=none."),
        (EnvConfig("Pendulum-v1", mask=MaskSource.info), "masks are for discrete actions"),
        (EnvConfig("torch/cartpole", mask=MaskSource.info), "are not read: give auto."),
    ],
)
def test_a_source_that_is_not_there_is_refused(config: EnvConfig, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        config.specs()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("length", r"of shape \(4,\), not \(5,\), at step 3"),
        ("kind", "other things than 0 and 1, at step 3"),
        ("empty", "leaves no legal action and the state is not terminal, at step 3"),
        ("missing", "the mask None, which is none, at step 3"),
    ],
)
@pytest.mark.parametrize("where", ["info", "method"])
def test_a_wrong_mask_is_named_with_its_step(where: str, fault: str, message: str) -> None:
    env: Any = plan(MaskSource[where], source=where, fault=fault).open()
    env.reset(seed=0)
    env.step(0)
    env.step(0)
    with pytest.raises(EnvironmentFault, match=message):
        env.step(0)
    env.close()


def test_one_dimension_without_a_legal_value_is_a_fault() -> None:
    env: Any = plan(sizes=(2, 3)).open()
    env.reset(seed=0)
    env.unwrapped._seen = lambda: (np.zeros(2, np.float32), {"action_mask": np.array([1, 1, 0, 0, 0])})
    with pytest.raises(EnvironmentFault, match="no legal action"):
        env.step([0, 0])
    env.close()


@pytest.mark.parametrize(("sizes", "illegal"), [((50,), 49), ((2, 50), (0, 49))])
def test_an_illegal_action_is_the_learners_fault(sizes: tuple[int, ...], illegal: Any) -> None:
    env: Any = plan(sizes=sizes).open()
    env.reset(seed=1)
    with pytest.raises(LearnerFault, match="is not legal at step 1"):
        env.step(illegal)
    env.close()


def vector(source: str, *sizes: int) -> Any:
    one = partial(masked.Masked, source, sizes)
    short = lambda: gym.wrappers.TimeLimit(one(), 5)  # noqa: E731
    return SyncVectorEnv([one, short], autoreset_mode=AutoresetMode.DISABLED)


def torchrl(*sizes: int) -> Any:
    return GymWrapper(masked.Masked("observation", sizes), categorical_action_encoding=True)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (partial(vector, "info", 4), (4,)),
        (partial(vector, "observation", 2, 3), (2, 3)),
        (partial(vector, "info", *LARGE), LARGE),
        (partial(torchrl, 4), (4,)),
    ],
)
def test_environments_that_are_handed_over_have_masks(make: Any, sizes: tuple[int, ...], tmp_path: Path) -> None:
    config = EnvConfig(make=make, count=2)
    assert config.specs().mask is not None
    take_legal_actions(config, Direct(), sizes, tmp_path)
    assert replace(config, mask=MaskSource.none).specs().mask is None
    with pytest.raises(ConfigError, match=r"env\.mask=method.*give env\.mask="):
        replace(config, mask=MaskSource.method).specs()


def test_a_wrong_mask_of_a_vector_environment_is_named() -> None:
    one = partial(masked.Masked, "info", (5,), "length")
    make = partial(SyncVectorEnv, [one, one], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(EnvironmentFault, match=r"environment 0 .* returned the mask .*of shape \(4,\), not \(5,\)"):
        EnvConfig(make=make, count=2).build(seed=0).rollout(5, auto_cast_to_device=False)


@pytest.mark.parametrize(
    ("collector", "sizes"),
    [
        (Direct(), (4,)),
        (Direct(), (2, 3)),
        (Direct(), LARGE),
        (Processes(workers=2), (2, 3)),
        (Async(workers=1), LARGE),
    ],
    ids=str,
)
def test_collectors_take_legal_actions_only(collector: CollectorConfig, sizes: tuple[int, ...], tmp_path: Path) -> None:
    take_legal_actions(plan(count=2, sizes=sizes), collector, sizes, tmp_path)


def take_legal_actions(config: EnvConfig, collector: CollectorConfig, sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Random ones, then the policy's: the environment itself fails at an illegal one."""
    specs = config.specs()
    agent = DiscreteSAC(network=NetworkConfig([8])).build(specs, device=CPU)
    buffer = ReplayConfig(storage=Storage.ram).build(tmp_path, specs, rows=240, batch_size=8, seed=0, device=CPU)
    experience = collector.build(config, agent.actor, buffer, specs=specs, total_frames=240, random_frames=160, seed=5)
    assert sum(experience) == 240
    rows = buffer[:]
    legal = legal_actions(rows["observation", "action_mask"], sum(sizes)).split_with_sizes(list(sizes), -1)
    for place, part in enumerate(legal):
        chosen = rows["action"] if len(sizes) == 1 else rows["action"][:, place]
        assert part.gather(-1, chosen.unsqueeze(-1)).all()
        if sizes != LARGE:  # every legal value is drawn
            assert chosen.unique().numel() == sizes[place]


def test_random_actions_are_uniform_over_the_legal_ones() -> None:
    env: Any = plan(count=3, sizes=(3, 4)).build(seed=0)
    root = env.reset()
    root["observation", "action_mask"][:] = torch.tensor([0, 1, 1, 1, 0, 0, 1]).bool()
    drawn = torch.cat([env.rand_action(root.clone())["action"] for _ in range(1000)])
    env.close()
    shares = [
        [float((drawn[:, place] == value).float().mean()) for value in range(size)] for place, size in ((0, 3), (1, 4))
    ]
    assert shares[0] == pytest.approx([0, 0.5, 0.5], abs=0.04)
    assert shares[1] == pytest.approx([0.5, 0, 0, 0.5], abs=0.04)


def test_check_env_takes_legal_actions() -> None:
    found = list(check_env(EnvConfig("Taxi-v4")))
    assert [finding for finding in found if finding.kind is not Kind.note] == []
    assert any("action_mask torch.bool (6,)" in finding.text for finding in found)


def test_masks_of_a_dict_or_tuple_are_refused() -> None:
    config = EnvConfig("Masked-v0", plugins=["masked"], wrappers=["InTuple"])
    with pytest.raises(ConfigError, match=r"has masks of actions \(info\), .* give env.mask=none"):
        config.specs()
    assert replace(config, mask=MaskSource.none).specs().mask is None


def test_the_probe_leaves_generators_alone() -> None:
    class Global(masked.Masked):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            np.random.random()
            torch.rand(1)
            return super().reset(**options)

    before = np.random.get_state(legacy=False)["state"]["key"].tolist(), torch.get_rng_state()
    env = EnvConfig(make=Global).open()
    env.close()
    assert isinstance(env, gym.Env)
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
