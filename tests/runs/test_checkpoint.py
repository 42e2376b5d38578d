import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.data import Bounded
from trial import CPU, SPECS, Trial, files_of_at_most, flip_bit, kill_at

from sac_torchrl.errors import CheckpointError, DiskError
from sac_torchrl.replay.buffer import ReplayConfig, Storage
from sac_torchrl.runs import checkpoint, snapshot
from sac_torchrl.runs.checkpoint import CheckpointConfig
from sac_torchrl.specs import Specs
from sac_torchrl.trees import Tree, decode, encode


@pytest.mark.parametrize("lost", ["", "rows", "rows/0-4.safetensors"])
def test_checkpoints_that_are_removed_or_shortened_are_repaired_by_the_next_save(
    tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(tmp_path)
    for _ in range(2):
        trial.advance(4)
        trial.save()
    path = trial.folder / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        os.truncate(path, 100)
    trial.advance(1)
    trial.save()
    assert "0-4.safetensors is damaged: it is written again from the replay buffer" in caplog.text
    if lost:
        snapshot.verify(trial.folder / "8")
    again = Trial(tmp_path)
    assert again.checkpoints.restore() == 9
    assert again.everything() == trial.everything()


@pytest.mark.parametrize("storage", [Storage.disk, Storage.ram])
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("place", [0.0, 0.03, 0.5, 0.9, 1.0])
def test_one_flipped_bit_in_rows_that_all_checkpoints_share_is_mended_at_the_next_save(
    tmp_path: Path, storage: Storage, resumed: bool, place: float, caplog: pytest.LogCaptureFixture
) -> None:
    run = Trial(tmp_path, storage=storage, capacity=20)
    for _ in range(3):
        run.advance(4)
        run.save()
    if resumed:
        run = Trial(tmp_path, storage=storage, capacity=20)
        run.checkpoints.restore()
    for name in ("0-4", "4-8"):
        flip_bit(run.folder / "rows" / f"{name}.safetensors", place)
    for frames in (8, 12):
        with pytest.raises(CheckpointError, match=r"0-4\.safetensors: its SHA-256 differs"):
            snapshot.verify(run.folder / str(frames))
    run.advance(1)
    run.save()
    assert caplog.text.count("is damaged: it is written again") == 2
    for frames in (12, 13):
        snapshot.verify(run.folder / str(frames))
    again = Trial(tmp_path, storage=storage, capacity=20)
    assert again.checkpoints.restore() == 13
    assert again.everything() == run.everything()


def test_damaged_rows_that_the_ring_has_partly_overwritten_are_mended_for_the_checkpoints_to_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Trial(tmp_path, capacity=10)
    run.advance(8)
    run.save()
    flip_bit(run.folder / "rows" / "0-8.safetensors", 0.5)
    run.advance(6)
    run.save()
    assert "the buffer holds its rows from 4 on: checkpoints before this one stay damaged" in caplog.text
    with pytest.raises(CheckpointError, match=r"0-8\.safetensors"):
        snapshot.verify(run.folder / "8")
    again = Trial(tmp_path, capacity=10)
    assert again.checkpoints.restore() == 14
    assert again.everything() == run.everything()


def test_rows_that_changed_in_the_buffer_and_in_their_file_are_saved_as_trained_on_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Trial(tmp_path, storage=Storage.disk)
    run.advance(4)
    run.save()
    flip_bit(run.folder / "rows" / "0-4.safetensors", 0.9)
    run.buffer.storage._storage[2, 0] ^= 1
    run.advance(2)
    run.save()
    assert "the buffer's rows 0 to 4 are not those that were saved" in caplog.text
    again = Trial(tmp_path, storage=Storage.disk)
    assert again.checkpoints.restore() == 6
    assert again.everything() == run.everything()


def test_a_save_reads_no_file_of_rows_that_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_TICK", 0)
    run, read = Trial(tmp_path, capacity=100), list[Path]()
    check = snapshot._check

    def counted(path: Path, **known: Any) -> None:
        read.append(path)
        check(path, **known)

    monkeypatch.setattr(snapshot, "_check", counted)
    for _ in range(3):
        run.advance(4)
        run.save()
    assert not read
    run.folder.joinpath("rows", "0-4.safetensors").touch()
    run.advance(1)
    run.save()
    assert [path.name for path in read] == ["0-4.safetensors"]


def test_a_tree_comes_back_exactly(tmp_path: Path) -> None:
    shared = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    tree = {
        "a/b~c": {
            "view": shared.T,
            "shared": shared,
            "twice": shared,
            "scalar": torch.tensor(1.5),
            "none": torch.zeros(0, 3),
        },
        "rng": torch.get_rng_state(),
        "flag": True,
        "one": 1,
        "float": 1.0,
        "third": 0.1 + 0.2,
        "small": 5e-324,
        "big": 2**53 + 1,
        "huge": 10**30,
        "nothing": None,
        "text": 'quote " and ü',
        "empty": {},
        "lists": [[], [1, torch.tensor([True, False])], {"x": torch.tensor(2**53 + 1)}],
    }
    snapshot.write(tmp_path / "7", tree, [])
    back = snapshot.verify(tmp_path / "7").state
    assert repr(encode(back)) == repr(encode(tree))
    assert back["lists"][2]["x"].item() == 2**53 + 1
    assert [type(back[name]) for name in ("flag", "one", "float")] == [bool, int, float]
    assert "/a~1b~0c/view" in encode(tree)[1]


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [({"a": {0: 1}}, "/a: its key 0"), ({"a": {"$tensor": 1}}, "key '.tensor'"), ({"a": [{1}]}, "/a/0: set")],
)
def test_a_leaf_that_would_not_come_back_is_refused_by_name(tree: Tree, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        encode(tree)


def test_a_placeholder_for_a_missing_tensor_is_an_error() -> None:
    with pytest.raises(KeyError):
        decode({"a": {"$tensor": "/a"}}, {})


@pytest.mark.parametrize("storage", [Storage.disk, Storage.ram])
@pytest.mark.parametrize(
    "steps",
    [[3], [10], [7, 4], [4, 4, 4, 4], [3, 25], [25, 9, 13]],
    ids=lambda steps: "+".join(map(str, steps)),
)
def test_a_resumed_run_continues_as_one_that_was_never_stopped(
    tmp_path: Path, storage: Storage, steps: list[int]
) -> None:
    run = Trial(tmp_path, storage=storage)
    for count in steps:
        run.advance(count)
        run.save()
    at_save = run.everything()
    run.advance(5)
    run.save()
    run.advance(2)
    uninterrupted = run.everything()

    shutil.rmtree(run.folder / str(sum(steps) + 5))
    resumed = Trial(tmp_path, storage=storage)
    assert resumed.checkpoints.restore() == sum(steps)
    assert resumed.everything() == at_save
    resumed.advance(5)
    resumed.save()
    again = Trial(tmp_path, storage=storage)
    assert again.checkpoints.restore() == sum(steps) + 5
    again.advance(2)
    assert again.everything() == uninterrupted


def test_nothing_to_restore_is_none_and_leaves_no_folder(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    assert run.checkpoints.restore() is None
    assert not run.folder.exists()


def test_a_save_writes_the_new_rows_only_and_shares_the_rest(tmp_path: Path) -> None:
    run = Trial(tmp_path, capacity=10_000, keep=3)
    sizes: list[int] = []
    kept: dict[Path, os.stat_result] = {}
    for count in (4_000, 400, 40):
        run.collect(count)
        run.save()
        segments = {file: file.stat() for file in (run.folder / "rows").iterdir()}
        (new,) = segments.keys() - kept.keys()
        sizes.append(segments[new].st_size)
        assert all(segments[file].st_mtime_ns == before.st_mtime_ns for file, before in kept.items())
        kept = segments
    row = (sizes[0] - sizes[1]) / 3_600
    assert row == pytest.approx(37, abs=0.1)
    assert sizes[2] < 40 * 37 + 1_000
    assert sorted(file.name for file in kept) == [
        "0-4000.safetensors",
        "4000-4400.safetensors",
        "4400-4440.safetensors",
    ]


def test_a_resumed_run_saves_its_new_rows_only(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.collect(4)
    run.save()
    resumed = Trial(tmp_path)
    resumed.checkpoints.restore()
    resumed.collect(2)
    resumed.save()
    assert snapshot.frames_in(run.folder) == [6, 4], "the one that it went on from stays, too"
    resumed.collect(25)  # more than the ring holds: the first fifteen are overwritten already
    resumed.save()
    names = [file.name.split(".")[0] for file in (run.folder / "rows").iterdir()]
    assert sorted(names) == ["0-4", "21-31", "4-6"]


@pytest.mark.parametrize(
    ("name", "saved", "said"),
    [("numpy", "1.2.3", "numpy 1.2.3"), ("gymnasium", "0.1", "gymnasium 0.1"), ("threads", "64", "threads 64")],
)
def test_a_resume_under_other_versions_or_threads_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, saved: str, said: str
) -> None:
    run, here = Trial(tmp_path), snapshot.versions()
    assert {"numpy", "gymnasium", "mujoco", "torch", "python", "threads"} <= here.keys()
    run.collect(4)
    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "versions", lambda: here | {name: saved})
        run.save()
    Trial(tmp_path).checkpoints.restore()
    assert f"resuming is not exact: it was saved with {said} ({here[name]} here)" in caplog.text
    caplog.clear()
    run.collect(1)
    run.save()
    Trial(tmp_path).checkpoints.restore()
    assert "not exact" not in caplog.text


def test_long_stretches_of_rows_are_split_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SEGMENT_BYTES", 37 * 4)
    run = Trial(tmp_path)
    run.advance(10)
    run.save()
    assert sorted(file.name for file in (run.folder / "rows").iterdir()) == [
        "0-4.safetensors",
        "4-8.safetensors",
        "8-10.safetensors",
    ]
    resumed = Trial(tmp_path)
    resumed.checkpoints.restore()
    assert resumed.everything() == run.everything()


def test_old_checkpoints_and_rows_no_checkpoint_needs_are_removed(tmp_path: Path) -> None:
    run = Trial(tmp_path, capacity=10, keep=2)
    for _ in range(6):
        run.advance(4)
        run.save()
    # The ring holds rows 14 to 24 at the last save and 10 to 20 at the one before.
    assert {path.name for path in run.folder.iterdir()} == {"20", "24", "rows"}
    assert {path.name for path in (run.folder / "rows").iterdir()} == {
        f"{start}-{start + 4}.safetensors" for start in (8, 12, 16, 20)
    }
    assert {path.suffix for path in run.folder.rglob("*.*")} == {".safetensors", ".json"}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def link(file: Path) -> None:
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


DAMAGES = [
    partial(flip_bit, place=0.0),
    partial(flip_bit, place=0.5),
    partial(flip_bit, place=1.0),
    truncate,
    lengthen,
    link,
    Path.unlink,
    lambda file: file.write_bytes(b""),
]
NAMES = ["first bit", "middle bit", "last bit", "half", "longer", "link", "gone", "empty"]


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
@pytest.mark.parametrize("file", ["8/state.safetensors", "8/state.json", "8/manifest.json", "rows/4-8.safetensors"])
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], None]
) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    at_four = run.everything()
    run.advance(4)
    run.save()
    damage(run.folder / file)
    resumed = Trial(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert resumed.checkpoints.restore() == 4
    assert Path(file).parts[-1].split(".")[0] in caplog.text or "belong" in caplog.text
    if damage in (truncate, lengthen) and not file.endswith("manifest.json"):
        assert re.search(r"has \d+ of \d+ bytes", caplog.text), "found before it is read"
    assert resumed.everything() == at_four
    resumed.advance(4)
    assert resumed.save() == run.folder / "8"
    assert snapshot.verify(run.folder / "8").frames == 8
    assert resumed.everything() == run.everything()


def test_without_an_intact_checkpoint_restoring_fails_and_changes_nothing(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    for _ in range(2):
        run.advance(4)
        run.save()
    flip_bit(run.folder / "rows" / "0-4.safetensors", 0.5)
    fresh = Trial(tmp_path)
    fresh.advance(3)
    before = fresh.everything()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .*0-4.safetensors: its SHA-256") as failure:
        fresh.checkpoints.restore()
    assert "\n" not in str(failure.value)
    assert fresh.everything() == before


def test_a_checkpoint_under_another_name_or_of_another_format_is_not_taken(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    path = run.save()
    path.rename(run.folder / "9")
    with pytest.raises(CheckpointError, match="is the checkpoint at 4 frames"):
        snapshot.verify(run.folder / "9")
    (run.folder / "9").rename(path)
    (path / "prefetch.pkl").touch()
    with pytest.raises(CheckpointError, match=r"prefetch.pkl: does not belong"):
        snapshot.verify(path)
    (path / "prefetch.pkl").unlink()
    seal = json.loads((path / "manifest.json").read_bytes())
    reseal(path, seal["manifest"] | {"format": snapshot.FORMAT + 1})
    with pytest.raises(CheckpointError, match=rf"has format {snapshot.FORMAT + 1}, this version reads"):
        snapshot.verify(path)
    seal["manifest"]["frames"] = 5
    (path / "manifest.json").write_text(json.dumps(seal, separators=(",", ":")))
    with pytest.raises(CheckpointError, match=r"manifest.json: its SHA-256"):
        snapshot.verify(path)


def reseal(path: Path, manifest: dict[str, Any]) -> None:
    """Give a checkpoint another manifest, with the hash that belongs to it."""
    text = json.dumps(manifest, separators=(",", ":"))
    seal = {"manifest": manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(seal, separators=(",", ":")))


@dataclass(frozen=True)
class Constant:
    value: int

    def state_dict(self) -> Tree:
        return {"value": self.value}

    def load_state_dict(self, state: Tree) -> None:
        if state["value"] != self.value:
            raise ValueError(f"no such value:\n\t{state['value']}")


def test_a_part_that_refuses_its_state_leaves_all_parts_as_they_were(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.checkpoints = CheckpointConfig().build(run.folder, run.buffer, fitted=run.fitted, constant=Constant(1))
    run.advance(4)
    run.save()
    fresh = Trial(tmp_path)
    fresh.advance(3)
    before = fresh.everything()
    loading = CheckpointConfig().build(fresh.folder, fresh.buffer, fitted=fresh.fitted, constant=Constant(2))
    with pytest.raises(CheckpointError, match=r"'constant' of the checkpoint at 4 frames .*: no such value: 1"):
        loading.restore()
    assert fresh.everything() == before
    with pytest.raises(CheckpointError, match=r"holds \['constant', 'fitted'\] and this run has \['fitted'\]"):
        fresh.checkpoints.restore()
    assert fresh.everything() == before


def test_networks_of_another_size_are_refused_and_stay_as_they_were(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    wider = Trial(tmp_path, width=5)
    before = wider.everything()
    with pytest.raises(CheckpointError, match=r"'fitted' .* size mismatch for weight"):
        wider.checkpoints.restore()
    assert wider.everything() == before


def test_rows_of_another_environment_are_refused(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    specs = Specs(SPECS.observation, Bounded(-1, 1, shape=torch.Size([1])))
    buffer = ReplayConfig(10, Storage.ram).build(tmp_path, specs, rows=10, batch_size=4, seed=0, device=CPU)
    before = run.everything()
    with pytest.raises(CheckpointError, match=r"column 'action' .* is torch.float32 \(2,\) and this run's .* \(1,\)"):
        CheckpointConfig().build(run.folder, buffer, fitted=run.fitted).restore()
    assert run.everything() == before
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("saved", "now", "written", "fits"),
    [(10, 20, 10, True), (10, 20, 11, False), (20, 10, 10, True), (20, 10, 11, False), (10, 10, 25, True)],
)
def test_a_ring_of_another_size_takes_over_only_what_it_can_continue(
    tmp_path: Path, saved: int, now: int, written: int, fits: bool
) -> None:
    run = Trial(tmp_path, capacity=saved)
    run.collect(written)
    run.save()
    resumed = Trial(tmp_path, capacity=now)
    if not fits:
        with pytest.raises(CheckpointError, match=f"ring of {saved} .* one of {now}: .*capacity={saved}"):
            resumed.checkpoints.restore()
        assert (len(resumed.buffer), resumed.buffer.write_count) == (0, 0)
        return
    resumed.checkpoints.restore()
    resumed.collect(3)
    held = resumed.buffer.storage[:]["observation"][:, 0].tolist()
    assert sorted(held) == list(range(max(0, written + 3 - now), written + 3))
    assert all(row % now == position for position, row in enumerate(held))


def test_a_new_run_does_not_write_into_the_checkpoints_of_another(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    files = {file: file.read_bytes() for file in run.folder.rglob("*.*")}
    other = Trial(tmp_path)
    other.advance(6)
    with pytest.raises(CheckpointError, match="another run"):
        other.save()
    assert {file: file.read_bytes() for file in run.folder.rglob("*.*")} == files


def test_saving_twice_at_the_same_frames_writes_once(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    path = run.save()
    before = (path / "manifest.json").stat().st_mtime_ns
    assert run.save() == path
    assert (path / "manifest.json").stat().st_mtime_ns == before


def test_a_buffer_written_out_of_order_is_not_saved(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    run.buffer.empty()
    with pytest.raises(ValueError, match="emptied or written out of order"):
        run.checkpoints.save(5)


def test_a_save_that_fails_leaves_the_last_one_and_no_debris(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    files = {file: file.read_bytes() for file in run.folder.rglob("*.*")}
    run.advance(4)
    with (
        files_of_at_most(1_000),
        pytest.raises(DiskError, match=r"cannot save the checkpoint .*checkpoints/8: File too large"),
    ):  # the rows fit, the state does not
        run.save()
    left = {file: file.read_bytes() for file in run.folder.rglob("*.*")}
    assert left.keys() - files.keys() == {run.folder / "rows" / "4-8.safetensors"}
    assert files.items() <= left.items()
    run.save()
    resumed = Trial(tmp_path)
    assert resumed.checkpoints.restore() == 8
    assert resumed.everything() == run.everything()


def test_replay_rows_that_may_not_be_as_large_are_refused(tmp_path: Path) -> None:
    with files_of_at_most(100), pytest.raises(DiskError, match=r"cannot make the replay rows in .*File too large"):
        Trial(tmp_path, storage=Storage.disk)


def test_rows_that_cannot_be_written_leave_no_half_file(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    files = {file: file.read_bytes() for file in run.folder.rglob("*.*")}
    run.advance(4)
    with files_of_at_most(100), pytest.raises(DiskError, match="File too large"):
        run.save()
    assert {file: file.read_bytes() for file in run.folder.rglob("*.*")} == files


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_save_survives_the_failure_of_any_system_call(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for call in range(1, 1_000):
        run = Trial(tmp_path / str(call), capacity=6)
        for _ in range(3):
            run.advance(4)
            run.save()
        run.advance(4)
        said = ""
        with monkeypatch.context() as failing:
            left = fail_at(call, error, below=run.folder, patch=failing)
            try:
                run.save()
            except DiskError as failure:
                said = str(failure)
        if left():
            break
        for frames in snapshot.frames_in(run.folder):
            snapshot.verify(run.folder / str(frames))
        at = Trial(tmp_path / str(call), capacity=6).checkpoints.restore()
        assert at == 16 or (at == 12 and os.strerror(error) in said and "\n" not in said)
        outcomes.append((said == "", at))
        run.advance(1)
        run.save()
        assert not [path for path in run.folder.rglob("*") if path.name.startswith(".")]
        again = Trial(tmp_path / str(call), capacity=6)
        assert again.checkpoints.restore() == 17
        assert again.everything() == run.everything()
    assert call > 20
    assert set(outcomes) >= {(False, 12), (False, 16)}


def fail_at(call: int, error: int, *, below: Path, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Have one call of the system fail, once; tells how many more there would have to be for it to be reached."""
    remaining = call

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any, **options: Any) -> Any:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                raise OSError(error, os.strerror(error), str(below))
            return function(*arguments, **options)

        return once

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "open"):
        patch.setattr(os, name, failing(getattr(os, name)))
    patch.setattr(io, "open", failing(io.open))
    return lambda: max(0, remaining)


def test_a_part_that_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    class Broken(Constant):
        def state_dict(self) -> Tree:
            raise ArithmeticError("not finite")

    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    files = {file: file.read_bytes() for file in run.folder.rglob("*.*")}
    run.advance(4)
    run.checkpoints._parts["broken"] = Broken(1)
    with pytest.raises(ArithmeticError):
        run.save()
    assert {file: file.read_bytes() for file in run.folder.rglob("*.*")} == files


def test_a_manifest_without_all_rows_is_refused(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    for _ in range(2):
        run.advance(4)
        path = run.save()
    manifest = json.loads((path / "manifest.json").read_bytes())["manifest"]
    cuts: list[Any] = [[], manifest["rows"][:1], manifest["rows"][1:], manifest["rows"][::-1]]
    for kept in cuts:
        reseal(path, manifest | {"rows": kept})
        with pytest.raises(CheckpointError, match="segments do not hold the rows 0 to 8"):
            snapshot.verify(path)
    (run.folder / "rows" / "0-4.safetensors").rename(run.folder / "rows" / "-4-4.safetensors")
    reseal(path, manifest | {"rows": [manifest["rows"][0] | {"start": -4}, manifest["rows"][1]]})
    with pytest.raises(CheckpointError, match="holds rows: -4 to 4 are none"):
        snapshot.verify(path)


def walk(folder: Path) -> None:
    """Save from processes that kill themselves at their first, second, ... file-system event.

    One process per event is forked from this one, so that torch is imported once.
    """
    torch.set_num_threads(1)
    run = Trial(folder / "0", capacity=6)
    for _ in range(3):
        run.collect(4)
        run.save()
    for event in range(1, 1_000):
        shutil.copytree(folder / "0", folder / str(event))
        run = Trial(folder / str(event), capacity=6)
        run.checkpoints.restore()
        child = os.fork()
        if child == 0:
            kill_at(event, below=run.folder)
            run.collect(4)
            run.save()
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return
    raise RuntimeError("a save never finished")


def test_a_process_killed_at_any_moment_of_a_save_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, __file__, tmp_path], env=environment, check=True, timeout=600)
    outcomes = []
    for event in sorted(int(path.name) for path in tmp_path.iterdir())[1:]:
        for left in snapshot.frames_in(tmp_path / str(event) / "checkpoints"):
            snapshot.verify(tmp_path / str(event) / "checkpoints" / str(left))
        run = Trial(tmp_path / str(event), capacity=6)
        frames = run.checkpoints.restore()
        assert frames is not None
        outcomes.append(frames)
        assert not [path.name for path in run.folder.rglob(".*")], "also where nothing is saved any more"
        held = run.buffer.storage[:]["next", "reward"][:, 0].tolist()
        assert sorted(held) == list(range(frames - 6, frames))
        run.collect(20 - frames)
        run.save()
        resumed = Trial(tmp_path / str(event), capacity=6)
        assert resumed.checkpoints.restore() == 20
        assert resumed.everything() == run.everything()
    # Old until the rename, new from then on, through the removal of a checkpoint and a segment.
    assert outcomes == sorted(outcomes)
    assert outcomes.count(12) >= 15
    assert outcomes.count(16) >= 10
    assert set(outcomes) == {12, 16}


if __name__ == "__main__":
    walk(Path(sys.argv[1]))
