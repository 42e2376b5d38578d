"""The parts in a program of one's own: they work as TorchRL's do, or refuse by name."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Bounded, Unbounded
from torchrl.envs import GymEnv, TransformedEnv
from torchrl.envs.transforms import ActionScaling
from torchrl.modules import TanhNormal

from sac_torchrl import (
    SAC,
    Agent,
    DiscreteSAC,
    EnvConfig,
    LearnerConfig,
    NetworkConfig,
    ReplayConfig,
    Specs,
    Storage,
    evaluate,
)
from sac_torchrl.agents.losses import SACDiscreteLoss
from sac_torchrl.agents.policies import SquashedNormal
from sac_torchrl.envs.masks import MaskSource
from sac_torchrl.errors import ConfigError, LearnerFault

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def specs() -> Specs:
    return EnvConfig("Pendulum-v1").specs()


@pytest.fixture
def agent(specs: Specs) -> Agent:
    return SAC(network=NetworkConfig([8])).build(specs, device=CPU)


@pytest.fixture
def buffer(specs: Specs, request: pytest.FixtureRequest) -> Any:
    prioritized = getattr(request, "param", False)
    config = ReplayConfig(50, Storage.ram, prioritized=prioritized)
    return config.build(Path(), specs, rows=50, batch_size=16, seed=0, device=CPU)


def batch(specs: Specs, *flags: str, discrete: bool = False) -> TensorDict:
    draw = torch.Generator().manual_seed(0)
    columns = {name: torch.randn(16, specs.observation.shape[0], generator=draw) for name in ("now", "then")}
    action = torch.randint(2, (16,), generator=draw) if discrete else torch.rand(16, 1, generator=draw)
    following = {"observation": columns["then"], "reward": torch.randn(16, 1, generator=draw)}
    following |= {name: torch.zeros(16, 1, dtype=torch.bool) for name in flags}
    return TensorDict({"observation": columns["now"], "action": action, "next": TensorDict(following, [16])}, [16])


def test_agents_and_learners_are_not_copied_apart(agent: Agent) -> None:
    learner = LearnerConfig().build(agent)
    for part, advice in ((agent, "load_state_dict"), (learner, "load_state_dict"), ([learner], "deep-copied")):
        with pytest.raises(TypeError, match=advice):
            copy.deepcopy(part)


def test_the_advice_for_a_copy_works(agent: Agent, specs: Specs) -> None:
    one, rows = LearnerConfig(lr=0.1).build(agent), batch(specs, "terminated")
    one.update(rows)
    other = LearnerConfig(lr=0.1).build(SAC(network=NetworkConfig([8])).build(specs, device=CPU))
    other.load_state_dict(one.state_dict())
    for learner in (one, other):
        torch.manual_seed(1)
        learner.update(rows)
    tensors = [learner.state_dict()["loss"] for learner in (one, other)]
    assert all((tensors[0][name] == tensors[1][name]).all() for name in tensors[0])


@pytest.mark.parametrize("flags", [(), ("done",), ("done", "truncated")])
def test_a_batch_says_itself_what_was_terminated(agent: Agent, specs: Specs, flags: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"no .'next', 'terminated'."):
        LearnerConfig().build(agent).update(batch(specs, *flags))


def test_a_buffer_takes_rollouts_with_gradients_single_rows_and_collectors(
    agent: Agent, specs: Specs, buffer: Any
) -> None:
    env = EnvConfig("Pendulum-v1", 2).build(seed=0)
    rollout = env.rollout(5, agent.actor)
    assert rollout["loc"].requires_grad
    assert buffer.extend(rollout).tolist() == list(range(10))
    flat = rollout.reshape(-1)
    assert buffer.add(flat[3].detach()) == 10
    for index, row in ((0, flat[0]), (-1, flat[3]), (7, flat[7])):
        assert buffer[index].batch_size == ()
        assert torch.equal(buffer[index]["next", "observation"], row["next", "observation"])
    assert torch.equal(buffer[:10]["action"], flat["action"]) and torch.equal(
        buffer[[1, 2]]["action"], flat["action"][1:3]
    )
    with pytest.raises(TypeError, match="not replaced in place"):
        buffer[0] = flat[1]
    collector = Collector(
        env,
        agent.actor,
        frames_per_batch=10,
        total_frames=20,
        replay_buffer=buffer,
        auto_register_policy_transforms=False,
    )
    for _ in collector:
        pass
    assert len(buffer) == 31


@pytest.mark.parametrize("buffer", [True], indirect=True)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_priority_that_is_no_number_changes_nothing(specs: Specs, buffer: Any, wrong: float) -> None:
    buffer.extend(batch(specs, "terminated"))
    drawn = buffer.sample()
    errors = torch.rand(16)
    errors[3] = wrong
    with pytest.raises(LearnerFault, match="td_error is not finite"):
        buffer.update_tensordict_priority(drawn.set("td_error", errors))
    assert len(set(buffer.sample()["index"].tolist())) > 3


def test_an_evaluation_takes_an_unbatched_environment_of_the_same_bounds(agent: Agent) -> None:
    env: Any = cast(Any, GymEnv)("Pendulum-v1")
    with pytest.raises(ConfigError, match=r"\[\[-1.0\], \[1.0\]\] .* \[\[-2.0\], \[2.0\]\].*ActionScaling"):
        evaluate(agent.actor, env, episodes=1, seed=0)
    scaled = evaluate(agent.actor, TransformedEnv(env, ActionScaling()), episodes=2, seed=0)
    assert scaled.lengths == [200, 200]


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (0.0, 1.0), (-1.0, 1.1)])
def test_other_bounds_than_the_agents_are_refused(specs: Specs, bounds: tuple[float, float]) -> None:
    low, high = bounds
    with pytest.raises(ConfigError, match=f"actions from {low:g} to {high:g}.*ActionScaling"):
        Specs(specs.observation, Bounded(low, high, torch.Size([1])))
    with pytest.raises(ValueError, match="SquashedNormal is for actions in"):
        SquashedNormal(torch.zeros(1), torch.ones(1), low=low, high=torch.tensor([high]))


def test_unbounded_actions_are_refused(specs: Specs) -> None:
    with pytest.raises(ConfigError, match="EnvConfig"):
        Specs(specs.observation, Unbounded(torch.Size([2])))


def test_the_density_at_a_bound_is_finite_and_elsewhere_torchrls() -> None:
    policy = SquashedNormal(torch.zeros(4, 1), torch.ones(4, 1), low=-1.0, high=1.0, safe_tanh=False)
    value = torch.tensor([[-1.0], [1.0], [0.3], [-0.999]])
    scores = policy.log_prob(value)
    assert scores.isfinite().all()
    assert torch.equal(scores[2:], cast(Any, TanhNormal).log_prob(policy, value)[2:])


class Derived(SACDiscreteLoss):
    """A loss of one's own."""


@pytest.mark.parametrize("kind", [SACDiscreteLoss, Derived])
def test_keys_of_a_discrete_loss_can_be_selected(kind: type[SACDiscreteLoss], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sac_torchrl.agents.discrete_sac.SACDiscreteLoss", kind)
    specs = EnvConfig("CartPole-v1").specs()
    loss = DiscreteSAC(network=NetworkConfig([8])).build(specs, device=CPU).loss
    rows = batch(specs, "terminated", "done", discrete=True)
    assert len(list(loss(rows).keys())) == 5
    loss.select_out_keys("loss_actor", "loss_qvalue")
    assert list(loss(rows).keys()) == ["loss_actor", "loss_qvalue"]
    loss.reset_out_keys()
    assert len(loss.out_keys) == 5


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("id", ["Pendulum-v1", "CartPole-v1", "FrozenLake-v1"])
def test_another_default_dtype_is_refused_by_name(in_float64: None, id: str) -> None:
    with pytest.raises(ConfigError, match=r"default dtype is float64.*torch.set_default_dtype"):
        EnvConfig(id).specs()


def test_an_opened_environment_can_be_made_from_its_spec() -> None:
    for config in (EnvConfig("Taxi-v4", mask=MaskSource.none), EnvConfig("Pendulum-v1", bins=5)):
        env = config.open()
        assert env.spec is not None
        other = gym.make(env.spec)
        assert other.action_space == env.action_space and other.observation_space == env.observation_space
    first, second = (one.reset(seed=1)[0].tolist() for one in (env, other))
    assert first == second
