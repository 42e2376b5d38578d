"""Dropout Q-functions."""

from dataclasses import dataclass

from sac_torchrl.agents.redq import REDQ
from sac_torchrl.fields import field


@dataclass
class DroQ(REDQ):
    """Two critics, each an ensemble by dropout, and many updates a frame (Hiraoka et al. 2022, arXiv 2110.02034).

    Dropout and layer norm follow every hidden linear layer of the critics, in that order, before the activation
    (figure 2); target critics drop units too. All critics enter the target, and the actor climbs their mean.
    """

    critics: int = field(2, "Q networks", least=1)
    dropout: float = field(0.01, "probability that a unit of a critic is dropped", least=0, below=1)
    layer_norm: bool = field(True, "layer norm behind the critics' linear layers")
