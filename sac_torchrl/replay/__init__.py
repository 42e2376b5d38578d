"""The replay buffer: packed, n-step, prioritized and offline rows."""
