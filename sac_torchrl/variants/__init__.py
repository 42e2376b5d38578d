"""The members of the SAC family: each a plan that builds an agent from the environment's specs."""

from sac_torchrl.variants.base import Variant
from sac_torchrl.variants.crossq import CrossQ
from sac_torchrl.variants.discrete_sac import DiscreteSAC
from sac_torchrl.variants.droq import DroQ
from sac_torchrl.variants.fastsac import FastSAC
from sac_torchrl.variants.redq import REDQ
from sac_torchrl.variants.sac import SAC
from sac_torchrl.variants.sac_v1 import SACv1
from sac_torchrl.variants.simba import SimBa
from sac_torchrl.variants.tqc import TQC

__all__ = ["REDQ", "SAC", "TQC", "CrossQ", "DiscreteSAC", "DroQ", "FastSAC", "SACv1", "SimBa", "Variant"]
