"""An environment's transitions and state, bit for bit."""

import json
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from sac_torchrl.trees import decode, encode


def play(env: EnvBase, root: TensorDictBase, actions: list[Tensor]) -> tuple[list[bytes], TensorDictBase]:
    """All bits of the transitions, and what the next one begins from."""
    seen = []
    for action in actions:
        root["action"] = action.clone()
        step, root = env.step_and_maybe_reset(root)
        keys = (("observation",), ("next", "reward"), ("next", "done"), ("next", "terminated"))
        seen.append(b"".join(step[key].numpy().tobytes() for key in keys if key in step.keys(include_nested=True)))
    return seen, root


def through_json(state: Any) -> Any:
    skeleton, tensors = encode(state)
    return decode(json.loads(json.dumps(skeleton)), tensors)
