"""The first version as an agent: its networks, its updates, its state."""

from itertools import pairwise

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Unbounded
from training import train

from sac_torchrl import Execution, Learner, LearnerConfig, NetworkConfig, SACv1, Specs

CPU = torch.device("cpu")
SPECS = Specs(Unbounded(shape=3), Bounded(-1, 1, shape=2))


def build(*, execution: Execution = Execution.captured, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    agent = SACv1(NetworkConfig([16]), reward_scale=5.0).build(SPECS, device=CPU)
    return LearnerConfig(lr=1e-2, execution=execution).build(agent)


def batches(count: int) -> list[TensorDict]:
    torch.manual_seed(42)
    return [
        TensorDict(
            {
                "observation": torch.randn(8, 3),
                "action": torch.randn(8, 2).tanh(),
                "next": {
                    "observation": torch.randn(8, 3),
                    "reward": torch.randn(8, 1),
                    "terminated": torch.randn(8, 1) > 1,
                },
            },
            batch_size=[8],
        )
        for _ in range(count)
    ]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.agent.loss.state_dict().items() if tensor is not None}


def test_every_network_is_drawn_for_itself_and_the_target_value_starts_as_a_copy() -> None:
    loss = build().agent.loss
    first, second = loss.qvalue_network_params["module", "0", "weight"]
    value = loss.value_network_params["module", "0", "weight"]
    assert not torch.equal(first, second)
    assert value.shape == (16, 3)
    assert torch.equal(value, loss.target_value_network_params["module", "0", "weight"])


def test_the_temperature_is_fixed_and_the_networks_train() -> None:
    learner = build()
    assert set(learner.optimizers) == {"loss_qvalue", "loss_actor", "loss_value"}
    [batch] = batches(1)
    metrics = train(learner, [batch] * 60)
    assert {entry["alpha"] for entry in metrics} == {1.0}
    assert metrics[-1]["loss_qvalue"] < 0.5 * metrics[0]["loss_qvalue"]
    assert any(later["loss_value"] != earlier["loss_value"] for earlier, later in pairwise(metrics))
