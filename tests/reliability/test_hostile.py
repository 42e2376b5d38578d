"""A run folder that somebody else made: whatever is in it, the answer is 64 or 65, soon and without much memory."""

import json
import os
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from sac_torchrl.config.layers import read
from sac_torchrl.errors import CheckpointError, ConfigError
from sac_torchrl.runs import snapshot

pytestmark = pytest.mark.timeout(10)
# What a checkpoint of no rows holds.
STATE = {"parts": {"learner": {"weight": torch.zeros(3)}}, "rows": {"write_count": 0, "capacity": 5}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of which a test spoils the newer."""
    (tmp_path / "rows").mkdir()
    for frames in (100, 200):
        snapshot.write(tmp_path / str(frames), STATE, [])
    return tmp_path


def seal(path: Path, name: str, content: bytes) -> None:
    """Put a file into a checkpoint with hashes that say that it belongs there."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_bytes())["manifest"]
    manifest["files"][name] = {"size": len(content), "sha256": sha256(content).hexdigest()}
    sealed = sha256(compact(manifest)).hexdigest()
    (path / "manifest.json").write_bytes(compact({"manifest": manifest, "sha256": sealed}))


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    elsewhere = path.parents[1] / "elsewhere"  # a file more in the checkpoint itself would be refused, too
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put(at: Path, manifest: bytes) -> None:
    (at / "manifest.json").write_bytes(manifest)


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**30)


SPOILED: dict[str, Callable[[Path], None]] = {
    "manifest is a pipe": lambda at: pipe(at / "manifest.json"),
    "state is a pipe": lambda at: pipe(at / "state.json"),
    "tensors are a pipe": lambda at: pipe(at / "state.safetensors"),
    "manifest is a link": lambda at: link(at / "manifest.json"),
    "state is a link": lambda at: link(at / "state.json"),
    "manifest is a folder": lambda at: become_folder(at / "manifest.json"),
    "manifest of a gigabyte": lambda at: sparse(at / "manifest.json"),
    "manifest of empty lists": lambda at: put(at, b"[" + b"[]," * 10_000_000 + b"0]"),
    "manifest is a list": lambda at: put(at, b"[1]"),
    "manifest of 5,000 digits": lambda at: put(at, b"9" * 5000),
    "state is a list": lambda at: seal(at, "state.json", b"[1]"),
    "state is a number": lambda at: seal(at, "state.json", b"7"),
    "state nested 900 deep": lambda at: seal(at, "state.json", b'{"a":' * 900 + b"1" + b"}" * 900),
    "state nested 90,000 deep": lambda at: seal(at, "state.json", b"[" * 90_000 + b"]" * 90_000),
    "state of 5,000 digits": lambda at: seal(at, "state.json", b'{"rows":' + b"9" * 5000 + b"}"),
    "rows that are text": lambda at: seal(at, "state.json", b'{"rows":{"write_count":"a","capacity":[]}}'),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_is_passed_over_soon(folder: Path, how: str) -> None:
    SPOILED[how](folder / "200")
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        snapshot.verify(folder / "200")
    newest = snapshot.newest(folder)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert newest is not None and newest.frames == 100
    assert most < 500e6


def test_what_is_no_checkpoint_is_none(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "300").write_text("a stray file")
    os.mkfifo(folder / "400")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    snapshot.write(elsewhere / "500", STATE, [])
    (folder / "500").symlink_to(elsewhere / "500")
    for name in ("0600", "\u0667", "9" * 200):
        (folder / name).mkdir()
    assert snapshot.frames_in(folder) == [200, 100]
    snapshot.prune(folder, {200: []})
    assert (folder / "300").exists() and (elsewhere / "500" / "manifest.json").exists()


def test_rows_that_are_a_link_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "rows").rename(elsewhere / "rows")
    (folder / "rows").symlink_to(elsewhere / "rows")
    with pytest.raises(CheckpointError, match="rows: is a link"):
        snapshot.verify(folder / "200")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(9 * ['*' + chr(97 + n)])}]\n" for n in range(9)
)


CONFIGURATIONS = {
    "aliases": (BOMB, "has an alias"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, "nested more than 100 deep"),
    "long": ("a: b\n" * 40_000, "has more than 100,000 bytes"),
    "repeated": ("a: b\n" * 3_900, "found duplicate key a"),
    "lists": ("a: [" + "[]," * 33_000 + "]", "has more than 20,000 words"),
    "keys": ("{" + ",".join(f"k{number}: 1" for number in range(9_000)) + "}", "has more than 20,000 words"),
    "indented": ("".join(f"{' ' * depth}k{depth}:\n" for depth in range(400)), "nested too deep"),
    "digits": ("seed: " + "9" * 5000, "cannot be read as YAML"),
    "binary": ("\x00\x01", "cannot be read as YAML"),
    "list": ("- 1", "holds no settings|cannot be read"),
}


@pytest.mark.parametrize(("content", "what"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_a_configuration_that_is_a_bomb_is_refused(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=what):
        read(tmp_path / "config.yaml")


def test_a_configuration_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="not a plain file"):
        read(tmp_path / "config.yaml")
