"""Soft Actor-Critic as a kit of TorchRL parts and two recipes."""

import importlib
from typing import TYPE_CHECKING, Any

from sac_torchrl.imports import without_collection

if TYPE_CHECKING:
    from sac_torchrl.agents.agent import Agent as Agent
    from sac_torchrl.agents.critics import (
        action_value_critic as action_value_critic,
        state_action_critic as state_action_critic,
        state_critic as state_critic,
    )
    from sac_torchrl.agents.crossq import CrossQ as CrossQ
    from sac_torchrl.agents.discrete_sac import DiscreteSAC as DiscreteSAC
    from sac_torchrl.agents.droq import DroQ as DroQ
    from sac_torchrl.agents.fastsac import FastSAC as FastSAC
    from sac_torchrl.agents.networks import NetworkConfig as NetworkConfig
    from sac_torchrl.agents.normalization import with_normalization as with_normalization
    from sac_torchrl.agents.policies import (
        categorical_actor as categorical_actor,
        tanh_normal_actor as tanh_normal_actor,
    )
    from sac_torchrl.agents.redq import REDQ as REDQ
    from sac_torchrl.agents.sac import SAC as SAC
    from sac_torchrl.agents.sac_v1 import SACv1 as SACv1
    from sac_torchrl.agents.simba import SimBa as SimBa
    from sac_torchrl.agents.tqc import TQC as TQC
    from sac_torchrl.cli.launch import launch as launch
    from sac_torchrl.collectors.async_ import Async as Async
    from sac_torchrl.collectors.direct import Direct as Direct
    from sac_torchrl.collectors.experience import Experience as Experience
    from sac_torchrl.collectors.processes import Processes as Processes
    from sac_torchrl.collectors.ray import Ray as Ray
    from sac_torchrl.config.files import open_run as open_run
    from sac_torchrl.config.schema import TrainConfig as TrainConfig
    from sac_torchrl.deploy.policies import Policies as Policies
    from sac_torchrl.deploy.policy import Policy as Policy
    from sac_torchrl.deploy.result import Result as Result
    from sac_torchrl.envs.config import EnvConfig as EnvConfig
    from sac_torchrl.envs.handed import register as register
    from sac_torchrl.errors import SacError as SacError
    from sac_torchrl.learner.capture import Execution as Execution
    from sac_torchrl.learner.learner import Learner as Learner, LearnerConfig as LearnerConfig, Order as Order
    from sac_torchrl.learner.precision import Precision as Precision
    from sac_torchrl.learner.rates import Schedule as Schedule
    from sac_torchrl.replay.buffer import Hindsight as Hindsight, ReplayConfig as ReplayConfig, Storage as Storage
    from sac_torchrl.replay.offline import OfflineConfig as OfflineConfig
    from sac_torchrl.runs.callbacks import Stop as Stop
    from sac_torchrl.runs.checkpoint import CheckpointConfig as CheckpointConfig, Checkpoints as Checkpoints
    from sac_torchrl.runs.evaluation import (
        Evaluation as Evaluation,
        EvaluationConfig as EvaluationConfig,
        evaluate as evaluate,
        write_evaluation as write_evaluation,
    )
    from sac_torchrl.runs.folder import RunConfig as RunConfig
    from sac_torchrl.runs.loggers import Logger as Logger, Progress as Progress
    from sac_torchrl.runs.plots import curve as curve
    from sac_torchrl.runs.schedule import Every as Every, ReplayRatio as ReplayRatio
    from sac_torchrl.runs.video import record_video as record_video
    from sac_torchrl.specs import Specs as Specs
    from sac_torchrl.train import train as train

# Names are imported when they are first asked for: `import sac_torchrl` imports nothing else.
_EXPORTS = {
    "Agent": "sac_torchrl.agents.agent",
    "action_value_critic": "sac_torchrl.agents.critics",
    "state_action_critic": "sac_torchrl.agents.critics",
    "state_critic": "sac_torchrl.agents.critics",
    "CrossQ": "sac_torchrl.agents.crossq",
    "DiscreteSAC": "sac_torchrl.agents.discrete_sac",
    "DroQ": "sac_torchrl.agents.droq",
    "FastSAC": "sac_torchrl.agents.fastsac",
    "NetworkConfig": "sac_torchrl.agents.networks",
    "with_normalization": "sac_torchrl.agents.normalization",
    "categorical_actor": "sac_torchrl.agents.policies",
    "tanh_normal_actor": "sac_torchrl.agents.policies",
    "REDQ": "sac_torchrl.agents.redq",
    "SAC": "sac_torchrl.agents.sac",
    "SACv1": "sac_torchrl.agents.sac_v1",
    "SimBa": "sac_torchrl.agents.simba",
    "TQC": "sac_torchrl.agents.tqc",
    "launch": "sac_torchrl.cli.launch",
    "Async": "sac_torchrl.collectors.async_",
    "Direct": "sac_torchrl.collectors.direct",
    "Experience": "sac_torchrl.collectors.experience",
    "Processes": "sac_torchrl.collectors.processes",
    "Ray": "sac_torchrl.collectors.ray",
    "open_run": "sac_torchrl.config.files",
    "TrainConfig": "sac_torchrl.config.schema",
    "Policy": "sac_torchrl.deploy.policy",
    "Policies": "sac_torchrl.deploy.policies",
    "Result": "sac_torchrl.deploy.result",
    "EnvConfig": "sac_torchrl.envs.config",
    "register": "sac_torchrl.envs.handed",
    "SacError": "sac_torchrl.errors",
    "Execution": "sac_torchrl.learner.capture",
    "Learner": "sac_torchrl.learner.learner",
    "LearnerConfig": "sac_torchrl.learner.learner",
    "Order": "sac_torchrl.learner.learner",
    "Precision": "sac_torchrl.learner.precision",
    "Schedule": "sac_torchrl.learner.rates",
    "ReplayConfig": "sac_torchrl.replay.buffer",
    "Storage": "sac_torchrl.replay.buffer",
    "Hindsight": "sac_torchrl.replay.buffer",
    "OfflineConfig": "sac_torchrl.replay.offline",
    "Stop": "sac_torchrl.runs.callbacks",
    "CheckpointConfig": "sac_torchrl.runs.checkpoint",
    "Checkpoints": "sac_torchrl.runs.checkpoint",
    "Evaluation": "sac_torchrl.runs.evaluation",
    "EvaluationConfig": "sac_torchrl.runs.evaluation",
    "evaluate": "sac_torchrl.runs.evaluation",
    "record_video": "sac_torchrl.runs.video",
    "write_evaluation": "sac_torchrl.runs.evaluation",
    "RunConfig": "sac_torchrl.runs.folder",
    "Logger": "sac_torchrl.runs.loggers",
    "Progress": "sac_torchrl.runs.loggers",
    "curve": "sac_torchrl.runs.plots",
    "Every": "sac_torchrl.runs.schedule",
    "ReplayRatio": "sac_torchrl.runs.schedule",
    "Specs": "sac_torchrl.specs",
    "train": "sac_torchrl.train",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with without_collection():
        value = globals()[name] = getattr(importlib.import_module(_EXPORTS[name]), name)
    return value
