"""What a config refuses, in one line that names the key: one table of calls and the words of the line."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torchrl.data import Bounded, Categorical, Unbounded

from sac_torchrl import (
    Async,
    CheckpointConfig,
    DiscreteSAC,
    EnvConfig,
    EvaluationConfig,
    Every,
    NetworkConfig,
    OfflineConfig,
    Processes,
    Ray,
    ReplayConfig,
    ReplayRatio,
    Specs,
    TrainConfig,
)
from sac_torchrl.agents.crossq import CrossQ
from sac_torchrl.agents.droq import DroQ
from sac_torchrl.agents.fastsac import FastSAC
from sac_torchrl.agents.redq import REDQ
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.sac_v1 import SACv1
from sac_torchrl.agents.simba import SimBa
from sac_torchrl.agents.tqc import TQC
from sac_torchrl.agents.variant import Variant
from sac_torchrl.errors import ConfigError

INDEX = Specs(Unbounded(shape=3), Categorical(4))
VECTOR = Specs(Unbounded(shape=3), Bounded(-1, 1, shape=2))
CONTINUOUS = {"sac": SAC, "sac_v1": SACv1, "redq": REDQ, "droq": DroQ, "crossq": CrossQ, "tqc": TQC, "simba": SimBa}
RANGES: dict[str, list[float]] = {
    "critics": [0],
    "gamma": [-0.1, 1.01, math.nan],
    "tau": [0.0, 1.5],
    "alpha": [0.0, -1.0, math.inf],
}


def call(make: Callable[..., Any], section: str, field: str, value: Any) -> tuple[Callable[[], Any], str]:
    """A field out of its range, and how the line begins."""
    return lambda: make(**cast(Any, {field: value})), f"{section}{field}={value}: "


def discrete(**fields: Any) -> Callable[[], Variant]:
    return lambda: DiscreteSAC(**fields)


def env(**fields: Any) -> Callable[[], Specs]:
    return lambda: EnvConfig(**fields).specs()


def build(variant: Callable[[], Variant], specs: Specs) -> Callable[[], Any]:
    return lambda: variant().build(specs, device=torch.device("cpu"))


REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: NetworkConfig([256, 0]), "network.hidden=[256, 0]: give 1 or more"),
    (lambda: NetworkConfig([-3]), "network.hidden=[-3]: give 1 or more"),
    (lambda: NetworkConfig([8], 0), "network.embedding=0: give 1 or more or null"),
    *(
        call(variant, "variant.", field, value)
        for variant in (SAC, DiscreteSAC)
        for field, values in RANGES.items()
        for value in values
    ),
    *(call(DiscreteSAC, "variant.", "target_entropy_ratio", ratio) for ratio in (-0.1, 1.0, math.nan)),
    *(call(SACv1, "variant.", "reward_scale", scale) for scale in (0.0, -1.0, math.inf, math.nan)),
    *(call(SAC, "variant.", field, 0) for field in ("components", "couplings")),
    (lambda: SAC(coupling_hidden=0), "variant.coupling_hidden=0: give 1 or more"),
    (lambda: SAC(coupling_condition=0), "variant.coupling_condition=0: give 1 or more"),
    (discrete(target_entropy_ratio_end=1.0, target_entropy_updates=5), "target_entropy_ratio_end=1.0"),
    (discrete(target_entropy_ratio_end=-0.1, target_entropy_updates=5), "target_entropy_ratio_end=-0.1"),
    (discrete(target_entropy_ratio_end=0.5), "belong together"),
    (discrete(target_entropy_updates=5), "belong together"),
    (discrete(target_entropy_ratio_end=0.5, target_entropy_updates=-5), "target_entropy_updates=-5"),
    (discrete(alpha=1.0, min_alpha=2.0), "variant.alpha=1.0 does not lie from variant.min_alpha=2.0"),
    (discrete(alpha=1.0, max_alpha=0.5), "variant.max_alpha=0.5"),
    (discrete(min_alpha=-1.0), "variant.min_alpha=-1.0"),
    (discrete(q_clip=0.0), "variant.q_clip=0.0"),
    (lambda: REDQ(critics=3, sampled=4), "variant.sampled=4: give 1 to 3"),
    (lambda: REDQ(sampled=0), "variant.sampled=0: give 1 or more"),
    (lambda: DroQ(dropout=1.0), "variant.dropout=1.0: "),
    (lambda: DroQ(critics=1), "variant.sampled=2: give 1 to 1"),
    (lambda: REDQ(tau=0.0), "variant.tau=0.0: "),
    (lambda: TQC(quantiles=0), "variant.quantiles=0: "),
    (lambda: TQC(dropped=25), "variant.dropped=25: give 0 to below 25"),
    (lambda: SimBa(actor_blocks=0), "variant.actor_blocks=0: "),
    (lambda: FastSAC(atoms=1), "variant.atoms=1: give 2 or more"),
    (lambda: FastSAC(v_min=20.0), "variant.v_min=20.0: give less than variant.v_max=20.0"),
    (lambda: FastSAC(v_max=math.inf), "variant.v_min=-20.0: give less than variant.v_max=inf"),
    (lambda: FastSAC(reward_scale=0.0), "variant.reward_scale=0.0: "),
    (lambda: CrossQ(momentum=1.0), "variant.momentum=1.0: "),
    (lambda: CrossQ(warmup=-1), "variant.warmup=-1: "),
    (lambda: CrossQ(critic_hidden=[0]), "variant.critic_hidden=[0]: "),
    (lambda: SAC(critics=0, tau=2.0), "variant.critics=0: give 1 or more. variant.tau=2.0: "),
    *(
        (build(variant, INDEX), f"variant={name} needs continuous actions, and this environment has 4 discrete")
        for name, variant in {**CONTINUOUS, "fastsac": FastSAC}.items()
    ),
    (build(DiscreteSAC, VECTOR), "variant=discrete_sac needs discrete actions, and this environment has 2 continuous"),
    (lambda: ReplayConfig(0), "replay.capacity=0: "),
    *(call(ReplayConfig, "replay.", f"{name}_exponent", 1.5) for name in ("priority", "weight")),
    (lambda: CheckpointConfig(every=0), "checkpoint.every=0: "),
    (lambda: CheckpointConfig(keep=1), "checkpoint.keep=1: "),
    (lambda: EvaluationConfig(every=0), "evaluate.every=0: "),
    (lambda: EvaluationConfig(episodes=-1), "evaluate.episodes=-1: "),
    (lambda: ReplayRatio(1, after=0, every=0), "update_every=0: "),
    *((lambda r=ratio: ReplayRatio(r, after=0), f"replay_ratio={ratio}: ") for ratio in (0, -1, math.inf, math.nan)),
    (lambda: Every(-1), "a period of -1 frames"),
    call(Processes, "collector.", "workers", 0),
    call(Processes, "collector.", "timeout", 0.0),
    call(Processes, "collector.", "restarts", -1),
    call(Processes, "collector.", "steps", 0),
    call(Async, "collector.", "workers", 0),
    call(Async, "collector.", "refresh", 0),
    call(Async, "collector.", "slack", 0),
    call(Ray, "collector.", "workers", 0),
    call(Ray, "collector.", "steps", 0),
    (env(id="CartPole-v1", bins=3), "env.bins=3: "),
    (env(bins=1), "env.bins=1: "),
    (env(id="torch/pendulum", bins=3), "env.bins=3: "),
    (env(id="CartPole-v1", max_episode_steps=0), "env.max_episode_steps=0: give 1 or more or null"),
    (env(id="torch/pendulum", max_episode_steps=9), "env.max_episode_steps=9: the episodes of env.id=torch/pendulum"),
    (env(id="envpool/Pendulum-v1", max_episode_steps=9), "env.max_episode_steps=9: the episodes of env.id=envpool/"),
    (lambda: TrainConfig(total_frames=0), "total_frames=0: give 1 or more."),
    (
        lambda: TrainConfig(env=EnvConfig(count=4), n_steps=3, random_frames=11),
        "n_steps=3 with env.count=4: give random_frames of at least 12",
    ),
    (lambda: TrainConfig(n_steps=0), "n_steps=0: give 1 or more"),
    (
        lambda: TrainConfig(env=EnvConfig(count=300), replay=ReplayConfig(256)),
        "env.count=300: a step of all environments does not fit into",
    ),
    (
        lambda: TrainConfig(variant=DiscreteSAC(entropy_penalty=0.5), offline=OfflineConfig("some/data-v0")),
        "it does not store the behavior policy's entropy",
    ),
]


@pytest.mark.parametrize(("make", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
def test_it_is_refused_in_one_line(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        make()
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
