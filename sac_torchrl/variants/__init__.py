"""The members of the SAC family: each a plan that builds an agent from the environment's specs."""

from sac_torchrl.variants.base import Variant
from sac_torchrl.variants.discrete_sac import DiscreteSAC
from sac_torchrl.variants.sac import SAC
from sac_torchrl.variants.sac_v1 import SACv1

__all__ = ["SAC", "DiscreteSAC", "SACv1", "Variant"]
