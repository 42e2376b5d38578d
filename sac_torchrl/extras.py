"""Optional packages: which module needs which extra, for the refusals and for `sac-torchrl doctor`."""

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from sac_torchrl.errors import ConfigError


@dataclass(frozen=True)
class Package:
    """An optional package: its import, its distribution, its extra in pyproject.toml, its name, and what it is for."""

    module: str
    distribution: str
    extra: str
    name: str
    purpose: str

    @property
    def advice(self) -> str:
        """The command that installs it."""
        return f"pip install 'sac_torchrl[{self.extra}]'"


PACKAGES = {
    package.module: package
    for package in (
        Package("dm_control", "dm-control", "dmc", "DeepMind Control", "env.id=dmc/DOMAIN-TASK"),
        Package("minari", "minari", "minari", "Minari", "offline.dataset"),
        Package("imageio_ffmpeg", "imageio-ffmpeg", "video", "ffmpeg", "videos"),
        Package("onnx", "onnx", "export", "ONNX", "policies as NAME.onnx"),
        Package("onnxscript", "onnxscript", "export", "ONNX Script", "policies as NAME.onnx"),
        Package("onnxruntime", "onnxruntime", "export", "ONNX Runtime", "policies as NAME.onnx"),
        Package("pygame", "pygame", "video", "pygame", "pictures of Gymnasium's small tasks"),
        Package("brax", "brax", "brax", "Brax", "env.id=brax/TASK"),
        Package("mujoco_playground", "playground", "playground", "MuJoCo Playground", "env.id=playground/TASK"),
        Package("envpool", "envpool", "envpool", "EnvPool", "env.id=envpool/TASK"),
        Package("wandb", "wandb", "wandb", "Weights & Biases", "log.sinks=[wandb]"),
        Package("mlflow", "mlflow-skinny", "mlflow", "MLflow", "log.sinks=[mlflow]"),
        Package("alembic", "alembic", "mlflow", "Alembic", "log.sinks=[mlflow] in a local database"),
        Package("trackio", "trackio", "trackio", "trackio", "log.sinks=[trackio]"),
        Package("ray", "ray", "ray", "Ray", "collector=ray"),
    )
}


def require(module: str, asked_by: str) -> ModuleType:
    """Import an optional package of PACKAGES, or a module inside it, for the key and value `asked_by`.

    Raises ConfigError with the command that installs it, or with the reason if it is installed and fails to import.
    """
    package = PACKAGES[module.partition(".")[0]]
    try:
        if importlib.util.find_spec(package.module) is not None:
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{asked_by}: {package.name} is installed and fails to import ({error}): {package.advice}."
        ) from error
    raise ConfigError(f"{asked_by} needs {package.name}: {package.advice}.")
