"""What the process that forks the workers imports, once and for all of them."""

import atexit
import os
import shutil
from pathlib import Path

# The imports that a worker needs, which take seconds.
import sac_torchrl.collectors.processes  # noqa: F401
from sac_torchrl.collectors.forking import FOLDER

# It goes when the main process is gone. One that was killed could not remove the folder of their socket.
if Path(os.environ.get(FOLDER, "")).name.startswith("pymp-"):
    atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
