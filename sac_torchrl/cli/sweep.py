"""A sweep: every combination of the swept values, one run after the other."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sac_torchrl.config.command_line import CommandLine, Job
from sac_torchrl.config.compose import compose
from sac_torchrl.config.files import check_folder, run_name
from sac_torchrl.config.layers import Setting
from sac_torchrl.config.schema import T, TrainConfig
from sac_torchrl.envs import generators
from sac_torchrl.errors import ConfigError, Preempted, exit_codes
from sac_torchrl.runs.folder import CONFIG, new_folder
from sac_torchrl.signals import Signals
from sac_torchrl.specs import Specs

_INTERRUPTED = (Preempted.exit_code, 130)


@dataclass(frozen=True)
class Ended:
    """How a run of the sweep ended: its exit code, and its mean return where it has one."""

    job: Job
    code: int
    folder: str
    score: str


def sweep(recipe: T, line: CommandLine, task: Callable[[T], Any], *, folder: Path, command: Sequence[str]) -> None:
    """Check every run, then train one after the other, each in a folder named after its swept values.

    The folders lie in `run.folder`, or in a new one below runs/. A run that fails is reported and the next one starts;
    at the end a table is printed and the process exits with the highest exit code. A signal ends the sweep with the
    runs that are left and the command to continue: the same one with its `run.folder`.
    """
    jobs = line.jobs()
    swept_folder = any(key == "run.folder" for job in jobs for key, _ in job.swept)
    given = None if swept_folder else _given(jobs[0])
    configs = [compose(recipe, _below(job, given), folder=folder) for job in jobs]
    _check(configs, jobs)
    again = list(command)
    if given is None and not swept_folder:
        parent = new_folder(run_name(configs[0], seed=False))
        for job, config in zip(jobs, configs, strict=True):
            config.run.folder = str(parent / _safe(job.name))
        again.append(f"run.folder={parent}")
    ended: list[Ended] = []
    signals = Signals()
    with signals.noted():
        for job, config in zip(jobs, configs, strict=True):
            if signals.received or (ended and ended[-1].code in _INTERRUPTED):
                break
            print(f"{len(ended) + 1} of {len(jobs)}: {job.name}", flush=True)
            ended.append(_run(job, config, task))
    print(_table(ended))
    stopped = bool(ended) and ended[-1].code in _INTERRUPTED
    remaining = jobs[len(ended) - stopped :]
    if remaining:
        raise Preempted(
            f"{len(remaining)} of {len(jobs)} runs of the sweep did not finish: "
            f"{'; '.join(job.name for job in remaining)}. Continue with: {' '.join(again)}"
        )
    worst = max(one.code for one in ended)
    if worst:
        raise SystemExit(worst)


def _given(job: Job) -> Path | None:
    """The folder that `run.folder` names for the whole sweep; raises ConfigError where it holds a single run."""
    folders = [str(setting.value) for setting in job.settings if setting.key == "run.folder"]
    if not folders:
        return None
    if (Path(folders[-1]).expanduser() / CONFIG).exists():
        raise ConfigError(f"run.folder={folders[-1]} holds a run: a sweep needs a folder for several.")
    return Path(folders[-1])


def _below(job: Job, parent: Path | None) -> list[Setting]:
    if parent is None:
        return job.settings
    path = str(parent / _safe(job.name))
    return [*job.settings, Setting("run.folder", path, f"run.folder={path}")]


def _safe(name: str) -> str:
    """A folder's name: what is not a letter, a digit or one of ._=+- becomes -, and a blank becomes _."""
    return re.sub(r"[^\w.=+-]+", "-", name.replace(" ", "_")) or "run"


def _check(configs: Sequence[TrainConfig], jobs: Sequence[Job]) -> None:
    """Raise ConfigError where a run could not start: its folder, its environment, its networks."""
    specs: dict[str, Specs] = {}
    names = [_safe(job.name) for job in jobs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two runs of the sweep are the same or have names too similar: {', '.join(names)}.")
    for config, job in zip(configs, jobs, strict=True):
        try:
            check_folder(config)
            key = repr(config.env)
            specs[key] = specs.get(key) or config.env.specs()
            with generators.preserve():
                config.variant.build(specs[key], device=torch.device("cpu"))
        except ConfigError as error:
            raise ConfigError(f"{job.name}: {error}") from error


def _run(job: Job, config: T, task: Callable[[T], Any]) -> Ended:
    result, code = None, 0
    try:
        with exit_codes():
            result = task(config)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    evaluation = getattr(result, "evaluation", None)
    score = "" if evaluation is None else f"{evaluation.mean:.1f} ± {evaluation.std:.1f}"
    return Ended(job, code, str(config.run.folder), score)


def _table(ended: Sequence[Ended]) -> str:
    """The swept values, the return of the last evaluation (mean and deviation over episodes) and the folder."""
    keys = [key for key, _ in ended[0].job.swept] if ended else []
    rows = [[*keys, "return", "folder"]]
    rows += [
        [*(value for _, value in one.job.swept), one.score or f"exit code {one.code}", one.folder] for one in ended
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
