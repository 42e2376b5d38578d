"""Trains on one environment and compares what is stored with what it returned: `environment_trial.py ID KEYS FRAMES`.

KEYS are those of EnvConfig as JSON, `make` a function of environment_makers. Prints one line of JSON: `verdict` is
runs, refused, unmade (Gymnasium itself cannot make it either) or failed. What a checkpoint and a saved policy hold is
written as well, and the policy acts on the last observation as the environment returned it.
"""

import json
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environment_makers
import gymnasium as gym
import numpy as np
import torch
from torchrl.data import Categorical

import sac_torchrl as sac
import sac_torchrl.envs.config as envs
from sac_torchrl.collectors import stepping
from sac_torchrl.deploy.saved import SavedPolicy
from sac_torchrl.envs import adapter as adapters, contained
from sac_torchrl.errors import ConfigError, SacError
from sac_torchrl.specs import MASK, legal_actions


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what the environment was given and returned: one entry a step, and the observation of before."""

    log: list[tuple[Any, Any, Any, Any, bool, Any, Any]] = []  # noqa: RUF012 - one for the environment that is trained on

    def reset(self, **options: Any) -> Any:
        """Start an episode."""
        result = self.env.reset(**options)
        self.seen, self.legal = _copied(result[0]), self._mask(*result)
        return result

    def step(self, action: Any) -> Any:
        """Take an action."""
        given = _copied(action)
        observation, reward, terminated, _, info = result = self.env.step(action)
        after, legal = _copied(observation), self._mask(observation, info)
        Recorder.log.append((self.seen, given, after, np.copy(reward), bool(terminated), self.legal, legal))
        self.seen, self.legal = after, legal
        return result

    def _mask(self, observation: Any, info: Any) -> Any:
        if isinstance(observation, dict) and MASK in observation:
            return np.copy(observation[MASK])
        if self.env.has_wrapper_attr("action_masks"):
            return np.copy(self.env.get_wrapper_attr("action_masks")())
        return np.copy(info[MASK]) if MASK in info else None


def _copied(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _copied(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_copied(value) for value in observation)
    return np.copy(observation) if isinstance(observation, (np.ndarray, np.generic, int, float)) else observation


def _leaves(observation: Any, space: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The leaves of a raw observation, as an agent should see them, derived without the package."""
    inner = space.spaces if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)) else None
    if inner is None:
        value = np.asarray(observation) if isinstance(space, (gym.spaces.Box, gym.spaces.MultiBinary)) else observation
        if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
            value = np.asarray(observation) - space.start
        yield ".".join(path).replace("/", "."), value
        return
    for key in inner if isinstance(inner, dict) else range(len(inner)):
        yield from _leaves(observation[key], inner[key], (*path, str(key)))


def main(id: str, keys: dict[str, Any], frames: int) -> dict[str, str]:
    """Train for a while; the verdict and a line."""
    said: list[str] = []
    theirs: list[str] = []  # what the environment did to the process, how it resumes, and what it raised when closed

    of_environments = [one.__name__ for one in (contained, adapters, stepping)]

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            (theirs if record.name in of_environments else said).append(_short(record.getMessage()))

    logging.getLogger("sac_torchrl").addHandler(Said(logging.WARNING))
    if "bounds" in keys:
        keys["bounds"] = tuple(keys["bounds"])
    if "make" in keys:
        keys["make"] = getattr(environment_makers, keys["make"])
    config = sac.EnvConfig(id, **keys)
    try:
        specs = config.specs()
    except ConfigError as error:
        return {"verdict": _refused(id, keys, str(error)), "line": str(error)}
    adapter = envs.SpaceAdapter
    opened: list[Any] = []

    def recorded(env: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(Recorder(env))
        return adapter(opened[-1], *arguments, **options)

    envs.SpaceAdapter = recorded  # type: ignore[assignment,misc]
    torch.manual_seed(0)
    network = sac.NetworkConfig([32, 32])
    variant = sac.DiscreteSAC(network=network) if isinstance(specs.action, Categorical) else sac.SAC(network=network)
    try:
        agent = variant.build(specs, device=torch.device("cpu"))
        learner = sac.LearnerConfig(execution=sac.Execution.eager).build(agent)
        replay = sac.ReplayConfig(storage=sac.Storage.ram)
        with tempfile.TemporaryDirectory() as folder:
            buffer = replay.build(Path(folder), specs, rows=frames, batch_size=32, seed=1, device=torch.device("cpu"))
        experience = sac.Direct().build(
            config, agent.actor, buffer, specs=specs, total_frames=frames, random_frames=frames // 2, seed=2
        )
        for _ in experience:
            if experience.frames > frames // 2 and experience.frames % 20 == 0:
                learner.update(buffer.sample())
        learner.metrics()
        made = len(Recorder.log)
        experience.state_dict()
        del Recorder.log[made:]  # of other instances, which try what a resume would do
        with tempfile.TemporaryDirectory() as folder:
            whole = sac.TrainConfig(env=config, variant=variant)
            SavedPolicy.of(agent.actor, whole, specs, frames=frames).write(Path(folder))
            policy = sac.Policy.load(folder)
        chosen = policy(opened[0].seen, action_mask=opened[0].legal if policy.takes_mask else None)
    except (SacError, ConfigError) as error:
        if bare := _bare(id, keys):
            return {"verdict": "unmade", "line": f"played without this package it raises too: {bare}"}
        return {"verdict": "failed", "line": f"ends with a line: {error}"}
    wrong = _compare(buffer[:], opened[0], config, specs)
    if not wrong and not policy.spec.action.contains(chosen):
        wrong = f"its saved policy chooses {chosen}"
    if wrong or said:
        return {"verdict": "failed", "line": f"failed: {wrong or said[0]}"}
    seen = ", ".join(" ".join([*key[1:], str(tuple(leaf.shape))]) for key, leaf in specs.leaves.items())
    seen = seen if len(seen) < 90 else f"{len(specs.leaves)} leaves"
    return {"verdict": "runs", "line": "; ".join(["runs", seen, *dict.fromkeys(theirs)])}


def _short(said: str) -> str:
    return said.split(": ", 1)[1].split(": give the")[0] if said.startswith("resume test") else said


def _refused(id: str, keys: dict[str, Any], line: str) -> str:
    return "unmade" if "cannot be made" in line and _bare(id, keys) else "refused"


def _bare(id: str, keys: dict[str, Any]) -> str:
    """What the environment raises when Gymnasium makes it and samples of its own action space are played."""
    try:
        env = gym.make(id, **keys.get("kwargs", {}))
        env.reset(seed=0)
        for _ in range(200):
            if any(env.step(env.action_space.sample())[2:4]):
                env.reset()
    except Exception as error:  # noqa: BLE001 - whatever its code raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return ""


def _compare(rows: Any, env: Any, config: Any, specs: Any) -> str:
    if len(rows) != len(Recorder.log):
        return f"{len(rows)} rows of {len(Recorder.log)} steps"
    for number, (before, action, after, reward, terminated, *masks) in enumerate(Recorder.log):
        row = rows[number]
        for came, legal, columns in zip(
            (before, after), masks, (row["observation"], row["next", "observation"]), strict=True
        ):
            leaves = dict(_leaves(came, env.observation_space))
            for key in specs.leaves:
                stored = columns if len(key) == 1 else columns[key[1]]
                if specs.mask is not None and key[-1] == MASK:
                    if not np.array_equal(legal_actions(stored, len(legal)).numpy(), legal.astype(bool)):
                        return f"row {number} holds another mask"
                    continue
                raw = np.asarray(leaves[key[1] if len(key) > 1 and key[1] in leaves else ""]).astype(
                    stored.numpy().dtype
                )
                if not np.array_equal(stored.numpy().reshape(-1), raw.reshape(-1)):
                    return f"row {number} holds another {'.'.join(key)}"
        weights = config.reward_weights
        value = float(reward) if weights is None else float(np.asarray(reward, np.float64) @ np.array(weights))
        if np.float32(value) != row["next", "reward"].numpy()[0] or terminated != bool(row["next", "terminated"]):
            return f"row {number} holds another reward or end"
        if problem := _action(row["action"].numpy(), action, env.action_space, config.bounds):
            return f"row {number}: {problem}"
    return ""


def _hybrid(chosen: Any, given: Any, space: Any) -> str:
    """The same for a Dict or Tuple of Discrete and Box: first the discrete numbers of the agent's vector."""
    parts = list(_parts(given, space))
    for part, leaf in (pair for pair in parts if isinstance(pair[1], gym.spaces.Discrete)):
        index, chosen = math.floor((float(chosen[0]) + 1) / 2 * int(leaf.n)), chosen[1:]
        if min(index, int(leaf.n) - 1) + leaf.start != part:
            return f"{given} was given for {chosen}"
    for part, leaf in (pair for pair in parts if isinstance(pair[1], gym.spaces.Box)):
        own, chosen = np.split(chosen, [part.size])
        if problem := _action(own, part, leaf, None):
            return problem
    return ""


def _parts(given: Any, space: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        yield given, space
        return
    for key in space.spaces if isinstance(space, gym.spaces.Dict) else range(len(space.spaces)):
        yield from _parts(given[key], space.spaces[key])


def _action(chosen: Any, given: Any, space: Any, bounds: Any) -> str:
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        return _hybrid(chosen, given, space)
    if not isinstance(space, gym.spaces.Box):
        wanted = np.asarray(chosen).reshape(-1) + getattr(space, "start", 0)
        return "" if np.array_equal(wanted, np.asarray(given).reshape(-1)) else f"{given} was given for {chosen}"
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if bounds is not None:
        low = np.where(np.abs(low) > 1e6, bounds[0], low)
        high = np.where(np.abs(high) > 1e6, bounds[1], high)
    wanted = low + (chosen.astype(np.float64) + 1) / 2 * (high - low)
    close = np.allclose(wanted, given, rtol=1e-5, atol=1e-5 * float((high - low).max()))
    return "" if close and space.contains(given) else f"{given} was given for {chosen}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))))
