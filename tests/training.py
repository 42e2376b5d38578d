"""What tests of learners share: updates from a seed, and every tensor of a state compared."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from sac_torchrl.learner.learner import Learner


def train(learner: Learner, data: list[TensorDict], *, seed: int = 7) -> list[dict[str, float]]:
    """Update on every batch, drawing from torch's generator as seeded here; return the metrics."""
    torch.manual_seed(seed)
    return [{name: float(value) for name, value in learner.update(batch).items()} for batch in data]


def tensors(tree: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(tree, Tensor):
        return {path: tree}
    if isinstance(tree, dict):
        return {key: leaf for name, branch in tree.items() for key, leaf in tensors(branch, f"{path}/{name}").items()}
    return {}


def assert_equal_state(one: Learner, other: Learner) -> None:
    first, second = tensors(one.state_dict()), tensors(other.state_dict())
    assert first.keys() == second.keys()
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []
