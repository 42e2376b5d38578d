import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import pytest
from omegaconf import OmegaConf

import sac_torchrl
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.losses import CriticReduction
from sac_torchrl.agents.networks import Init, NetworkConfig
from sac_torchrl.agents.redq import REDQ
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.sac_v1 import SACv1
from sac_torchrl.cli.launch import launch
from sac_torchrl.config.command_line import assignment
from sac_torchrl.config.files import as_yaml, check_folder, load, open_run
from sac_torchrl.config.layers import SHIPPED, read
from sac_torchrl.config.recipes import configure, recipe_in
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.config.typed import typed
from sac_torchrl.errors import ConfigError
from sac_torchrl.learner.capture import Execution
from sac_torchrl.replay.buffer import Storage
from sac_torchrl.runs.folder import RunConfig

ROOT = Path(sac_torchrl.__file__).parents[1]
PRESETS = sorted(path.stem for path in (SHIPPED / "presets").glob("*.yaml"))
TASKS = [
    name
    for name in PRESETS
    if any(setting.key == "env.id" for setting in read(SHIPPED / "presets" / f"{name}.yaml").settings)
]
RECIPES = {name: recipe_in(SHIPPED / f"{name}.py") for name in ("continuous", "discrete")}
CONTINUOUS, DISCRETE = RECIPES.values()


class Outcome:
    """What a command line led to: what `main` received, the exit code and the error line."""

    def __init__(self) -> None:
        self.configs: list[TrainConfig] = []
        self.code: int | str | None = 0
        self.line = ""

    @property
    def config(self) -> TrainConfig:
        assert self.line == ""
        (config,) = self.configs
        return config


Recipe = Callable[..., Outcome]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Recipe:
    """Launch a recipe, with or without its run folder, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, base: TrainConfig = CONTINUOUS, opened: bool = False) -> Outcome:
        outcome = Outcome()

        def main(config: TrainConfig) -> None:
            if opened:
                with open_run(config):
                    pass
            outcome.configs.append(config)

        monkeypatch.setattr(sys, "argv", [str(tmp_path / "recipe.py"), *words])
        capsys.readouterr()
        try:
            launch(base, main)
        except SystemExit as end:
            outcome.code = end.code
        outcome.line = "".join(
            line for line in capsys.readouterr().err.splitlines(keepends=True) if line.startswith("error: ")
        )
        return outcome

    return run


def test_without_a_word_the_defaults_are_used_and_nothing_is_written(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe().config == CONTINUOUS == TrainConfig()
    assert recipe(base=DISCRETE).config == DISCRETE
    assert list(tmp_path.iterdir()) == []


def test_values_reach_their_plans_with_their_types(recipe: Recipe) -> None:
    config = recipe(
        "variant.gamma=1",
        "variant.network.hidden=[32,16]",
        "learner.execution=eager",
        "replay.storage=ram",
        "env.id='a=b, c'",
        "replay_ratio=0.25",
        "total_frames=10_000",
    ).config
    assert isinstance(config.variant, SAC)
    assert config.variant.gamma == 1.0
    assert config.variant.network.hidden == [32, 16]
    assert config.learner.execution is Execution.eager
    assert config.replay.storage is Storage.ram
    assert config.env.id == "a=b, c"
    assert config.replay_ratio == 0.25


def test_the_settings_that_go_with_a_variant_give_way_to_all_others(recipe: Recipe) -> None:
    config = recipe("variant=redq", "preset=halfcheetah").config
    assert isinstance(config.variant, REDQ)
    assert (config.env.id, config.random_frames) == ("HalfCheetah-v5", 10_000)
    assert (config.replay_ratio, config.learner.actor_every, config.learner.lr) == (20, 20, 3e-4)
    config = recipe("preset=redq", "env.id=HalfCheetah-v5", "replay_ratio=5").config
    assert isinstance(config.variant, REDQ)
    assert (config.env.id, config.random_frames) == ("HalfCheetah-v5", 5_000)
    assert (config.replay_ratio, config.learner.actor_every) == (5, 20)
    config = recipe("preset=redq", "variant=sac").config
    assert (config.replay_ratio, config.learner.actor_every) == (1, 1)
    with_run = ["variant=droq", "run.folder=made", "total_frames=2000"]
    recipe(*with_run, "learner.actor_every=3", opened=True)
    config = recipe("run.folder=made").config
    assert (config.replay_ratio, config.learner.actor_every) == (20, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env.idd=x"], "unknown key env.idd: did you mean env.id?"),
        (["lr=1"], "unknown key lr: did you mean learner.lr?"),
        (["evalute.every=3"], "did you mean evaluate.every"),
        (["+seeed=3"], "unknown key seeed: did you mean seed?"),
        (["++variant.gama=3"], "did you mean variant.gamma"),
        (["~seed"], "~seed: a key cannot be removed"),
        (["normalise=true"], "normalise is called normalize now"),
        (["replay.prioritised=true"], "replay.prioritised is called replay.prioritized now"),
        (["variant=discrete_sac"], "variant=discrete_sac is for recipes/discrete.py; this is continuous"),
        (["preset=halfcheeta"], "preset=halfcheeta is unknown: did you mean halfcheetah?"),
        (["preset=cartpole"], "preset=cartpole is for recipes/discrete.py"),
        (["preset=[hopper,sd_sac]"], "preset=sd_sac is for recipes/discrete.py"),
        (["preset=[hopper,spinupp]"], "preset=spinupp is unknown: did you mean spinup?"),
        (["variant=sacc"], "variant=sacc is unknown: did you mean sac?"),
        (["variant={gama:1}"], "unknown key variant.gama: did you mean variant.gamma?"),
        (["collector=direkt"], "collector=direkt is unknown: did you mean direct?"),
        (["seed=abc"], "seed=abc: Value 'abc' of type 'str' could not be converted to Integer."),
        (["learner.execution=fast"], "learner.execution=fast: Invalid value 'fast', expected one of [eager"),
        (["env=Hopper-v5"], "env=Hopper-v5: env is a group of keys; set env.id"),
        (["variant.network.hidden=64"], "variant.network.hidden=64: "),
        (["seed=1,2"], "seed=1,2 gives several values: add -m"),
        (["seed"], "seed: give KEY=VALUE"),
        (["env.id=a,b'"], "env.id=a,b': quote what is special"),
        (["env.id=${oc.env:HOME}"], "env.id holds an interpolation"),
        (["env.plugins=['${oc.env:HOME}']"], "env.plugins holds an interpolation"),
        (["+env._target_=os.system"], "unknown key env._target_"),
        (["device=gpu"], "device=gpu: give auto, cpu, cuda or cuda:N."),
        (["-m", "seed=1,x"], "seed=x: Value 'x'"),
        (["preset=hopper,ante", "-m"], "preset=ante is unknown: did you mean ant?"),
        (["-m", "env.id=Pendulum-v1,Pendulam-v1"], "env.id=Pendulam-v1: env.id=Pendulam-v1"),
        (["-m", "env.id=Pendulum-v1,CartPole-v1"], "`sac-torchrl train discrete` trains in it"),
        (["-m", "seed=interval(0,1)"], "give values as in seed=A,B"),
        (["--mulitrun"], "--mulitrun: did you mean --multirun?"),
    ],
)
def test_a_mistake_is_one_line_before_main_is_called(recipe: Recipe, words: list[str], said: str) -> None:
    outcome = recipe(*words)
    assert outcome.code == 64
    assert outcome.configs == []
    assert outcome.line.startswith("error: ")
    assert outcome.line.count("\n") == 1
    assert said in outcome.line


def test_all_mistakes_are_in_one_message(recipe: Recipe, tmp_path: Path) -> None:
    line = recipe(
        "sed=1",
        "env.count=half",
        "variant.gamma=2",
        "learner.lr=nan",
        "replay_ratio=0",
        "batch_size=512",
        "total_frames=100",
        "random_frames=200",
        "learning_starts=101",
        "update_every=0",
        "seed=-1",
        "log_every=0",
    ).line
    for said in (
        "unknown key sed",
        "env.count=half",
        "variant.gamma=2.0",
        "learner.lr is not a number",
        "replay_ratio=0.0",
        "batch_size=512: give 1 to 100",
        "random_frames=200: give 0 to 100",
        "learning_starts=101: give 0 to 100",
        "update_every=0",
        "seed=-1",
        "log_every=0",
    ):
        assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "expected"), [(None, 1_000), (0, 0), (700, 700)])
def test_updates_begin_after_the_random_frames_or_where_asked(given: int | None, expected: int) -> None:
    assert TrainConfig(learning_starts=given).updates_after == expected


@pytest.mark.parametrize("name", TASKS)
def test_presets_of_tasks_are_short_and_only_say_what_differs(name: str) -> None:
    path = SHIPPED / "presets" / f"{name}.yaml"
    layer = read(path)
    assert layer.names == {}
    assert layer.head is not None
    default = RECIPES[layer.head]
    config = configure(layer.head, preset=name)
    assert len(path.read_text().splitlines()) <= 10
    assert (config.variant, config.learner) == (default.variant, default.learner)
    assert (config.batch_size, config.replay_ratio) == (default.batch_size, default.replay_ratio)
    assert config.env.id in gym.registry or config.env.id.startswith("dmc/")
    for setting in layer.settings:
        assert setting.key == "env.id" or getattr(default, setting.key, None) != setting.value


def test_fastsac_updates_as_often_whatever_is_simulated(recipe: Recipe) -> None:
    config = recipe("preset=fastsac").config
    assert config.replay_ratio * config.env.count == 8
    assert config.replay.capacity == 1024 * config.env.count
    assert (config.learner.actor_every, config.batch_size, config.normalize) == (4, 8192, True)


def test_keys_on_the_command_line_win_over_a_preset(recipe: Recipe) -> None:
    config = recipe("total_frames=50_000", "preset=halfcheetah").config
    assert config.env.id == "HalfCheetah-v5"
    assert config.total_frames == 50_000
    config = recipe("preset=acrobot", base=DISCRETE).config
    assert config.env.id == "Acrobot-v1"
    assert isinstance(config.variant, DiscreteSAC)


def test_a_system_is_combined_with_a_task_and_later_presets_win(recipe: Recipe) -> None:
    config = recipe("preset=spinup", "env.id=HalfCheetah-v5").config
    assert (config.env.id, config.batch_size, config.total_frames) == ("HalfCheetah-v5", 100, 400_000)
    for words, total in ((["preset=[halfcheetah,spinup]"], 400_000), (["preset=[spinup,halfcheetah]"], 1_000_000)):
        config = recipe(*words).config
        assert (config.env.id, config.batch_size, config.total_frames) == ("HalfCheetah-v5", 100, total)
    config = recipe("preset=[haarnoja2018a,humanoid]", "variant.reward_scale=20").config
    assert config.variant == SACv1(
        NetworkConfig(init=Init.xavier_uniform), reward_scale=20.0, actor_q=CriticReduction.first
    )


COMMANDS = [
    line
    for page in [
        ROOT / "docs" / "presets.md",
        ROOT / "docs" / "results.md",
        *sorted((ROOT / "docs" / "variants").glob("*.md")),
    ]
    for line in page.read_text().replace("\\\n", " ").splitlines()
    if line.startswith("python recipes/")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_on_a_page_about_presets_and_variants_is_understood(recipe: Recipe, line: str) -> None:
    _, script, *words = shlex.split(line)
    outcome = recipe(*words, base=RECIPES[Path(script).stem])
    assert outcome.line == ""
    assert {config.head for config in outcome.configs} == {Path(script).stem}


def test_every_system_is_on_the_page_about_presets() -> None:
    page = (ROOT / "docs" / "presets.md").read_text()
    assert [name for name in PRESETS if name not in TASKS and f"`{name}`" not in page] == []


@dataclass
class Calm(SAC):
    """A variant of this test, with a field of its own."""

    calm: float = 1.0


@dataclass
class Family(TrainConfig):
    variants = {"continuous": {"sac": SAC, "calm": Calm}}  # noqa: RUF012


def test_a_variant_is_chosen_by_name_and_by_the_presets_beside_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "short.yaml").write_text("recipe: continuous\nvariant: calm\n")
    (presets / "other.yaml").write_text("recipe: continuous\nvariant: sac\n")
    (presets / "long.yaml").write_text("recipe: continuous\nvariant:\n  name: calm\n  calm: 0.5\n  tau: 0.1\n")
    assert recipe("variant=calm", "variant.calm=2", base=Family()).config.variant == Calm(calm=2.0)
    assert recipe("preset=short", base=Family()).config.variant == Calm()
    assert recipe("preset=long", base=Family()).config.variant == Calm(calm=0.5, tau=0.1)
    assert recipe("preset=long", "variant.tau=0.2", base=Family()).config.variant == Calm(calm=0.5, tau=0.2)
    assert recipe("preset=short", "variant=sac", base=Family()).config.variant == SAC()
    assert recipe("preset=[long,short]", base=Family()).config.variant == Calm(calm=0.5, tau=0.1)
    assert "unknown key variant.calm" in recipe("variant.calm=2", base=Family()).line
    line = recipe("preset=[long,other]", base=Family()).line
    assert "long variant=calm and other variant=sac exclude one another" in line


@pytest.mark.parametrize("text", ["seeed: 1\n", "recipe: other\n", "- a\n", "recipe: [\n", "normalise: true\n"])
def test_a_broken_preset_is_named(recipe: Recipe, tmp_path: Path, text: str) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "broken.yaml").write_text(text)
    outcome = recipe("preset=broken")
    assert outcome.code == 64
    assert "broken.yaml" in outcome.line


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    outcome = recipe("-m", "seed=0,1", "preset=hopper,ant", opened=True)
    assert [(config.seed, config.env.id) for config in outcome.configs] == [
        (0, "Hopper-v5"),
        (0, "Ant-v5"),
        (1, "Hopper-v5"),
        (1, "Ant-v5"),
    ]
    (parent,) = (tmp_path / "runs").iterdir()
    assert parent.name.startswith("Hopper-v5-sac-")
    names = sorted(path.name for path in parent.iterdir())
    assert names == ["seed=0_preset=ant", "seed=0_preset=hopper", "seed=1_preset=ant", "seed=1_preset=hopper"]


def test_a_run_is_resumed_with_its_own_values_and_may_go_on_for_longer(recipe: Recipe) -> None:
    first = recipe("run.folder='a run'", "batch_size=64", "preset=hopper", "variant.tau=0.1", opened=True).config
    again = recipe("run.folder='a run'", opened=True).config
    assert again == first
    assert again.env.id == "Hopper-v5"
    longer = [
        "total_frames=2_000_000",
        "evaluate.episodes=3",
        "checkpoint.every=7",
        "log_every=9",
        "device=cpu",
    ]
    assert recipe("run.folder='a run'", *longer, opened=True).config.total_frames == 2_000_000
    assert recipe("run.folder='a run'", opened=True).config.total_frames == 2_000_000


def test_a_run_is_not_resumed_with_other_values(recipe: Recipe, tmp_path: Path) -> None:
    recipe("run.folder=one", "batch_size=64", opened=True)
    before = {path: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    line = recipe("run.folder=one", "batch_size=32", "preset=ant", opened=True).line
    assert "batch_size was 64 and is 32" in line
    assert "env.id was Pendulum-v1 and is Ant-v5" in line
    assert "total_frames" not in line
    line = recipe("run.folder=one", base=DISCRETE, opened=True).line
    assert "one holds a run of recipes/continuous.py, and this is discrete" in line
    line = recipe("run.folder=one", "variant=calm", base=Family(), opened=True).line
    assert "variant=calm: run.folder holds a run with variant=sac" in line
    assert {path: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before


def test_modules_are_never_taken_from_the_file_of_a_run(recipe: Recipe, tmp_path: Path) -> None:
    recipe("run.folder=one", "env.plugins=[json]", opened=True)
    assert "env.plugins was ['json'] and is []" in recipe("run.folder=one", opened=True).line
    assert recipe("run.folder=one", "env.plugins=[json]", opened=True).config.env.plugins == ["json"]
    assert load(tmp_path / "one").env.plugins == []
    assert load(tmp_path / "one", plugins=["json"]).env.plugins == ["json"]


def test_a_saved_configuration_is_read_back_by_path_alone(recipe: Recipe, tmp_path: Path) -> None:
    made = recipe("run.folder=one", "variant.network.hidden=[8]", "learner.execution=eager", opened=True).config
    (tmp_path / "one").rename(tmp_path / "moved")
    made.run.folder = None
    assert load(tmp_path / "moved") == made
    assert recipe("run.folder=moved", opened=True).config.variant == made.variant


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("name: sac", "name: gone"), "variant=gone is none of sac"),
        (("batch_size: 256", "batch_size: many"), "Value 'many'"),
        (("batch_size: 256", "batches: 256"), "unknown key batches: did you mean batch_size?"),
        (("normalize: false", "normalise: false"), "normalise is called normalize now"),
        (("id: Pendulum-v1", "id: ${oc.env:HOME}"), "env.id holds an interpolation"),
    ],
)
def test_a_saved_configuration_that_was_edited_badly_is_refused(
    recipe: Recipe, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    recipe("run.folder=one", opened=True)
    path = tmp_path / "one" / "config.yaml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError, match=r"one/config\.yaml|interpolation") as error:
        load(tmp_path / "one")
    assert said in str(error.value)
    outcome = recipe("run.folder=one", opened=True)
    assert outcome.code == 64
    assert outcome.configs == []


def test_a_saved_configuration_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"recipe: \xff")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read as YAML"):
        load(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run: there is no config\.yaml"):
        load(tmp_path)


def test_plan_refuses_what_is_missing_or_unknown_and_gives_tuples() -> None:
    @dataclass
    class Pair:
        pair: tuple[int, ...] = (1, 2)

    @dataclass
    class Extended(TrainConfig):
        pair: Pair = dataclasses.field(default_factory=Pair)

    raw = OmegaConf.structured(Extended)
    raw.pair.pair = [3, 4, 5]
    assert typed(raw, Extended).pair.pair == (3, 4, 5)
    raw.seed = "???"
    OmegaConf.set_struct(raw, False)
    raw["surplus"] = 1
    with pytest.raises(ConfigError, match=r"surplus is not a key .* seed has no value"):
        typed(raw, Extended)


@pytest.mark.parametrize("text", ["a b", "it's", "a=b,c", "[x]", "back\\slash", "end\\", "ünï", "1"])
def test_any_text_can_be_assigned(recipe: Recipe, text: str) -> None:
    assert recipe(assignment("env.id", text)).config.env.id == text


SCRIPT = """
import sac_torchrl as sac

def main(config):
    print("trained on", config.env.id)
    raise ZeroDivisionError("a bug")

if __name__ == "__main__":
    sac.launch(sac.TrainConfig(), main)
"""


def test_a_script_has_help_and_exit_codes(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    help = call("--help")
    assert help.returncode == 0
    for said in (
        f"python {script} preset=ant",
        "runs/",
        "variant: crossq, droq, fastsac, redq, ",
        "halfcheetah",
        "total_frames=10000",
    ):
        assert said in help.stdout
    bug = call("env.id=Anything-v0")
    assert bug.returncode == 70
    assert bug.stdout == "trained on Anything-v0\n"
    assert "ZeroDivisionError: a bug" in bug.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]


def test_a_run_from_before_a_key_resumes_where_the_key_is_at_its_default(tmp_path: Path) -> None:
    config = TrainConfig(run=RunConfig(str(tmp_path)))
    lines = as_yaml(config).splitlines(keepends=True)
    assert "n_steps: 1\n" in lines
    (tmp_path / "config.yaml").write_text("".join(line for line in lines if line != "n_steps: 1\n"))
    check_folder(config)
    with pytest.raises(ConfigError, match="n_steps was 1 and is 3"):
        check_folder(dataclasses.replace(config, n_steps=3))
