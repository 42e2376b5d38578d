"""An exported policy acts as the policy does, without this package; one that does not leaves no file."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deploy_worlds
import numpy as np
import pytest
import runs
import torch
from deploy_worlds import VARIANTS
from gymnasium.spaces import Box

import sac_torchrl as sac
from sac_torchrl.agents.heads import PolicyForm
from sac_torchrl.agents.multi_discrete import ActionCritic
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.deploy import export
from sac_torchrl.deploy.export import export_policy, measure
from sac_torchrl.deploy.recorded import environment_of, record_observations
from sac_torchrl.envs.observations import every_leaf
from sac_torchrl.errors import ConfigError, SacError

Save = Callable[..., Path]
DISCRETE = TrainConfig.variants["discrete"]
WORLDS = ["deploy_worlds"]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return partial(deploy_worlds.save_policy, tmp_path)


def recorded(policy: sac.Policy, count: int = 300) -> list[Any]:
    return record_observations(policy, environment_of(policy.saved, WORLDS), count, seed=0)


def bound(policy: sac.Policy, leaves: list[Any]) -> float:
    """The allowed error of surface of actions, derived here again: float32's own against float64."""
    here = acted(policy, leaves)
    torch.set_default_dtype(torch.float64)
    try:
        policy.module.double()
        wide = acted(policy, leaves)
    finally:
        torch.set_default_dtype(torch.float32)
        policy.module.float()
    spaces = [space for _, space in every_leaf(policy.spec.action)]
    errors = [
        np.abs(one.astype(np.float64) - other) / (space.high.astype(np.float64) - space.low)
        for space, one, other in zip(spaces, here, wide, strict=True)
        if isinstance(space, Box)
    ]
    return max(1e-6, *(4 * float(error.max()) for error in errors))


def acted(policy: sac.Policy, leaves: list[Any]) -> list[Any]:
    action = policy.module(*map(torch.from_numpy, leaves))
    return [leaf.detach().numpy() for leaf in ([action] if isinstance(action, torch.Tensor) else action)]


def played(path: Path, leaves: list[Any]) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path))
    return session.run(None, {one.name: leaf for one, leaf in zip(session.get_inputs(), leaves, strict=True)})


CASES = [("sac", "Uneven-v0", False), ("simba", "Leaves-v0", True), ("discrete_sac", "Shifted-v0", False)]
MATRIX = [
    (variant, id, normalize)
    for variant in VARIANTS
    for id in (
        ("Shifted-v0", "ShiftedVector-v0", "TupleOfStates-v0", "CartPole-v1", "FrozenLake-v1", "Taxi-v4")
        if variant in DISCRETE
        else ("Uneven-v0", "UnevenStates-v0", "Leaves-v0", "Pendulum-v1", "Hopper-v5")
    )
    for normalize in (False, True)
    if not (normalize and id in ("UnevenStates-v0", "Shifted-v0", "TupleOfStates-v0", "FrozenLake-v1", "Taxi-v4"))
]


HEADS: list[tuple[str, str, dict[str, Any]]] = [
    ("sac", "Leaves-v0", {"policy": PolicyForm.mixture}),
    ("sac", "Uneven-v0", {"policy": PolicyForm.mixture, "normalize": True}),
    ("sac", "Leaves-v0", {"policy": PolicyForm.flow}),
    ("sac", "Uneven-v0", {"policy": PolicyForm.flow, "normalize": True}),
    ("sac", "Leaves-v0", {"actor_keys": ["place", "pair.0"]}),
    ("discrete_sac", "Buttons3-v0", {}),
    ("discrete_sac", "Grid-v0", {}),
    ("sac", "Matrix-v0", {}),
    ("discrete_sac", "Several-v0", {"critic": ActionCritic.enumerated}),
    ("discrete_sac", "Uneven-v0", {"env": {"bins": 5}}),
    ("sac", "Platform-v0", {"normalize": True}),
    ("sac", "Hybrid-v0", {}),
    ("crossq", "Boxes-v0", {}),
    ("discrete_sac", "Switches-v0", {}),
]


@pytest.mark.parametrize(
    ("variant", "id", "fields"),
    [
        *((variant, id, {"normalize": normalize}) for variant, id, normalize in CASES),
        *(
            pytest.param(variant, id, {"normalize": normalize}, marks=pytest.mark.slow)
            for variant, id, normalize in MATRIX
            if (variant, id, normalize) not in CASES
        ),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in HEADS),
    ],
)
def test_onnx_acts_as_the_policy(variant: str, id: str, fields: dict[str, Any], save: Save, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    policy = sac.Policy.load(save(variant, id, **fields))
    leaves, path = recorded(policy, 1000), tmp_path / "policy.onnx"
    saved = export_policy(policy, path, leaves)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["policy.onnx"]
    for batch in (1, 7, 256):
        inputs = [leaf[:batch] for leaf in leaves]
        spaces = [space for _, space in every_leaf(policy.spec.action)]
        for space, here, there in zip(spaces, acted(policy, inputs), played(path, inputs), strict=True):
            assert there.dtype == space.dtype and there.shape == here.shape
            if isinstance(space, Box):
                width = space.high.astype(np.float64) - space.low
                assert (np.abs(here.astype(np.float64) - there) / width).max() <= bound(policy, leaves)
            else:
                assert np.array_equal(here, there)
    about = {one.key: json.loads(one.value) for one in onnx.load(path).metadata_props}
    assert about["parity"]["observations"] == 1000 and about["parity"]["error"] <= about["parity"]["bound"]
    assert about["env"]["id"] == id and about["frames"] == 12 and "torch" in about["versions"]
    assert about == saved.metadata() == {**policy.saved.metadata(), "parity": about["parity"]}
    weights = sum(part.nbytes for part in policy.actor.state_dict().values())
    assert path.stat().st_size < weights + 150_000, "weights are in it once, and nothing else is large"


def test_torch_export_and_a_folder_act_bit_for_bit(save: Save, tmp_path: Path) -> None:
    policy = sac.Policy.load(save("sac", "Leaves-v0"))
    leaves = recorded(policy)
    for name in ("policy.pt2", "policy"):
        parity = export_policy(policy, tmp_path / name, leaves).parity
        assert parity is not None and (parity["error"], parity["bound"]) == (0.0, 0.0)
    extra = {"metadata.json": ""}
    program: Any = torch.export.load(tmp_path / "policy.pt2", extra_files=extra).module()
    tensors = [torch.from_numpy(leaf) for leaf in leaves]
    assert torch.equal(program(*tensors), policy.module(*tensors))
    again = sac.Policy.load(tmp_path / "policy")
    assert torch.equal(again.module(*tensors), policy.module(*tensors))
    assert json.loads(extra["metadata.json"]) == again.saved.metadata()
    assert again.saved.parity is not None


def test_recorded_observations_are_those_of_the_environment(save: Save) -> None:
    policy = sac.Policy.load(save("sac", "Leaves-v0"))
    leaves = dict(zip([leaf.name for leaf in policy.leaves], recorded(policy, 50), strict=True))
    assert leaves["matrix"].shape == (50, 2, 2) and leaves["matrix"].dtype == np.float32
    assert set(leaves["place"]) == {2, 3, 4, 5}
    assert leaves["pair.0"].shape == (50,) and leaves["pair.0"].dtype == np.float64
    policy = sac.Policy.load(save("sac", "torch/pendulum"))
    pendulum = record_observations(policy, environment_of(policy.saved), 20, seed=0)
    assert pendulum[0].shape == (20, 3)


def test_wrong_actions_leave_no_file(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = sac.Policy.load(save("sac", "Uneven-v0"))
    leaves = recorded(policy)
    program = export._program

    def other(policy: sac.Policy, recorded: Any) -> Any:
        exported = program(policy, recorded)
        name = next(name for name, value in exported.state_dict.items() if value.dim() == 2)
        exported.state_dict[name] = torch.nn.Parameter(exported.state_dict[name] + 0.01)
        return exported

    monkeypatch.setattr(export, "_program", other)
    for name in ("policy.pt2", *(["policy.onnx"] if importlib.util.find_spec("onnxscript") else [])):
        with pytest.raises(SacError, match="no file is left") as raised:
            export_policy(policy, tmp_path / name, leaves)
        assert raised.value.exit_code == 70
    assert [path.name for path in tmp_path.iterdir()] == ["sac-Uneven-v0"]


def test_parity_finds_every_kind_of_wrong_action(save: Save) -> None:
    policy = sac.Policy.load(save("sac", "Uneven-v0"))
    leaves = recorded(policy)

    def act(inputs: Any) -> Any:
        return acted(policy, inputs)[0]

    assert measure(policy, lambda inputs: [act(inputs)], leaves, exact=True).error == 0
    for wrong in (
        lambda inputs: [act(inputs) + np.float32(1e-4)],
        lambda inputs: [act(inputs) * np.float32(math.nan)],
        lambda inputs: [act(inputs).astype(np.float64)],
        lambda inputs: [act(inputs)[:, :1]],
    ):
        with pytest.raises(SacError, match="no file is left"):
            measure(policy, wrong, leaves)
    choices = sac.Policy.load(save("discrete_sac", "Shifted-v0"))
    with pytest.raises(SacError, match="no file is left"):
        measure(choices, lambda inputs: [np.full(len(inputs[0]), 3)], recorded(choices))
    hybrid = sac.Policy.load(save("sac", "Platform-v0"))
    for place, change in ((0, 1), (2, np.float32(1e-2))):
        with pytest.raises(SacError, match="no file is left"):
            measure(hybrid, partial(_changed, hybrid, place, change), recorded(hybrid))


def _changed(policy: sac.Policy, place: int, change: Any, inputs: Any) -> list[Any]:
    return [leaf + (change if number == place else 0) for number, leaf in enumerate(acted(policy, inputs))]


def test_names_that_cannot_be_written_are_refused(save: Save, tmp_path: Path) -> None:
    policy = sac.Policy.load(folder := save("sac", "Uneven-v0"))
    with pytest.raises(ConfigError, match=r"give NAME\.onnx"):
        export_policy(policy, tmp_path / "policy.pkl", recorded(policy))
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "mine").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        export_policy(policy, folder.parent / "other", recorded(policy))


WITHOUT = """
import runpy, sys
for name in ("torch", "sac_torchrl"):
    sys.modules[name] = None
import numpy, onnxruntime
class Recording(onnxruntime.InferenceSession):
    def run(self, names, inputs):
        (actions,) = super().run(names, inputs)
        rows.append((inputs["observation"][0], actions[0]))
        return (actions,)
rows, onnxruntime.InferenceSession = [], Recording
runpy.run_path(sys.argv[1])
numpy.savez("played.npz", *map(numpy.array, zip(*rows)))
"""


def program(page: Path) -> str:
    (block,) = [block for block in page.read_text().split("```python\n") if "onnxruntime.InferenceSession" in block]
    return block.partition("```")[0]


@pytest.mark.parametrize(
    ("recipe", "id", "closeness"),
    [
        ("continuous", "Pendulum-v1", 1e-4),
        pytest.param("discrete", "CartPole-v1", 0, marks=pytest.mark.slow),
        pytest.param("discrete", "FrozenLake-v1", 0, marks=pytest.mark.slow),
        # Its dynamics amplify the last digit of an action: only actions are compared.
        pytest.param("continuous", "HalfCheetah-v5", math.inf, marks=pytest.mark.slow),
    ],
)
def test_the_program_of_the_page_plays_without_torch(recipe: str, id: str, closeness: float, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    short = [*runs.SMALL[:-3], "total_frames=200", "evaluate.every=200", "checkpoint.every=200", "run.folder=run"]
    code, _, errors = runs.command("train", recipe, f"env.id={id}", *short, cwd=tmp_path)
    assert code == 0, errors
    code, out, errors = runs.command("export", "run", "policy.onnx", cwd=tmp_path)
    assert code == 0, errors
    parity = json.loads(out)["parity"]
    assert parity["error"] <= parity["bound"]
    page = Path(sac.__file__).parents[1] / "docs" / "deploy.md"
    (tmp_path / "play.py").write_text(program(page))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "play.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    want = json.loads((tmp_path / "run" / "evaluation.json").read_text())["returns"]
    returns = [float(line) for line in done.stdout.split()]
    assert len(returns) == len(want) == 10
    assert returns == pytest.approx(want, rel=closeness, abs=0)
    with np.load(tmp_path / "played.npz") as played:
        observations, actions = played["arr_0"], played["arr_1"]
    policy = sac.Policy.load(tmp_path / "run")
    here = np.stack([policy(observation) for observation in observations])
    space: Any = policy.spec.action
    width = 1 if recipe == "discrete" else space.high.astype(np.float64) - space.low
    error = float((np.abs(here.astype(np.float64) - actions) / width).max())
    print(f"{id}: {len(actions)} actions, error {error:.2g}, bound {parity['bound']:.2g}; returns {returns}, {want}")
    assert error <= (0 if recipe == "discrete" else parity["bound"])
