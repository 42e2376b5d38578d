"""Collection: environments, a policy and a replay buffer behind one iterator."""

from sac_torchrl.collectors.direct import Direct
from sac_torchrl.collectors.experience import Collecting, Episode, Experience

__all__ = ["Collecting", "Direct", "Episode", "Experience"]
