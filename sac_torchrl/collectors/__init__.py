"""Collection: environments, a policy and a replay buffer behind one iterator."""

from sac_torchrl.collectors.cluster import Ray
from sac_torchrl.collectors.direct import Direct
from sac_torchrl.collectors.experience import Collecting, Experience
from sac_torchrl.collectors.free_running import Async
from sac_torchrl.collectors.processes import Processes

__all__ = ["Async", "Collecting", "Direct", "Experience", "Processes", "Ray"]
