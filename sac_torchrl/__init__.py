"""Soft Actor-Critic as a kit of TorchRL parts and two recipes."""

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import action_value_critic, state_action_critic, state_critic
from sac_torchrl.agents.crossq import CrossQ
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.droq import DroQ
from sac_torchrl.agents.fastsac import FastSAC
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.agents.policies import categorical_actor, tanh_normal_actor
from sac_torchrl.agents.redq import REDQ
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.sac_v1 import SACv1
from sac_torchrl.agents.simba import SimBa
from sac_torchrl.agents.tqc import TQC
from sac_torchrl.collectors.async_ import Async
from sac_torchrl.collectors.direct import Direct
from sac_torchrl.collectors.experience import Experience
from sac_torchrl.collectors.processes import Processes
from sac_torchrl.collectors.ray import Ray
from sac_torchrl.config.files import open_run
from sac_torchrl.config.launch import launch
from sac_torchrl.config.schema import Continuous, Discrete
from sac_torchrl.deploy.policy import Policy
from sac_torchrl.deploy.saved import Policies
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.errors import SacError
from sac_torchrl.learner.learner import Execution, Learner, LearnerConfig, Order, Precision
from sac_torchrl.replay.buffer import ReplayConfig, Storage
from sac_torchrl.replay.offline import OfflineConfig
from sac_torchrl.runs.checkpoint import CheckpointConfig, Checkpoints
from sac_torchrl.runs.evaluation import Evaluation, EvaluationConfig, evaluate, record_video, write_evaluation
from sac_torchrl.runs.folder import RunConfig
from sac_torchrl.runs.loggers import Logger, Progress
from sac_torchrl.runs.plots import curve
from sac_torchrl.runs.schedule import Every, ReplayRatio
from sac_torchrl.specs import Specs

__all__ = [
    "REDQ",
    "SAC",
    "TQC",
    "Agent",
    "Async",
    "CheckpointConfig",
    "Checkpoints",
    "Continuous",
    "CrossQ",
    "Direct",
    "Discrete",
    "DiscreteSAC",
    "DroQ",
    "EnvConfig",
    "Evaluation",
    "EvaluationConfig",
    "Every",
    "Execution",
    "Experience",
    "FastSAC",
    "Learner",
    "LearnerConfig",
    "Logger",
    "NetworkConfig",
    "OfflineConfig",
    "Order",
    "Policies",
    "Policy",
    "Precision",
    "Processes",
    "Progress",
    "Ray",
    "ReplayConfig",
    "ReplayRatio",
    "RunConfig",
    "SACv1",
    "SacError",
    "SimBa",
    "Specs",
    "Storage",
    "action_value_critic",
    "categorical_actor",
    "curve",
    "evaluate",
    "launch",
    "open_run",
    "record_video",
    "state_action_critic",
    "state_critic",
    "tanh_normal_actor",
    "with_normalization",
    "write_evaluation",
]
