"""Configuration shared by all tests."""

import os

# One thread: the numbers that tests compare then do not depend on the machine, and small tensors are faster.
os.environ["OMP_NUM_THREADS"] = "1"
