"""Comparisons of runs: their statistics against derivations and published code, and what is refused."""

import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sac_torchrl.cli.main import main
from sac_torchrl.runs.comparison import (
    interquartile_mean,
    percentile_interval,
    probability_of_improvement,
    stratified_bootstrap,
)

# rliable.metrics.aggregate_iqm and probability_of_improvement (1.2.0) of
# numpy.random.default_rng(seed).normal(size=(runs, 4)).round(3), against the same of seed + 1.
RLIABLE = [(0, 3, -0.005666666666666671, 0.3333333333333333), (1, 5, 0.1137, 0.52), (2, 10, 0.06405, 0.53)]


@pytest.mark.parametrize(("seed", "runs", "iqm", "improvement"), RLIABLE)
def test_statistics_are_those_of_rliable(seed: int, runs: int, iqm: float, improvement: float) -> None:
    one, other = (np.random.default_rng(number).normal(size=(runs, 4)).round(3) for number in (seed, seed + 1))
    assert interquartile_mean(one) == pytest.approx(iqm, abs=1e-12)
    assert probability_of_improvement(one, other) == pytest.approx(improvement, abs=1e-12)


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


def test_bootstrap_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(1000):
        low, high = percentile_interval(
            stratified_bootstrap(generator.normal(size=(60, 1)), resamples=500, seed=number)
        )
        covered += low <= 0 <= high
    assert 0.93 <= covered / 1000 <= 0.97


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
