"""Collection: environments, a policy and a replay buffer behind one iterator."""

from sac_torchrl.collectors.direct import Direct
from sac_torchrl.collectors.experience import Collecting, Experience
from sac_torchrl.collectors.processes import Processes

__all__ = ["Collecting", "Direct", "Experience", "Processes"]
