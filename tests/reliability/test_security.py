"""Tests 33 to 36: hostile checkpoints and configurations run nothing; secrets stay out of files."""

import ast
import hashlib
import json
import marshal
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from short_runs import configuration
from trial import Trial

import sac_torchrl
from sac_torchrl.cli.main import main
from sac_torchrl.errors import CheckpointError
from sac_torchrl.runs import snapshot
from sac_torchrl.train import train

pytestmark = pytest.mark.timeout(300)
PACKAGE = Path(sac_torchrl.__file__).parent


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "canary-5f1c")
        train(configuration(folder / "run", "Sound-v0", plugins=["faulty"]))
    return folder / "run"


def test_no_secret_of_the_environment_is_in_any_file(trained: Path) -> None:
    files = [path for path in trained.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"canary-5f1c" in path.read_bytes()]
    assert trained.stat().st_mode & 0o077 == 0


def test_code_hidden_in_a_checkpoint_is_not_run(trained: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    loaders: tuple[Callable[[Payload], bytes], ...] = (pickle.dumps, lambda payload: _saved_by_torch(payload, tmp_path))
    for loader in loaders:
        evil = loader(Payload(marker))
        names = [path.relative_to(trained) for path in (trained / "checkpoints").rglob("*.*")]
        extra = [Path("checkpoints/240") / name for name in ("prefetch.pkl", "other.pickle", "state.pt", "rows.npy")]
        for name in [*names, *extra, Path("replay/meta.json"), Path("replay/storage.pkl")]:
            copy = tmp_path / "copy"
            shutil.copytree(trained, copy)
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_bytes(evil)
            for words in (["verify", str(copy)], ["evaluate", str(copy), "--plugin", "faulty"]):
                assert _code(words) == 65 or name.parts[0] == "replay" or words[0] == "evaluate"
            assert not marker.exists(), name
            shutil.rmtree(copy)
    pickle.loads(evil) if loader is pickle.dumps else torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists(), "the payload works"


def _code(words: list[str]) -> object:
    try:
        main(words)
    except SystemExit as end:
        return end.code
    return 0


def _saved_by_torch(payload: Payload, folder: Path) -> bytes:
    torch.save(payload, folder / "evil.pt")
    return (folder / "evil.pt").read_bytes()


def test_saving_and_restoring_unpickle_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("something was unpickled")

    run = Trial(tmp_path)
    run.advance(8)
    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (marshal, "load"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, refuse)
    run.save()
    assert snapshot.verify(run.folder / "8").frames == 8
    assert Trial(tmp_path).checkpoints.restore() == 8


BANNED = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.load",
    "marshal.loads",
    "torch.load",
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "numpy.load",
    "np.load",
    "os.system",
    "instantiate",
    "hydra.utils.instantiate",
}


def test_the_package_calls_nothing_that_runs_what_it_reads() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                loose = [
                    ast.unparse(word)
                    for word in node.keywords
                    if ast.unparse(word) in ("shell=True", "weights_only=False", "allow_pickle=True")
                ]
                if name in BANNED or name.rpartition(".")[2] in {"Unpickler", "unsafe_load", "instantiate"} or loose:
                    found.append(f"{path.name}:{node.lineno} {name} {loose}")
    assert found == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+env._target_=os.system", "_target_"),
        ("+variant._target_=builtins.eval", "_target_"),
        ("+_target_=os.system", "_target_"),
        ("run.folder='${oc.env:HOME}'", "interpolation"),
        ("env.id='${oc.env:WANDB_API_KEY}'", "interpolation"),
    ],
)
def test_a_hostile_configuration_is_refused(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "canary-5f1c")
    monkeypatch.setattr("sys.argv", ["sac-torchrl"])
    with pytest.raises(SystemExit) as end:
        main(["train", "continuous", word])
    assert end.value.code == 64
    error = capsys.readouterr().err
    assert said in error
    assert "canary" not in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_plugins_of_a_saved_run_are_not_imported(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (tmp_path / "trojan.py").write_text("from pathlib import Path\nPath(__file__).with_name('imported').touch()\n")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("- faulty", "- trojan"))
    assert "trojan" in config.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        main(["evaluate", str(copy), "--plugin", "faulty"])
        with pytest.raises(SystemExit) as ended:
            main(["resume", str(copy)])
    assert ended.value.code == 64
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "rows", ['[{"start":"../../x","end":1,"size":1,"sha256":""}]', "[[]]", '[{"start":1e99}]', "{}"]
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, rows: str) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    path = run.save()
    manifest = json.loads((path / "manifest.json").read_bytes())["manifest"]
    manifest["rows"] = json.loads(rows)
    raw = json.dumps(manifest, separators=(",", ":")).encode()
    seal = {"manifest": manifest, "sha256": hashlib.sha256(raw).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(seal, separators=(",", ":")))
    with pytest.raises(CheckpointError):
        snapshot.verify(path)


def test_a_manifest_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    path = run.save()
    (path / "manifest.json").write_bytes(b"[" * 1_000_000)
    with pytest.raises(CheckpointError, match=r"manifest\.json: is not JSON"):
        snapshot.verify(path)
