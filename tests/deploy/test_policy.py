"""A policy acts without its environment exactly as it acted in training."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deploy_worlds
import gymnasium as gym
import numpy as np
import pytest
import runs
import safetensors.torch
import torch
from deploy_worlds import VARIANTS
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

import sac_torchrl as sac
from sac_torchrl.agents.heads import PolicyForm
from sac_torchrl.agents.multi_discrete import ActionCritic
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.deploy.export import export_policy
from sac_torchrl.deploy.recorded import environment_of, record_observations
from sac_torchrl.deploy.saved import SavedPolicy
from sac_torchrl.envs.actions import composed
from sac_torchrl.envs.adapter import SpaceAdapter
from sac_torchrl.envs.observations import every_leaf, leaf_at
from sac_torchrl.envs.vector import as_tensors
from sac_torchrl.errors import CheckpointError, ConfigError

Save = Callable[..., Path]
KINDS = [(name, name != "discrete_sac" and normalize) for name in VARIANTS for normalize in (False, True)]
SHORT = (*runs.SMALL[:-3], "total_frames=200", "evaluate.every=100", "evaluate.episodes=2", "checkpoint.every=100")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return partial(deploy_worlds.save_policy, tmp_path)


def observations(space: Any, count: int) -> list[Any]:
    generator = np.random.default_rng(0)
    return [deploy_worlds.draw(space, generator) for _ in range(count)]


def as_trained(policy: sac.Policy, rows: list[Any], kind: ExplorationType, *, single: bool) -> Any:
    """The way of training: through the adapter's observation, the TensorDict actor and the adapter's action."""
    drift = deploy_worlds.Drift(policy.spec.observation, policy.spec.action)
    adapter = SpaceAdapter(drift, "Drift-v0", ignore=policy.saved.env["ignore"], bins=policy.saved.env["bins"])
    seen = deploy_worlds.stack([adapter._observed(row) for row in rows])
    root = TensorDict(observation=as_tensors(seen), batch_size=[len(rows)])
    with torch.no_grad(), set_exploration_type(kind):
        actions = policy.actor(root[0].clone() if single else root)["action"].numpy()
    return adapter._taken(actions) if single else deploy_worlds.stack([adapter._taken(row) for row in actions])


@pytest.mark.parametrize(("variant", "normalize"), sorted(set(KINDS)))
def test_every_variant_acts_as_in_training_bit_for_bit(variant: str, normalize: bool, save: Save) -> None:
    discrete = variant in TrainConfig.variants["discrete"]
    ids = ("Shifted-v0", "ShiftedVector-v0", "TupleOfStates-v0") if discrete else ("Uneven-v0", "Leaves-v0")
    for id in ids if normalize or discrete else (*ids, "UnevenStates-v0"):
        assert_acts_as_trained(sac.Policy.load(save(variant, id, normalize=normalize)))


@pytest.mark.parametrize(
    ("variant", "id", "fields"),
    [
        ("sac", "Leaves-v0", {"policy": "mixture"}),
        ("sac", "Leaves-v0", {"policy": "flow"}),
        ("sac", "Leaves-v0", {"actor_keys": ["place", "pair.0"]}),
        ("discrete_sac", "Buttons3-v0", {}),
        ("discrete_sac", "Grid-v0", {}),
        ("sac", "Matrix-v0", {}),
        ("discrete_sac", "Several-v0", {"critic": "enumerated"}),
        ("discrete_sac", "Uneven-v0", {"env": {"bins": 5}}),
        ("sac", "Platform-v0", {"env": {"parameters": [[0, 1], [1], [2]]}}),
        ("sac", "Hybrid-v0", {}),
        ("tqc", "Boxes-v0", {}),
        ("discrete_sac", "Switches-v0", {}),
        ("sac", "Told-v0", {"env": {"ignore": ["mission", "pair.0"]}}),
    ],
    ids=[
        "mixture",
        "flow",
        "some leaves",
        "buttons",
        "grid",
        "matrix",
        "several",
        "bins",
        "platform",
        "nested",
        "boxes",
        "switches",
        "text",
    ],
)
def test_every_head_acts_as_in_training_bit_for_bit(variant: str, id: str, fields: dict[str, Any], save: Save) -> None:
    kinds = {"policy": PolicyForm, "critic": ActionCritic}
    chosen = {name: kinds[name](value) if name in kinds else value for name, value in fields.items()}
    assert_acts_as_trained(sac.Policy.load(save(variant, id, **chosen)))


def assert_acts_as_trained(policy: sac.Policy) -> None:
    rows = observations(policy.spec.observation, 256)
    batches = [(rows[:1], True)] * 3 + [(rows[1:2], True), (rows[:1], False), (rows[:7], False), (rows, False)]
    for chosen, single in batches:
        for kind in (ExplorationType.DETERMINISTIC, ExplorationType.RANDOM):
            torch.manual_seed(5)
            want = as_trained(policy, chosen, kind, single=single)
            observation = chosen[0] if single else deploy_worlds.stack(chosen)
            action = policy(observation, deterministic=kind is ExplorationType.DETERMINISTIC, seed=5)
            leaves = list(every_leaf(policy.spec.action))
            for path, space in leaves:
                one, other = leaf_at(action, path), leaf_at(want, path)
                assert np.array_equal(one, other) and one.dtype == space.dtype
            if not single:
                action = composed(policy.spec.action, (leaf_at(action, path)[0, ...] for path, _ in leaves))
            assert policy.spec.action.contains(action)


def test_a_policy_of_some_leaves_needs_no_others(save: Save) -> None:
    policy = sac.Policy.load(save("sac", "Leaves-v0", actor_keys=["place", "pair.0"], normalize=True))
    observation = observations(policy.spec.observation, 1)[0]
    some = {"place": observation["place"], "pair": observation["pair"][:1]}
    assert np.array_equal(policy(some), policy(observation))


def test_torch_comes_in_and_goes_out(save: Save) -> None:
    policy = sac.Policy.load(save("sac", "Uneven-v0"))
    rows = np.array(observations(policy.spec.observation, 4))
    action = policy(torch.from_numpy(rows))
    assert isinstance(action, torch.Tensor) and not action.is_inference()
    assert np.array_equal(action.numpy(), policy(rows))
    assert np.array_equal(policy(torch.from_numpy(rows[0])).numpy(), policy(rows[0].tolist()))


def test_random_actions_come_from_a_generator_of_the_policy(save: Save) -> None:
    policy = sac.Policy.load(save("sac", "Uneven-v0"))
    observation = np.ones(3)
    before = torch.get_rng_state()
    first = [policy(observation, deterministic=False, seed=1), policy(observation, deterministic=False)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = [policy(observation, deterministic=False, seed=1), policy(observation, deterministic=False)]
    assert np.array_equal(first, again) and not np.array_equal(*first)
    assert np.array_equal(policy(observation), policy(observation))
    others = [sac.Policy.load(save("sac", "Uneven-v0"))(observation, deterministic=False) for _ in range(2)]
    assert not np.array_equal(*others)


@pytest.mark.parametrize(
    ("id", "observation", "text"),
    [
        ("Uneven-v0", np.zeros(4), r"\(4,\): give \(3,\), or a batch \('batch', 3\)"),
        ("Uneven-v0", np.zeros((2, 2, 3)), "shape"),
        ("Uneven-v0", np.array([0, np.nan, 1]), "not finite"),
        ("Uneven-v0", np.array([0, 1e39, 1]), "not finite in float32"),
        ("Uneven-v0", np.array(["a", "b", "c"]), "not real numbers"),
        ("UnevenStates-v0", 1, r"observation=1 is not within Discrete\(4, start=2\)"),
        ("UnevenStates-v0", np.array([2, 6]), "not within"),
        ("UnevenStates-v0", 2.0, "not indices"),
        ("Leaves-v0", {"matrix": np.zeros((2, 2))}, "which has no many"),
    ],
)
def test_what_is_no_observation_is_refused(id: str, observation: Any, text: str, save: Save) -> None:
    policy = sac.Policy.load(save("sac", id))
    with pytest.raises((ValueError, TypeError), match=text):
        policy(observation)


def test_large_numbers_are_observations_until_the_network_overflows(save: Save) -> None:
    policy = sac.Policy.load(save("sac", "Uneven-v0"))
    assert np.isfinite(policy(np.full((256, 3), 1e37))).all(), "their sum is infinite in float32"
    with pytest.raises(ValueError, match="no finite action"):
        policy(np.full(3, 3e38))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["env.id=Uneven-v0", "env.plugins=[deploy_worlds]", *SHORT, f"run.folder='{folder}'"]
    code, _, errors = runs.command("train", "continuous", *words, cwd=folder.parent)
    assert code == 0, errors
    return folder


def test_a_run_keeps_its_newest_and_its_best_policy(run: Path) -> None:
    newest, best = (sac.Policy.load(run / "policies" / name) for name in ("newest", "best"))
    last = json.loads((run / "evaluation.json").read_text())
    evaluation = newest.saved.evaluation
    assert evaluation is not None and best.saved.evaluation is not None
    assert newest.saved.frames == last["frames"] == 200
    assert {key: last[key] for key in evaluation} == evaluation
    assert best.saved.evaluation["return_mean"] >= evaluation["return_mean"]
    same = sac.Policy.load(run / "checkpoints" / str(best.saved.frames))
    rows = np.array(observations(best.spec.observation, 9))
    assert np.array_equal(same(rows), best(rows))
    assert np.array_equal(sac.Policy.load(run)(rows), newest(rows))


ACT = """
import json, sys
import gymnasium, numpy, sac_torchrl as sac
policies = [sac.Policy.load(path) for path in sys.argv[1:]]
assert "Uneven-v0" not in gymnasium.registry and "deploy_worlds" not in sys.modules
print(json.dumps([policy(numpy.ones(3)).tolist() for policy in policies]))
"""


def test_a_moved_run_acts_where_its_environment_is_unknown(run: Path, tmp_path: Path) -> None:
    want = sac.Policy.load(run)(np.ones(3)).tolist()
    moved = tmp_path / "else where"
    shutil.copytree(run, moved)
    paths = moved, moved / "checkpoints" / "200", moved / "policies" / "newest"
    done = subprocess.run(
        [sys.executable, "-c", ACT, *map(str, paths)],
        env=os.environ | {"PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [want] * 3


def test_the_policy_of_a_run_is_the_one_that_was_evaluated(run: Path) -> None:
    policy = sac.Policy.load(run)
    evaluation = policy.saved.evaluation
    assert evaluation is not None
    returns = []
    for seed in evaluation["seeds"]:
        env = gym.make("Uneven-v0")
        env.reset(seed=seed)
        observation, _ = env.reset()
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    # Actions of one observation and of two at once differ in their last bits.
    assert returns == pytest.approx(evaluation["returns"], rel=1e-5)


def test_a_resumed_run_keeps_its_best_policy(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    best = sac.Policy.load(folder / "policies" / "best").saved
    assert best.evaluation is not None
    path = folder / "policies" / "best" / "policy.safetensors"
    _edit(path, evaluation={**best.evaluation, "return_mean": 1e9})
    before = path.read_bytes()
    words = [str(folder), "total_frames=300", "env.plugins=[deploy_worlds]"]
    code, _, errors = runs.command("resume", *words, cwd=tmp_path)
    assert code == 0, errors
    assert path.read_bytes() == before
    assert sac.Policy.load(folder).saved.frames == 300


def _edit(path: Path, **changes: Any) -> None:
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = json.loads(metadata["sac_torchrl"]) | changes
    safetensors.torch.save_file(tensors, path, {"sac_torchrl": json.dumps(content)})


def test_damaged_policies_are_named_and_nothing_in_them_runs(save: Save, tmp_path: Path) -> None:
    file = save("sac", "Uneven-v0") / "policy.safetensors"
    sound, marker = file.read_bytes(), tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    for damaged in (pickle.dumps(Payload()), b"", sound[:-1], sound[:100], b"\xff" * 200):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"policy\.safetensors: not a policy"):
            sac.Policy.load(file)
    changed: list[dict[str, Any]] = [
        {"format": 2},
        {"variant": {"name": "other"}},
        {"variant": {"name": "sac", "critics": "many"}},
        {"variant": {"name": "sac", "network": {"hidden": [8]}}},
        {"observation_space": {"type": "Box"}},
        {"observation_space": []},
        {"action_space": {"type": "Other"}},
        {"recipe": "other"},
    ]
    for changes in changed:
        file.write_bytes(sound)
        _edit(file, **changes)
        with pytest.raises(CheckpointError):
            sac.Policy.load(file)
    assert not marker.exists()


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "checkpoints" / "200"):
        with pytest.raises(ConfigError, match="holds no policy: give a run"):
            sac.Policy.load(path)
    (tmp_path / "config.yaml").write_text("recipe: continuous\n")
    with pytest.raises(CheckpointError, match="no policy yet"):
        sac.Policy.load(tmp_path)


@pytest.mark.parametrize("sizes", [[5], [3, 4], [70]], ids=str)
@pytest.mark.parametrize("source", ["info", "observation", "method"])
def test_a_policy_with_masks_chooses_legal_actions(source: str, sizes: list[int], tmp_path: Path) -> None:
    """Without the environment: from the observation, or from the mask beside it."""
    kind = "MaskedMethod-v0" if source == "method" else "Masked-v0"
    env = sac.EnvConfig(kind, plugins=["masked"], kwargs={"source": source, "sizes": sizes})
    config = TrainConfig(variant=sac.DiscreteSAC(), env=env, device="cpu")
    specs = config.specs()
    torch.manual_seed(1)
    actor = config.agent(specs, device=torch.device("cpu")).actor
    policy = sac.Policy.load(SavedPolicy.of(actor, config, specs, frames=1).write(tmp_path).parent)
    assert policy.takes_mask == (source != "observation")
    played = env.open()
    adapted, _ = played.reset(seed=3)
    native: Any = played.unwrapped
    for number in range(8):
        observed = native.seen_last[0]
        mask = {"action_mask": native.legal} if policy.takes_mask else {}
        root = TensorDict(observation=as_tensors({name: leaf[None] for name, leaf in adapted.items()}), batch_size=[1])
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            trained = actor(root)["action"][0].tolist()
        assert np.asarray(policy(observed, **mask)).tolist() == trained
        drawn = policy(observed, deterministic=False, seed=number, **mask)
        adapted = played.step(drawn)[0]
    if policy.takes_mask:
        with pytest.raises(ValueError, match="this policy chooses among legal actions: give action_mask"):
            policy(observed)
        with pytest.raises(ValueError, match="other numbers than 0 and 1"):
            policy(observed, action_mask=np.full(sum(sizes), 2))
    else:
        with pytest.raises(ValueError, match="takes no action_mask"):
            policy(observed, action_mask=native.legal)
    played.close()


@pytest.mark.parametrize("suffix", ["", ".pt2", ".onnx"])
def test_an_export_takes_the_mask(suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    env = sac.EnvConfig("MaskedMethod-v0", plugins=["masked"], kwargs={"source": "method", "sizes": [3, 4]})
    config = TrainConfig(variant=sac.DiscreteSAC(), env=env, device="cpu")
    specs = config.specs()
    actor = config.agent(specs, device=torch.device("cpu")).actor
    policy = sac.Policy.load(SavedPolicy.of(actor, config, specs, frames=1).write(tmp_path).parent)
    recorded = record_observations(policy, environment_of(policy.saved, ["masked"]), 60, seed=0)
    assert recorded[-1].shape == (60, 7)
    saved = export_policy(policy, tmp_path / f"out{suffix}", recorded)
    assert saved.parity is not None
    assert saved.parity["error"] == 0.0
