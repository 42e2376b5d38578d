"""Make docs/results.md again: `python benchmarks/results.py [--run] [NAME ...]`.

Without `--run` the tables and pictures are made from the runs in docs/results. With it, runs of the named rows (all of
them where none is named) that are not there are made first, one after the other, below runs/results; one that was
stopped goes on. To share the work, start the command several times with other names.
"""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sac_torchrl.runs.plots import curve, evaluations, interval, label_axes, metric

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
PICTURES = ROOT / "docs" / "pictures"
MADE = Path("runs") / "results"


@dataclass(frozen=True)
class Row:
    """Runs of one command, and the frames at which their returns are told."""

    name: str
    environment: str
    command: str
    frames: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    table: str = "default"
    system: str = "default"


HALFCHEETAH = "HalfCheetah-v5"
LONG = "total_frames=100000 evaluate.every=5000 evaluate.episodes=10 checkpoint.every=10000 learner.execution=compiled"
SHORT = "total_frames=20000 evaluate.every=2500 evaluate.episodes=10 checkpoint.every=5000 learner.execution=compiled"
PENDULUM = "continuous preset=pendulum"
CHEETAH = "continuous preset=halfcheetah total_frames=50000 evaluate.every=5000"
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
        "discrete preset=cartpole variant.tau=0.005 variant.alpha=1 total_frames=50000 evaluate.every=5000",
        (20_000, 50_000),
    ),
    Row("cartpole-recipe", "CartPole-v1", "discrete total_frames=30000", (24_000, 30_000), table="discrete"),
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
        "discrete preset=[taxi,table] evaluate.episodes=100",
        (60_000, 100_000),
        table="discrete",
        system="table",
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


@dataclass(frozen=True)
class Published:
    """Mean returns that others report, by frames: of SAC with a learned or a fixed temperature, or of DroQ."""

    environment: str
    version: str
    returns: dict[int, float]
    source: str
    how: str = "automatic"


PUBLISHED = [
    Published(HALFCHEETAH, "HalfCheetah-v2", {50_000: 3_910, 100_000: 5_794}, "ikostrikov/jaxrl, learning curves"),
    Published(HALFCHEETAH, "HalfCheetah-v2", {50_000: 2_877, 100_000: 5_233}, "sony/nnabla-rl, reproductions"),
    Published(
        HALFCHEETAH,
        "HalfCheetah-v3",
        {50_000: 3_044, 100_000: 4_961},
        "DLR-RM/rl-trained-agents, one run of Stable-Baselines3",
    ),
    Published(HALFCHEETAH, "HalfCheetah-v2", {100_000: 5_174}, "LQNew/Continuous_Control_Benchmark"),
    Published(HALFCHEETAH, "HalfCheetah-v4", {100_000: 6_156}, "DAVIAN-Robotics/SimbaV2, SAC baseline"),
    Published(HALFCHEETAH, "HalfCheetah-v3", {100_000: 6_081}, "openai/spinningup, curves of sac-pytorch", "fixed"),
    Published(HALFCHEETAH, "HalfCheetah-v3", {100_000: 6_285}, "openai/spinningup, curves of sac-tf1", "fixed"),
    Published(HALFCHEETAH, "HalfCheetah-v3", {100_000: 6_213}, "thu-ml/tianshou", "fixed"),
    Published(HALFCHEETAH, "HalfCheetah-v2", {100_000: 5_749}, "LQNew/Continuous_Control_Benchmark", "fixed"),
    Published(
        HALFCHEETAH,
        "HalfCheetah-v4",
        {33_333: 5_606, 100_000: 7_744},
        "DAVIAN-Robotics/SimbaV2, DroQ baseline",
        "DroQ",
    ),
    Published("Hopper-v5", "Hopper-v2", {500_000: 3_183}, "ikostrikov/jaxrl, learning curves"),
    Published("Hopper-v5", "Hopper-v2", {500_000: 3_198}, "google/dopamine, learning curves"),
    Published("Hopper-v5", "Hopper-v4", {500_000: 2_887}, "DAVIAN-Robotics/SimbaV2, SAC baseline"),
    Published("Hopper-v5", "Hopper-v2", {500_000: 3_022}, "LQNew/Continuous_Control_Benchmark"),
    Published("InvertedPendulum-v5", "InvertedPendulum-v2", {20_000: 1_000}, "thu-ml/tianshou, benchmark", "fixed"),
    Published("Pendulum-v1", "Pendulum-v1", {20_000: -157}, "DLR-RM/rl-baselines3-zoo, benchmark"),
    Published(
        "dmc/cartpole-balance",
        "dmc/cartpole-balance",
        {100_000: 995},
        "DAVIAN-Robotics/SimbaV2, SAC baseline (action repeat 2)",
    ),
    Published(
        "dmc/cartpole-swingup",
        "dmc/cartpole-swingup",
        {100_000: 861},
        "DAVIAN-Robotics/SimbaV2, SAC baseline (action repeat 2)",
    ),
    Published(
        "dmc/cartpole-swingup",
        "dmc/cartpole-swingup",
        {100_000: 814},
        "LQNew/Continuous_Control_Benchmark, Spinning Up",
        "fixed",
    ),
    Published(
        "dmc/cheetah-run",
        "dmc/cheetah-run",
        {40_000: 63, 100_000: 213},
        "denisyarats/pytorch_sac, data/sac.csv (1,024 wide, batch 1,024)",
    ),
    Published(
        "dmc/cheetah-run",
        "dmc/cheetah-run",
        {100_000: 329},
        "SonyResearch/simba, SAC (action repeat 2, 2 updates per decision)",
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
        page = put(page, table, tell(table))
        picture(table)
    page = put(page, "published", published())
    page = put(page, "commands", commands())
    PAGE.write_text(page)
    curve(there(ROWS[0]), PICTURES / "pendulum.png", title="Pendulum-v1, default")  # the README's


def make(row: Row, seed: int) -> None:
    """Run one seed to its end and keep its configuration and metrics; does nothing for one that is kept."""
    kept = KEPT / f"{row.name}-{seed}"
    if kept.exists():
        return
    recipe, *words = row.command.split()
    folder = MADE / kept.name
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words, f"seed={seed}", f"run.folder={folder}"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    kept.mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv"):
        shutil.copy(folder / name, kept)


def there(row: Row) -> list[Path]:
    """The kept runs of a row."""
    return [folder for seed in row.seeds if (folder := KEPT / f"{row.name}-{seed}").exists()]


def tell(table: str) -> str:
    """Write one table: every seed's return, their mean and its 95% interval."""
    lines = ["| environment | settings | frames | each seed | mean |", "|---|---|---|---|---|"]
    for row in ROWS:
        runs = [dict(zip(*metric(folder, "eval/return_mean"), strict=True)) for folder in there(row)]
        for frames in row.frames if row.table == table else ():
            values = np.array([[run[frames]] for run in runs])
            if not len(values):
                lines.append(f"| {row.environment} | {row.system} | {frames:,} | not run yet | |")
                continue
            form = ",.0f" if np.abs(values).max() >= 10 else ".2f"
            each = ", ".join(f"{value:{form}}" for value in values[:, 0])
            spread = f" ± {interval(values)[1][0]:{form}}" if len(values) > 1 else ""
            lines.append(f"| {row.environment} | {row.system} | {frames:,} | {each} | {values.mean():{form}}{spread} |")
    return "\n".join(lines)


def picture(table: str) -> None:
    """Draw the curves of a table, a panel an environment, with what is published within its frames."""
    groups: dict[str, list[Row]] = {}
    for row in ROWS:
        if row.table == table and there(row):
            groups.setdefault(row.environment, []).append(row)
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(6.4 if columns == 1 else 4.2 * columns, 3.4 * lines), dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (environment, rows) in zip(panels, groups.items(), strict=False):
        for row, color in zip(rows, _COLORS, strict=False):
            draw(axes, row, color)
        last = max(line.get_xdata()[-1] for line in axes.lines)
        for how, marker in _MARKERS.items():
            points = [
                point
                for one in PUBLISHED
                if one.environment == environment and one.how == how and (table == "family") == (how == "DroQ")
                for point in one.returns.items()
                if point[0] <= last
            ]
            if points:
                label = "published, DroQ" if how == "DroQ" else f"published, {how} temperature"
                axes.plot(
                    *zip(*points, strict=True), marker, color="black", fillstyle="none", markersize=5, label=label
                )
        seen = np.concatenate([line.get_ydata() for line in axes.lines])
        margin = 0.05 * (seen.max() - seen.min())
        axes.set_ylim(seen.min() - margin, seen.max() + margin)  # not as wide as the widest interval
        axes.set_title(environment, fontsize="medium")
        label_axes(axes)
        axes.legend(frameon=False, fontsize="x-small")
    figure.savefig(PICTURES / f"{table}.png")


def draw(axes: Axes, row: Row, color: str) -> None:
    """Draw the seeds of a row thin and their mean with its 95% interval, which says nothing for less than three."""
    frames, values = evaluations(there(row))
    for seed in values:
        axes.plot(frames, seed, color=color, linewidth=0.5, alpha=0.5)
    axes.plot(frames, values.mean(axis=0), color=color, linewidth=1.6, label=f"{row.system}, {len(values)} seeds")
    if len(values) > 2:
        mean, half = interval(values)
        axes.fill_between(frames, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)


def published() -> str:
    """Write the table of what others report."""
    lines = ["| environment | frames | mean return | SAC | source |", "|---|---|---|---|---|"]
    for one in PUBLISHED:
        frames = " / ".join(f"{frames:,}" for frames in one.returns)
        returns = " / ".join(f"{value:,.0f}" for value in one.returns.values())
        how = "DroQ" if one.how == "DroQ" else f"{one.how} temperature"
        lines.append(f"| {one.version} | {frames} | {returns} | {how} | {one.source} |")
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
