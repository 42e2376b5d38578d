"""`sac-torchrl compare`: groups of runs of one task, by their returns at the same frames."""

import argparse
import csv
import glob
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sac_torchrl.errors import ConfigError

if TYPE_CHECKING:
    from sac_torchrl.runs.comparison import Group

# Settings of the environment that do not change the task.
_NO_TASK = ("env.count", "env.faults", "env.plugins")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, or patterns of them in quotes")
    parser.add_argument("--by", metavar="KEY", default="variant", help="what a group has in common, by default variant")
    parser.add_argument("--at", metavar="FRAMES", type=int, help="by default the last evaluation that all runs have")
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=Path,
        action="append",
        default=[],
        help="write the table to NAME.csv as well, or the curves to NAME.png or NAME.svg; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> None:
    """Print a row for each group, and how likely each is better than the first."""
    from sac_torchrl.files import write_whole
    from sac_torchrl.runs.comparison import compare_groups, draw_groups
    from sac_torchrl.runs.plots import PICTURES, evaluations

    for path in given.output:
        if path.suffix not in (".csv", *PICTURES):
            raise ConfigError(f"--output {path}: give NAME.csv, NAME.png or NAME.svg.")
    grouped = grouped_runs(given.runs, given.by)
    folders = [folder for group in grouped.values() for folder in group]
    common, returns = evaluations(folders)
    frames = int(common[-1]) if given.at is None else given.at
    if frames not in common:
        known = ", ".join(str(int(one)) for one in common)
        raise ConfigError(f"--at {frames}: all runs have evaluations at {known} frames.")
    scores = dict(zip(folders, returns[:, list(common).index(frames)], strict=True))
    groups = {name: [float(scores[folder]) for folder in group] for name, group in grouped.items()}
    compared = compare_groups(groups)
    for path in given.output:
        if path.suffix == ".csv":
            write_whole(path, _table(compared, frames))
        else:
            draw_groups(grouped, path)
    print(_json(compared, frames, given.by) if given.json else _text(compared, frames, given.by))


def grouped_runs(words: Sequence[str], by: str) -> dict[str, list[Path]]:
    """The run folders, or patterns of them, by their value of the setting `by`; raises ConfigError for other tasks."""
    folders = found_runs(words)
    settings = {folder: _settings(folder) for folder in folders}
    _refuse_other_tasks(settings)
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        if by not in settings[folder]:
            raise ConfigError(f"--by {by}: {folder} has no such setting.")
        groups.setdefault(str(settings[folder][by]), []).append(folder)
    return groups


def found_runs(words: Sequence[str]) -> list[Path]:
    """The folders that words name, each a path or a pattern."""
    folders: dict[Path, None] = {}
    for word in words:
        # Quoted patterns are for shells that have none, and for more runs than a command line takes.
        found = sorted(glob.glob(word)) or [word]  # noqa: PTH207 - a pattern may be absolute
        folders |= dict.fromkeys(map(Path, found))
    return list(folders)


def _settings(folder: Path) -> dict[str, Any]:
    from sac_torchrl.config.layers import read
    from sac_torchrl.runs.folder import CONFIG

    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG} in it.")
    layer = read(folder / CONFIG)
    return {**{setting.key: setting.value for setting in layer.settings}, **layer.names}


def _refuse_other_tasks(settings: dict[Path, dict[str, Any]]) -> None:
    tasks = {
        folder: {key: value for key, value in own.items() if key.startswith("env.") and key not in _NO_TASK}
        for folder, own in settings.items()
    }
    first, *others = tasks
    for folder in others:
        for key in dict.fromkeys([*tasks[first], *tasks[folder]]):
            one, other = tasks[first].get(key), tasks[folder].get(key)
            if one != other:
                raise ConfigError(
                    f"{first} has {key}={one} and {folder} has {key}={other}: returns of different tasks cannot be "
                    "compared; give runs of one."
                )


def _rows(groups: Sequence["Group"]) -> list[dict[str, Any]]:
    return [
        {
            "group": group.name,
            "runs": len(group.scores),
            "mean": group.mean,
            "iqm": group.iqm,
            "low": group.interval and group.interval[0],
            "high": group.interval and group.interval[1],
            "improvement": group.improvement,
        }
        for group in groups
    ]


def _json(groups: Sequence["Group"], frames: int, by: str) -> str:
    return json.dumps({"frames": frames, "by": by, "groups": _rows(groups)}, indent=2)


def _table(groups: Sequence["Group"], frames: int) -> str:
    file = io.StringIO()
    rows = [{"frames": frames, **row} for row in _rows(groups)]
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _text(groups: Sequence["Group"], frames: int, by: str) -> str:
    width = max(len(by), *(len(group.name) for group in groups))
    head = f"{by:{width}} runs       mean        IQM  95 % interval of the IQM  P(better)"
    lines = [f"returns at {frames} frames", head]
    for group in groups:
        interval = "-" if group.interval is None else f"{group.interval[0]:.4g} to {group.interval[1]:.4g}"
        better = "-" if group.improvement is None else f"{group.improvement:.2f}"
        numbers = f"{len(group.scores):4} {group.mean:10.4g} {group.iqm:10.4g}"
        lines.append(f"{group.name:{width}} {numbers}  {interval:>23}  {better:>9}")
    if len(groups) > 1:
        lines.append(f"P(better): the probability that a run is better than one of {groups[0].name}.")
    few = [group.name for group in groups if group.interval is None]
    if few:
        lines.append(f"{', '.join(few)}: one or two runs tell nothing of how runs differ; train at least three seeds.")
    return "\n".join(lines)
