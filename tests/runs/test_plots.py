from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from sac_torchrl.errors import ConfigError
from sac_torchrl.runs.plots import curve, interval, metric


def run_folder(folder: Path, *, seed: int, evaluations: int = 20) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    lines = ["frames,train/return,eval/return_mean,eval/return_std"]
    for step in range(1, evaluations * 5 + 1):
        frames, mean = 200 * step, -1_200 + 1_050 * (1 - np.exp(-step / 25))
        cells = f"{mean + 80 * rng.standard_normal()},,"
        if step % 5 == 0:
            cells = f"{mean},{mean + 30 * rng.standard_normal()},{90 * np.exp(-step / 60)}"
        lines.append(f"{frames},{cells}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def colors(path: Path) -> set[tuple[int, ...]]:
    pixels = (np.asarray(matplotlib.image.imread(path))[..., :3] * 255).round().astype(int)
    return {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}


def test_one_run_is_a_small_picture_with_its_line(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", seed=0)
    path = curve([folder], tmp_path / "pictures" / "curve.png", title="Pendulum-v1")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < path.stat().st_size < 100_000
    assert (0x1F, 0x5F, 0xA8) in colors(path)


def test_several_runs_are_one_picture(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / str(seed), seed=seed) for seed in range(3)]
    path = curve(folders, tmp_path / "curve.png")
    assert path.stat().st_size < 100_000
    assert (0x1F, 0x5F, 0xA8) in colors(path)
    assert path.read_bytes() != curve(folders[:2], tmp_path / "two.png").read_bytes()


def test_a_run_without_evaluations_shows_its_training(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "metrics.csv").write_text("frames,train/return\n200,-1000.0\n400,-900.0\n")
    path = curve([folder], tmp_path / "curve.png")
    assert (0x1F, 0x5F, 0xA8) not in colors(path)


def test_empty_and_nan_cells_and_a_torn_line_are_no_points(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("frames,a,b\n1,2.0,\n2,,1.0\n3,nan,\n4,5.0,\n4")
    frames, values = metric(tmp_path, "a")
    assert frames.tolist() == [1, 4]
    assert values.tolist() == [2, 5]
    assert metric(tmp_path, "none")[0].shape == (0,)


def test_the_interval_is_students(tmp_path: Path) -> None:
    # Three samples 1, 2, 3: standard error 1 / sqrt(3), t = 4.303 for two degrees of freedom.
    mean, half = interval(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    assert mean.tolist() == [2, 5]
    assert half == pytest.approx([4.303 / np.sqrt(3), 0])
    wide = np.random.default_rng(0).standard_normal((40, 1))
    assert interval(wide)[1] == pytest.approx(1.96 * wide.std(ddof=1) / np.sqrt(40))


def test_folders_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none is not a run folder"):
        curve([tmp_path / "none"], tmp_path / "curve.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.csv").write_text("frames\n")
    with pytest.raises(ConfigError, match="empty has no returns"):
        curve([empty], tmp_path / "curve.png")
    with pytest.raises(ConfigError, match="2 run folders have no evaluation at the same frames"):
        curve([empty, run_folder(tmp_path / "a", seed=0)], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ("env: {id: Pendulum-v1}", "env: {id: Hopper-v5}", "env.id"),
        ("variant: {gamma: 0.99}\nseed: 1", "variant: {gamma: 0.9}\nseed: 2", "variant.gamma"),
        ("n_steps: 1", "n_steps: 3", "n_steps"),
        ("env: {id: A-v0}", "env: {id: A-v0, count: 4}", "env.count"),
    ],
)
def test_runs_of_other_settings_are_not_averaged(tmp_path: Path, one: str, other: str, key: str) -> None:
    folders = [run_folder(tmp_path / str(number), seed=number) for number in range(2)]
    for folder, text in zip(folders, (one, other), strict=True):
        (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"1 is a run with {key}=.* and .*0 one with {key}="):
        curve(folders, tmp_path / "curve.png")
    (folders[1] / "config.yaml").write_text(f"{one}\nrun: {{folder: b}}\ntotal_frames: 7")
    assert curve(folders, tmp_path / "curve.png").is_file()


def test_a_config_of_aliases_is_refused(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / str(number), seed=number) for number in range(2)]
    (folders[1] / "config.yaml").write_text("a: &a {b: 1}\nc: {d: *a, e: *a}")
    with pytest.raises(ConfigError, match="YAML aliases"):
        curve(folders, tmp_path / "curve.png")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_single_evaluation_is_seen(tmp_path: Path, count: int) -> None:
    folders = [tmp_path / str(number) for number in range(count)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "metrics.csv").write_text(f"frames,eval/return_mean,eval/return_std\n200,{-number}.5,1.0\n")
    assert (0x1F, 0x5F, 0xA8) in colors(curve(folders, tmp_path / "curve.png"))


def test_two_runs_have_no_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [run_folder(tmp_path / str(seed), seed=seed) for seed in range(3)]
    bands: list[object] = []
    monkeypatch.setattr("matplotlib.axes.Axes.fill_between", lambda *given, **options: bands.append(given))
    curve(folders[:2], tmp_path / "two.png")
    assert not bands
    curve(folders, tmp_path / "three.png")
    assert len(bands) == 1
