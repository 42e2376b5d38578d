"""The imports of the server that forks the workers."""

# The imports that a worker needs, which take seconds.
import sac_torchrl.collectors.processes  # noqa: F401
