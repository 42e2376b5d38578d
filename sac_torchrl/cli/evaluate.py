"""`sac-torchrl evaluate`: the returns of a policy, on the environment of its training and on others."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sac_torchrl.cli.policies import add_environment, add_policy, as_text, chosen_policy, environments
from sac_torchrl.errors import ConfigError, DiskError, disk_advice

if TYPE_CHECKING:
    from sac_torchrl.deploy.policy import Policy
    from sac_torchrl.envs.config import EnvConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_policy(parser)
    add_environment(parser)
    parser.add_argument("--episodes", metavar="N", type=int, help="how many; by default as many as in training, or 10")
    parser.add_argument("--seed", metavar="N", type=int, help="of the episodes; by default that of the last evaluation")
    parser.add_argument("--stochastic", action="store_true", help="draw actions from the policy")
    parser.add_argument("--output", metavar="PATH", type=Path, help="write the JSON to a file as well")
    parser.add_argument("--video", action="store_true", help="film one more episode into RUN/videos/")
    parser.add_argument("--json", action="store_true", help="print JSON, which it always does")


def run(given: argparse.Namespace) -> None:
    """Evaluate one checkpoint or all of them, and print the results; then raise DiskError for unwritten files."""
    from sac_torchrl.files import write_whole

    unwritten: list[str] = []
    if given.checkpoint == "all":
        from sac_torchrl.runs.snapshot import frames_in

        found = [str(frames) for frames in reversed(frames_in(given.policy / "checkpoints"))]
        if not found:
            raise ConfigError(f"--checkpoint all: {given.policy} holds no checkpoint.")
        content: Any = [
            _evaluated(argparse.Namespace(**vars(given) | {"checkpoint": frames}), unwritten) for frames in found
        ]
    else:
        content = _evaluated(given, unwritten)
    text = as_text(content) + "\n"
    print(text, end="", flush=True)
    if given.output is not None:
        with _noted(given.output, unwritten):
            given.output.parent.mkdir(parents=True, exist_ok=True)
            write_whole(given.output, text)
    if unwritten:
        raise DiskError(" ".join(["the result is printed, but", *unwritten]))


@contextmanager
def _noted(path: Path, unwritten: list[str]) -> Iterator[None]:
    """Add a line to `unwritten` where the block cannot write the file: no result is lost for it."""
    try:
        yield
    except OSError as error:
        unwritten.append(f"{path} cannot be written ({error.strerror or error}): {disk_advice(error)}.")


def _evaluated(given: argparse.Namespace, unwritten: list[str]) -> dict[str, Any]:
    from sac_torchrl.runs.comparison import paired_difference
    from sac_torchrl.runs.seeds import Seeds
    from sac_torchrl.runs.video import record_video

    policy = chosen_policy(given)
    env, *changed = environments(given, policy)
    saved = policy.saved
    episodes = given.episodes
    if episodes is None:
        episodes = len(saved.evaluation["returns"]) if saved.evaluation else _episodes(given.policy)
    if episodes < 1:
        raise ConfigError(f"--episodes {episodes}: give 1 or more.")
    # The seed and the number of environments of the training: this repeats the last evaluation of the run.
    seed = Seeds.derive(saved.seed).evaluation + saved.frames if given.seed is None else given.seed
    evaluations = [_play(policy, one, episodes, seed, given) for one in (env, *changed)]
    result = {"env": env.id, "frames": saved.frames, "seed": saved.seed, **evaluations[0].as_json()}
    if changed:
        result["changed"] = {"settings": list(given.settings), **evaluations[1].as_json()}
        result["difference"] = paired_difference(evaluations[1].returns, evaluations[0].returns)
    if given.video:
        path = given.policy / "videos" / f"{saved.frames}.mp4"
        with _noted(path, unwritten):
            result["video"] = str(record_video(policy.actor, (changed or [env])[0], path, seed=seed))
    return result


def _play(policy: "Policy", env: "EnvConfig", episodes: int, seed: int, given: argparse.Namespace) -> Any:
    from sac_torchrl.runs.device import resolve_device
    from sac_torchrl.runs.evaluation import evaluate

    device = resolve_device("auto")
    built = env.build(seed=seed, count=1 if env.single else episodes, device=device)
    try:
        return evaluate(
            policy.actor.to(device), built, episodes=episodes, seed=seed, deterministic=not given.stochastic
        )
    finally:
        built.close()


def _episodes(folder: Path) -> int:
    """As many as the newest evaluation of a run has; 10, the default of a run, where there is none."""
    try:
        returns: list[float] = json.loads((folder / "evaluation.json").read_text())["returns"]
    except (OSError, ValueError, KeyError, TypeError):
        return 10
    return len(returns)
