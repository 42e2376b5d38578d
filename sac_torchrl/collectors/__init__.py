"""Collection: environments, a policy and a replay buffer behind one iterator."""
