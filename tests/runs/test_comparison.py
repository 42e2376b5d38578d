"""Comparisons of runs: their statistics against derivations and published code, and what is refused."""

import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sac_torchrl.cli.main import main
from sac_torchrl.runs.comparison import (
    Array,
    interquartile_mean,
    percentile_interval,
    probability_of_improvement,
    stratified_bootstrap,
)


def normal(seed: int, runs: int, tasks: int) -> Array:
    return np.random.default_rng(seed).normal(size=(runs, tasks)).round(3)


STEPS = np.arange(80.0).reshape(5, 16)
# Scores (runs, tasks) of two systems; the first two pairs are those of metrics_test.py and library_test.py of rliable.
# Of rliable 1.2.0: aggregate_iqm of the first; its get_interval_estimates with 10,000 replications, where
# numpy.random.choice was replaced by default_rng(0).integers; probability_of_improvement over the second.
# scipy.stats.mannwhitneyu's U / (n m), averaged over the tasks, equals the last column to the last digit.
RLIABLE: list[tuple[Array, Array, float, tuple[float, float], float]] = [
    (np.array([[1.0, 2], [2, 2], [1, 1], [2, 1]]), np.array([[1.0, 1], [2, 2], [3, 3]]), 1.5, (1.0, 2.0), 1 / 3),
    (STEPS, STEPS[::-1], 39.5, (32.5, 46.425), 0.5),
    (normal(0, 3, 4), normal(1, 3, 4), -0.005666666666666671, (-0.3755083333333333, 0.37600000000000006), 1 / 3),
    (normal(1, 5, 4), normal(2, 5, 4), 0.1137, (-0.20130249999999997, 0.37030499999999994), 0.52),
    (normal(2, 10, 4), normal(3, 10, 4), 0.06405, (-0.23440624999999984, 0.36024999999999996), 0.53),
    (
        normal(4, 5, 26),
        normal(5, 3, 26),
        0.0168939393939394,
        (-0.15745757575757574, 0.1994511363636362),
        0.5743589743589743,
    ),
]


@pytest.mark.parametrize(("one", "other", "iqm", "interval", "improvement"), RLIABLE)
def test_statistics_are_those_of_rliable(
    one: Array, other: Array, iqm: float, interval: tuple[float, float], improvement: float
) -> None:
    assert interquartile_mean(one) == pytest.approx(iqm, rel=0, abs=1e-12)
    assert percentile_interval(stratified_bootstrap(one)) == pytest.approx(interval, rel=0, abs=1e-12)
    assert probability_of_improvement(one, other) == pytest.approx(improvement, rel=0, abs=1e-12)


def test_the_probability_of_improvement_counts_pairs_and_ties_half() -> None:
    one, other = np.array([[1.0], [2.0], [5.0]]), np.array([[2.0], [0.0]])
    wins = sum((a > b) + 0.5 * (a == b) for a, b in product(one[:, 0], other[:, 0]))
    assert probability_of_improvement(one, other) == wins / 6 == 4.5 / 6


def test_the_bootstrap_draws_runs_of_each_task_apart() -> None:
    scores = np.array([[0.0, 100.0], [1.0, 101.0]])
    # Of two runs and two tasks one score is left out at either end.
    expected = {
        float(np.mean(sorted([a, b, c, d])[1:-1]))
        for a, b in product((0, 1), repeat=2)
        for c, d in product((100, 101), repeat=2)
    }
    assert set(stratified_bootstrap(scores)) == expected


@pytest.mark.parametrize(
    ("runs", "low", "high"),
    # The percentile interval of few runs is too narrow; docs/deploy.md has the figures.
    [
        (10, 0.93, 0.97),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((3, 0.7, 0.8), (5, 0.87, 0.92), (20, 0.93, 0.97), (60, 0.93, 0.97))
        ),
    ],
)
def test_bootstrap_intervals_cover_as_often_as_they_say(runs: int, low: float, high: float) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(2000):
        scores = generator.normal(size=(runs, 1))  # their distribution is symmetric: its interquartile mean is 0
        bounds = percentile_interval(stratified_bootstrap(scores, resamples=2000, seed=number))
        covered += bounds[0] <= 0 <= bounds[1]
    print(f"{runs} runs: {covered / 2000:.4f}")
    assert low <= covered / 2000 <= high


def save_run(folder: Path, variant: str, seed: int, returns: list[object], env: str = "Pendulum-v1") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"variant: {{name: {variant}}}\ncollector: {{name: direct}}\nenv: {{id: {env}}}\nseed: {seed}\n"
    )
    with (folder / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["frames", "eval/return_mean"])
        writer.writerows([100 * number, value] for number, value in enumerate(returns, 1))
    return folder


def test_compare_prints_a_row_for_each_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(4):
        save_run(tmp_path / f"sac-{seed}", "sac", seed, [-900, -800 + seed])
        save_run(tmp_path / f"redq-{seed}", "redq", seed, [-500, -400 + seed, -300])
    save_run(tmp_path / "tqc-0", "tqc", 0, [-100, -900])
    patterns = [str(tmp_path / f"{name}-*") for name in ("sac", "redq", "tqc")]
    main(["compare", *patterns, "--json", "--output", str(tmp_path / "table.csv")])
    table = json.loads(capsys.readouterr().out)
    assert (table["frames"], table["by"]) == (200, "variant"), "the last that all have"
    sac, redq, tqc = table["groups"]
    assert (sac["group"], sac["runs"], sac["mean"], sac["iqm"]) == ("sac", 4, -798.5, -798.5)
    assert redq["improvement"] == 1.0 and tqc["improvement"] == 0.0 and sac["improvement"] is None
    assert redq["low"] <= redq["iqm"] <= redq["high"] and tqc["low"] is None
    with (tmp_path / "table.csv").open() as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["sac", "redq", "tqc"]
    picture = tmp_path / "curves.svg"
    main(["compare", *patterns, "--output", str(picture), "--output", str(tmp_path / "curves.png")])
    assert all(f">{label}<" in picture.read_text() for label in ("sac (4 runs)", "redq (4 runs)", "tqc (1 run)"))
    capsys.readouterr()
    main(["plot", *patterns, "--by", "seed", "--output", str(tmp_path / "seeds.svg")])
    assert capsys.readouterr().out == f"{tmp_path / 'seeds.svg'}\n"
    assert ">3 (2 runs)<" in (tmp_path / "seeds.svg").read_text()
    main(["compare", *patterns, "--at", "100"])
    said = capsys.readouterr().out
    assert "returns at 100 frames" in said and "tqc: one or two runs tell nothing" in said


def test_what_cannot_be_compared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = str(save_run(tmp_path / "one", "sac", 0, [1, 2]))
    other = str(save_run(tmp_path / "other", "sac", 0, [1, 2], env="Hopper-v5"))
    for words, text in (
        ([one, other], "env.id=Pendulum-v1 and"),
        ([one, "--at", "150"], "evaluations at 100, 200 frames"),
        ([one, "--by", "variant.size"], "no such setting"),
        ([str(tmp_path / "no-*")], "holds no run"),
        ([one, "--output", "curves.pdf"], "give NAME.csv, NAME.png or NAME.svg"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["compare", *words])
        assert end.value.code == 64
        assert text in capsys.readouterr().err
