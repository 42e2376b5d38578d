"""Action values as TorchRL's ValueOperator, on any network."""

from torch import nn
from torchrl.modules import ValueOperator


def state_action_critic(network: nn.Module) -> ValueOperator:
    """Q(s, a) for continuous actions: `network` maps observation and action to `(..., 1)`."""
    return ValueOperator(network, in_keys=["observation", "action"])


def action_value_critic(network: nn.Module) -> ValueOperator:
    """Q(s, .) for discrete actions: `network` maps the observation to one value an action, `(..., actions)`."""
    return ValueOperator(network, in_keys=["observation"], out_keys=["action_value"])


def state_critic(network: nn.Module) -> ValueOperator:
    """V(s): `network` maps the observation to `(..., 1)`."""
    return ValueOperator(network, in_keys=["observation"])
