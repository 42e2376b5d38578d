"""Soft Actor-Critic as a kit of TorchRL parts and two recipes."""

from sac_torchrl.actors import categorical_actor, tanh_normal_actor
from sac_torchrl.agent import Agent, Specs
from sac_torchrl.checkpoint import Checkpointing, Checkpoints
from sac_torchrl.collectors import Async, Direct, Experience, Processes, Ray
from sac_torchrl.config import Continuous, Discrete, launch, open_run
from sac_torchrl.critics import action_value_critic, state_action_critic, state_critic
from sac_torchrl.envs import Env
from sac_torchrl.errors import SacError
from sac_torchrl.evaluation import Evaluating, Evaluation, evaluate, record_video, write_evaluation
from sac_torchrl.learner import Execution, Learner, Learning, Order, Precision
from sac_torchrl.loggers import Logger, Progress
from sac_torchrl.networks import Network
from sac_torchrl.normalisation import normalised
from sac_torchrl.offline import Offline
from sac_torchrl.plots import curve
from sac_torchrl.replay import Replay, Storage
from sac_torchrl.run import Running
from sac_torchrl.schedule import Every, ReplayRatio
from sac_torchrl.variants import REDQ, SAC, TQC, CrossQ, DiscreteSAC, DroQ, FastSAC, SACv1, SimBa

__all__ = [
    "REDQ",
    "SAC",
    "TQC",
    "Agent",
    "Async",
    "Checkpointing",
    "Checkpoints",
    "Continuous",
    "CrossQ",
    "Direct",
    "Discrete",
    "DiscreteSAC",
    "DroQ",
    "Env",
    "Evaluating",
    "Evaluation",
    "Every",
    "Execution",
    "Experience",
    "FastSAC",
    "Learner",
    "Learning",
    "Logger",
    "Network",
    "Offline",
    "Order",
    "Precision",
    "Processes",
    "Progress",
    "Ray",
    "Replay",
    "ReplayRatio",
    "Running",
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
    "normalised",
    "open_run",
    "record_video",
    "state_action_critic",
    "state_critic",
    "tanh_normal_actor",
    "write_evaluation",
]
