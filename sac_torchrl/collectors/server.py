"""The imports of the server that forks the workers."""

import atexit
import os
import shutil
from pathlib import Path

# The imports that a worker needs, which take seconds.
import sac_torchrl.collectors.processes  # noqa: F401
from sac_torchrl.collectors.forking import FOLDER

# The server ends after the main process, which cannot remove the folder of the socket if it is killed.
if Path(os.environ.get(FOLDER, "")).name.startswith("pymp-"):
    atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
