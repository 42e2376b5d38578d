"""Make docs/results.md again: `python benchmarks/results.py [--run] [NAME ...]`.

Without `--run` the tables and pictures are made from the evaluations in docs/results, one CSV a table. With it, runs of
the named rows (all rows if none is named) that are not there are made first, one after the other, below runs/results;
one that was stopped is resumed. To share the work, start the command several times with other names.
"""

import argparse
import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sac_torchrl.runs.plots import interval, label_axes

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
PICTURES = ROOT / "docs" / "pictures"
PUBLISHED = KEPT / "published.csv"  # mean returns that others report
MADE = Path("runs") / "results"
COLUMNS = ("run", "seed", "frames", "return_mean", "return_std", "length_mean")


@dataclass(frozen=True)
class Row:
    """Runs of one command, and the frames at which the table has their returns, or another `measure` of evaluations."""

    name: str
    environment: str
    command: str
    frames: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    table: str = "default"
    system: str = "default"
    measure: str = "return_mean"


HALFCHEETAH = "HalfCheetah-v5"
LONG = "total_frames=100000 evaluate.every=5000 evaluate.episodes=10 checkpoint.every=10000 learner.execution=compiled"
SHORT = "total_frames=20000 evaluate.every=2500 evaluate.episodes=10 checkpoint.every=5000 learner.execution=compiled"
PENDULUM = "continuous preset=pendulum"
CHEETAH = "continuous preset=halfcheetah total_frames=50000 evaluate.every=5000"
KEYS = "variant.actor_keys=[observation,desired_goal] variant.critic_keys=[observation,desired_goal]"
BITS = (
    f"discrete env.id=BitFlipping-v0 env.plugins=[toys] env.count=4 {KEYS} variant.network.hidden=[256] "
    "learner.lr=0.001 variant.gamma=0.98 variant.target_entropy_ratio=0.6 random_frames=8000 replay_ratio=1.5 "
    "total_frames=12000 evaluate.episodes=100"
)
REACH = (
    "continuous env.id=PandaReach-v3 env.plugins=[panda_gym] env.count=4 variant.network.hidden=[64,64] "
    "learner.lr=0.001 variant.gamma=0.95 replay_ratio=0.25 total_frames=20000 evaluate.every=5000 evaluate.episodes=50"
)
LANDER = (
    "env.count=4 variant.network.hidden=[128,128] batch_size=128 learner.lr=0.0007 variant.tau=0.01 "
    "random_frames=10000 replay_ratio=0.5"
)
LANDS = f"{LANDER} total_frames=200000 evaluate.every=20000 evaluate.episodes=20 log_every=4000"
GRID = (
    "discrete env.id=MiniGrid-Empty-8x8-v0 env.plugins=[minigrid] env.ignore=[mission] env.count=8 replay_ratio=0.25 "
    "random_frames=20000 total_frames=60000 evaluate.every=10000 evaluate.episodes=50 log_every=4000 "
    "variant.alpha=0.005 variant.target_entropy_ratio=0.5 variant.gamma=0.95 variant.network.hidden=[128,128] "
    "batch_size=128 learner.lr=0.001"
)
ARM = (
    "continuous env.id=Meta-World/MT1 env.plugins=[metaworld] env.kwargs.env_name=reach-v3 "
    f"{LANDER.removeprefix('env.count=4 ')} total_frames=100000 evaluate.every=10000 evaluate.episodes=20 "
    "log_every=4000"
)
DOORS = (
    "discrete env.id=TwoDoors-v0 env.plugins=[toys] variant.actor_keys=[room] variant.network.hidden=[64] "
    "batch_size=64 learner.lr=0.001 variant.gamma=0.9 random_frames=200 total_frames=2000 evaluate.every=50 "
    "evaluate.episodes=100 log_every=200"
)
TENS = "total_frames=100000 evaluate.every=10000 evaluate.episodes=10"
FIVE = (0, 1, 2, 3, 4)
# Rows of one name are the same runs, in several tables.
ROWS = [
    Row("pendulum", "Pendulum-v1", PENDULUM, (10_000,)),
    Row(
        "inverted",
        "InvertedPendulum-v5",
        "continuous preset=inverted_pendulum total_frames=25000 evaluate.every=2500",
        (25_000,),
    ),
    Row("halfcheetah", HALFCHEETAH, f"continuous preset=halfcheetah {LONG}", (50_000, 100_000), FIVE),
    Row(
        "balance",
        "dmc/cartpole-balance",
        "continuous preset=dmc_cartpole_balance total_frames=50000 evaluate.every=5000",
        (50_000,),
    ),
    Row("swingup", "dmc/cartpole-swingup", f"continuous preset=dmc_cartpole_swingup {LONG}", (100_000,)),
    Row(
        "cartpole",
        "CartPole-v1",
        "discrete variant.tau=0.005 variant.alpha=1 total_frames=50000 evaluate.every=5000",
        (20_000, 50_000),
    ),
    Row("cartpole-recipe", "CartPole-v1", "discrete total_frames=30000", (24_000, 30_000), table="discrete"),
    Row(
        "cartpole-preset",
        "CartPole-v1",
        "discrete preset=cartpole evaluate.every=2500",
        (12_500, 50_000),
        table="discrete",
        system="preset",
    ),
    Row(
        "frozenlake",
        "FrozenLake-v1",
        "discrete preset=[frozen_lake,table] evaluate.episodes=100",
        (20_000,),
        table="discrete",
        system="table",
    ),
    Row(
        "taxi",
        "Taxi-v4",
        "discrete preset=[taxi,table] env.mask=none evaluate.episodes=100",
        (60_000, 100_000),
        table="discrete",
        system="table, no mask",
    ),
    Row(
        "taxi-mask",
        "Taxi-v4",
        "discrete preset=[taxi,table] random_frames=20000 total_frames=30000 evaluate.episodes=100",
        (25_000, 30_000),
        table="discrete",
        system="table, its mask",
    ),
    *(
        Row(
            f"halfcheetah-{name}",
            HALFCHEETAH,
            f"continuous preset=[{name},halfcheetah] {LONG}",
            (100_000,),
            table="systems",
            system=name,
        )
        for name in ("spinup", "softlearning", "haarnoja2018a")
    ),
    Row(
        "halfcheetah-jaxrl",
        HALFCHEETAH,
        f"continuous preset=[halfcheetah,jaxrl] learner.precision=bfloat16 {TENS}",
        (50_000, 100_000),
        FIVE,
        "systems",
        "jaxrl",
    ),
    Row(
        "cheetah-pytorch_sac",
        "dmc/cheetah-run",
        f"continuous preset=[pytorch_sac,dmc_cheetah_run] variant.network.hidden=[256,256] batch_size=256 {LONG}",
        (100_000,),
        table="systems",
        system="pytorch_sac, 256 wide, batch 256",
    ),
    Row(
        "hopper",
        "Hopper-v5",
        "continuous preset=hopper total_frames=500000 evaluate.every=10000 learner.execution=compiled",
        (500_000,),
        seeds=(0, 1),
        table="systems",
    ),
    *(
        Row(
            f"halfcheetah-{name}",
            HALFCHEETAH,
            f"continuous variant={name} preset=halfcheetah random_frames=5000 {SHORT}{more}",
            (20_000,),
            seeds=(0, 1),
            table="family",
            system=name,
        )
        for name, more in (
            ("sac", ""),
            ("redq", ""),
            ("droq", ""),
            ("crossq", " variant.critic_hidden=[256,256]"),
        )
    ),
    *(
        Row(
            f"halfcheetah-{ratio}-{name}",
            HALFCHEETAH,
            f"continuous preset=halfcheetah{settings} total_frames=50000 evaluate.every=5000 {how}",
            (50_000,),
            table="collectors",
            system=f"{ratio} updates a frame, {name}",
        )
        for ratio, settings in (("1", ""), ("0.25", " replay_ratio=0.25"))
        for name, how in (
            ("direct", "collector=direct"),
            ("pipelined", "collector=processes collector.pipelined=true collector.workers=1"),
            ("async", "collector=async collector.workers=1"),
        )
    ),
    Row(
        "fastsac-pendulum",
        "torch/pendulum",
        "continuous preset=fastsac env.id=torch/pendulum env.count=256 batch_size=512 replay_ratio=0.03125 "
        "variant.reward_scale=0.03 random_frames=2560 total_frames=51200 log_every=5120 evaluate.every=5120 "
        "evaluate.episodes=20 checkpoint.every=51200 replay.capacity=100000",
        (51_200,),
        table="fastsac",
        system="fastsac",
    ),
    *(
        Row(name, id, f"discrete env.id={id} {more}", frames, table="environments")
        for name, id, more, frames in (
            (
                "blackjack",
                "Blackjack-v1",
                "env.count=8 replay_ratio=0.1 evaluate.every=25000 evaluate.episodes=100 log_every=5000 "
                "total_frames=100000",
                (50_000, 100_000),
            ),
            (
                "merge",
                "merge-v0",
                "env.plugins=[highway_env] env.count=4 replay_ratio=0.5 total_frames=6000 log_every=500 "
                "evaluate.every=2000 evaluate.episodes=20",
                (4_000, 6_000),
            ),
        )
    ),
    Row(
        "lander",
        "LunarLander-v3",
        f"discrete env.id=LunarLander-v3 variant.target_entropy_ratio=0.5 {LANDS}",
        (100_000, 200_000),
        table="environments",
        system="discrete, 128 wide",
    ),
    Row(
        "lander-continuous",
        "LunarLander-v3",
        f"continuous env.id=LunarLander-v3 env.kwargs.continuous=true {LANDS}",
        (100_000, 200_000),
        table="environments",
        system="continuous, 128 wide",
    ),
    Row("minigrid", "MiniGrid-Empty-8x8-v0", GRID, (30_000, 60_000), (0, 1, 2), "environments", "128 wide"),
    *(
        Row(f"two-doors-{name}", "TwoDoors-v0", DOORS + keys, (300, 500, 1_000), FIVE, "eyes", f"critic {system}")
        for name, keys, system in (
            ("seeing", "", "sees the hidden bit"),
            ("blind", " variant.critic_keys=[room]", "sees what the policy sees"),
        )
    ),
    *(
        Row(
            f"bits-{name}",
            "BitFlipping-v0",
            f"{BITS} replay.hindsight={name}",
            (10_000, 12_000),
            table="goals",
            system=f"replay.hindsight={name}",
            measure="success",
        )
        for name in ("future", "none")
    ),
    *(
        Row(
            f"reach-{name}",
            "PandaReach-v3",
            f"{REACH} replay.hindsight={name}",
            (10_000, 20_000),
            seeds=(0, 1, 2),
            table="goals",
            system=f"replay.hindsight={name}",
            measure="success",
        )
        for name in ("future", "none")
    ),
    Row("metaworld", "Meta-World/MT1 reach-v3", ARM, (50_000, 100_000), (0, 1, 2), "goals", "128 wide", "success"),
    Row("pendulum", "Pendulum-v1", PENDULUM, (10_000,), table="policies", system="Gaussian"),
    *(
        Row(
            f"pendulum-{name}",
            "Pendulum-v1",
            f"{PENDULUM} variant.policy={name} evaluate.every=2500",
            (10_000,),
            table="policies",
            system=name,
        )
        for name in ("mixture", "flow")
    ),
    Row(
        "halfcheetah",
        HALFCHEETAH,
        f"continuous preset=halfcheetah {LONG}",
        (50_000, 100_000),
        FIVE,
        "policies",
        "Gaussian",
    ),
    *(
        Row(
            f"halfcheetah-{name}",
            HALFCHEETAH,
            f"continuous preset=halfcheetah variant.policy={name} {TENS}",
            (50_000, 100_000),
            table="policies",
            system=name,
        )
        for name in ("mixture", "flow")
    ),
    *(
        Row(
            f"halfcheetah-{name}",
            HALFCHEETAH,
            f"discrete env.id={HALFCHEETAH} env.bins=3 random_frames=10000{more} {TENS}",
            (50_000, 100_000),
            table="policies",
            system=f"`env.bins=3`, {name}",
        )
        for name, more in (
            ("joint", " learner.execution=compiled"),
            ("enumerated", " variant.critic=enumerated"),
        )
    ),
    Row("pendulum", "Pendulum-v1", PENDULUM, (10_000,), FIVE, "precision", "float32"),
    Row(
        "pendulum-bfloat16",
        "Pendulum-v1",
        f"{PENDULUM} learner.precision=bfloat16",
        (10_000,),
        FIVE,
        "precision",
        "bfloat16",
    ),
    Row("halfcheetah-1-direct", HALFCHEETAH, f"{CHEETAH} collector=direct", (50_000,), FIVE, "precision", "float32"),
    Row(
        "halfcheetah-bfloat16",
        HALFCHEETAH,
        f"{CHEETAH} learner.precision=bfloat16",
        (50_000,),
        FIVE,
        "precision",
        "bfloat16",
    ),
]


_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = {"automatic": "D", "fixed": "o", "DroQ": "s"}


def main() -> None:
    """Make what is missing and was asked for, then tables and pictures of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    given = parser.parse_args()
    unknown = set(given.names) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    if given.run:
        for row in ROWS:
            if not given.names or row.name in given.names:
                for seed in row.seeds:
                    make(row, seed)
    page = PAGE.read_text()
    for table in dict.fromkeys(row.table for row in ROWS):
        page = put(page, table, write_table(table))
        groups: dict[str, list[Row]] = {}
        for row in ROWS:
            if row.table == table and len(curves(row)[1]):
                groups.setdefault(row.environment, []).append(row)
        picture(PICTURES / f"{table}.png", groups, "DroQ" if table == "family" else "SAC")
    page = put(page, "published", published())
    page = put(page, "commands", commands())
    PAGE.write_text(page)
    picture(PICTURES / "pendulum.png", {"Pendulum-v1": ROWS[:1]}, "none")  # the README's


def file_of(row: Row) -> Path:
    """The CSV that holds the evaluations of a row: that of the first table with runs of its name."""
    return KEPT / f"{next(other.table for other in ROWS if other.name == row.name)}.csv"


@cache
def read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV, by column; none if there is no such file."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def make(row: Row, seed: int) -> None:
    """Run one seed to its end and append its evaluations to the CSV; does nothing if they are there."""
    if any((line["run"], line["seed"]) == (row.name, str(seed)) for line in read(file_of(row))):
        return
    recipe, *words = row.command.split()
    folder = MADE / f"{row.name}-{seed}"
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words, f"seed={seed}", f"run.folder={folder}"]
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])  # for the toys
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    new = not file_of(row).exists()
    columns = COLUMNS if row.measure in COLUMNS else (*COLUMNS, row.measure)
    with file_of(row).open("a") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        if new:
            write(columns)
        for line in read(folder / "metrics.csv"):
            if line["eval/return_mean"]:
                values = (line[f"eval/{name}"] for name in columns[3:])
                write([row.name, seed, line["frames"], *values])
    read.cache_clear()


def curves(row: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The frames `(n,)` at which all seeds of a row were evaluated, and what it measures there, `(seeds, n)`."""
    lines = [line for line in read(file_of(row)) if line["run"] == row.name]
    seeds = [
        {float(line["frames"]): float(line[row.measure]) for line in lines if line["seed"] == str(seed)}
        for seed in row.seeds
    ]
    seeds = [seed for seed in seeds if seed]
    common = sorted(set.intersection(*map(set, seeds))) if seeds else []
    return np.array(common), np.array([[seed[frames] for frames in common] for seed in seeds])


def write_table(table: str) -> str:
    """Write one table: the return of every seed, their mean and its 95% interval."""
    lines = ["| environment | settings | frames | each seed | mean |", "|---|---|---|---|---|"]
    for row in ROWS:
        common, values = curves(row)
        for frames in row.frames if row.table == table else ():
            if not len(values):
                lines.append(f"| {row.environment} | {row.system} | {frames:,} | not run yet | |")
                continue
            samples = values[:, common == frames]
            form = ",.0f" if np.abs(samples).max() >= 10 else ".2f"
            each = ", ".join(f"{value:{form}}" for value in samples[:, 0])
            spread = f" ± {interval(samples)[1][0]:{form}}" if len(samples) > 1 else ""
            lines.append(
                f"| {row.environment} | {row.system} | {frames:,} | {each} | {samples.mean():{form}}{spread} |"
            )
    return "\n".join(lines)


def picture(path: Path, groups: dict[str, list[Row]], algorithm: str) -> None:
    """Draw the curves of the rows, a panel an environment, with what is published of `algorithm` within its frames."""
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(6.4 if columns == 1 else 4.2 * columns, 3.4 * lines), dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (environment, rows) in zip(panels, groups.items(), strict=False):
        for row, color in zip(rows, _COLORS, strict=False):
            draw(axes, row, color)
        last = max(line.get_xdata()[-1] for line in axes.lines)
        for how in (how for how in _MARKERS if (how == "DroQ") == (algorithm == "DroQ") and algorithm != "none"):
            points = [
                (float(line["frames"]), float(line["return_mean"]))
                for line in read(PUBLISHED)
                if (line["environment"], line["temperature"]) == (environment, how) and float(line["frames"]) <= last
            ]
            if points:
                label = "published, DroQ" if how == "DroQ" else f"published, {how} temperature"
                axes.plot(
                    *zip(*points, strict=True),
                    _MARKERS[how],
                    color="black",
                    fillstyle="none",
                    markersize=5,
                    label=label,
                )
        seen = np.concatenate([line.get_ydata() for line in axes.lines])
        margin = 0.05 * (seen.max() - seen.min())
        axes.set_ylim(seen.min() - margin, seen.max() + margin)  # not as wide as the widest interval
        axes.set_title(environment, fontsize="medium")
        label_axes(axes)
        axes.set_ylabel({"return_mean": "return"}.get(rows[0].measure, rows[0].measure))
        axes.legend(frameon=False, fontsize="x-small")
    figure.savefig(path)


def draw(axes: Axes, row: Row, color: str) -> None:
    """Draw the seeds of a row as thin lines and their mean with its 95% interval, from three seeds on."""
    frames, values = curves(row)
    for seed in values:
        axes.plot(frames, seed, color=color, linewidth=0.5, alpha=0.5)
    axes.plot(frames, values.mean(axis=0), color=color, linewidth=1.6, label=f"{row.system}, {len(values)} seeds")
    if len(values) > 2:
        mean, half = interval(values)
        axes.fill_between(frames, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)


def published() -> str:
    """Write the table of what others report."""
    sources: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for line in read(PUBLISHED):
        sources.setdefault((line["version"], line["temperature"], line["target"], line["source"]), []).append(line)
    lines = [
        "| environment | frames | mean return | SAC | entropy target, of the dimensions | source |",
        "|---|---|---|---|---|---|",
    ]
    for (version, how, target, source), points in sources.items():
        frames = " / ".join(f"{int(point['frames']):,}" for point in points)
        returns = " / ".join(f"{float(point['return_mean']):,.0f}" for point in points)
        algorithm = how if how == "DroQ" else f"{how} temperature"
        lines.append(f"| {version} | {frames} | {returns} | {algorithm} | {target or '-'} | {source} |")
    return "\n".join(lines)


def commands() -> str:
    """Write the command of every row."""
    lines = dict.fromkeys(f"python recipes/{row.command.replace(' ', '.py ', 1)}" for row in ROWS)
    return "\n".join(["```text", *lines, "```"])


def put(page: str, name: str, text: str) -> str:
    """Replace what stands between the marks of a table."""
    before, rest = page.split(f"<!-- {name} -->\n", 1)
    _, after = rest.split(f"<!-- end of {name} -->", 1)
    return f"{before}<!-- {name} -->\n{text}\n<!-- end of {name} -->{after}"


if __name__ == "__main__":
    main()
