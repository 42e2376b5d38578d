"""Take one guarantee at a time out of a copy of the code and see whether its tests notice.

`python benchmarks/mutations.py [--only NUMBER,...]` prints a row for each. The tests of a guarantee run in a process
that is forked from this one, which has imported what is not ours.
"""

import argparse
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 400.0


@dataclass(frozen=True)
class Mutation:
    """A guarantee, and what takes it out: `old`, which is in `file` once, becomes `new`."""

    guarantee: str
    file: str
    old: str
    new: str
    tests: str
    chosen: str


M = Mutation
SAVE, SNAP, RUN = "runs/checkpoint.py", "runs/snapshot.py", "runs/folder.py"
T_SAVE, T_RESUME, T_HOSTILE = "runs/test_checkpoint.py", "runs/test_resume.py", "reliability/test_hostile.py"
T_CONTAINED, T_TRIAL = "envs/test_contained.py", "test_trial.py"
MUTATIONS = [
    M(
        "checkpoint period after a resume",
        "train.py",
        "Every(cfg.checkpoint.every, frames=start)",
        "Every(cfg.checkpoint.every)",
        T_RESUME,
        "keep_their_period",
    ),
    M(
        "plugins of a saved config are not imported on resume",
        "config/compose.py",
        '    kept = [setting for setting in saved.settings if setting.key != "env.plugins"]\n',
        "    kept = list(saved.settings)\n",
        "reliability/test_security.py",
        "saved_run",
    ),
    M(
        "evaluation environments are closed",
        "train.py",
        "run.closing(cfg.env.build(count=cfg.evaluate.episodes, device=run.device))",
        "cfg.env.build(count=cfg.evaluate.episodes, device=run.device)",
        T_TRIAL,
        "closes_every",
    ),
    M(
        "exploration has a seed of its own",
        "train.py",
        "        torch.manual_seed(run.seeds.exploration)\n",
        "",
        T_TRIAL,
        "exploration_does_not",
    ),
    M("damaged shared rows are mended", SAVE, "        self._mend_rows(oldest)\n", "", T_SAVE, "one_flipped_bit"),
    M(
        "a changed file of rows is read again",
        SAVE,
        "(stamp is not None and stamp == self._stamps.get(segment)) or",
        "True or",
        T_RESUME,
        "a_bit_that_flips",
    ),
    M(
        "rows are verified",
        SNAP,
        "            _check(segment.path(path.parent), size=segment.size, sha256=segment.sha256)\n",
        "            pass\n",
        T_SAVE,
        "damage",
    ),
    M(
        "the files of the state are verified",
        SNAP,
        '            _check(path / name, **manifest["files"][name])\n',
        "            pass\n",
        T_SAVE,
        "damage",
    ),
    M(
        "the manifest is sealed",
        SNAP,
        "    if not sealed or read_plain(path / _MANIFEST, most=_MOST) != _json(seal):",
        "    if False:",
        T_SAVE,
        "damage or manifest",
    ),
    M(
        "a checkpoint is synced before its name",
        SNAP,
        "        sync(stage)\n",
        "",
        "reliability/test_storage.py",
        "synced",
    ),
    M(
        "room is measured before a save",
        SNAP,
        "    _check_room(path.parent, sum(map(len, payloads.values())) + len(_json(seal)))\n",
        "",
        "reliability/test_storage.py",
        "not_fit",
    ),
    M(
        "old checkpoints are removed",
        SAVE,
        "            snapshot.prune(self._folder, self._intact)\n",
        "",
        T_SAVE,
        "removed",
    ),
    M(
        "debris is swept at a resume",
        SAVE,
        "            snapshot.sweep(self._folder)",
        "            pass",
        T_SAVE,
        "killed_at_any",
    ),
    M(
        "generators are restored",
        SAVE,
        '            self._load_generators(found[0].state["generators"])\n',
        "",
        T_SAVE,
        "never_stopped",
    ),
    M(
        "a failed load leaves all parts as they were",
        SAVE,
        "                part.load_state_dict(before[name])\n",
        "                pass\n",
        T_SAVE,
        "refuses_its_state",
    ),
    M(
        "priorities are restored",
        SAVE,
        '        restore_priorities(self._buffer, saved.state["rows"].get("priorities", {}))\n',
        "",
        "replay/test_prioritized.py",
        "resum or checkpoint or saved or restor",
    ),
    M(
        "a signal stops a run",
        RUN,
        "        if self.stopping:\n",
        "        if False:\n",
        T_RESUME,
        "stopped_run and Cart",
    ),
    M(
        "the only environment's episode is cut by an evaluation",
        "collectors/stepping.py",
        "        self._cutting = True\n        return self._env",
        "        return self._env",
        T_TRIAL,
        "no_row_reaches",
    ),
    M(
        "an uncaptured episode is cut in both runs",
        "collectors/stepping.py",
        'self._cutting = self._cutting or not self._restorable or "missing" in state',
        "pass",
        T_RESUME,
        "cannot_be_captured",
    ),
    M(
        "a second instance is tried before a file is made",
        "config/trial.py",
        "                _open_second(plan)\n",
        "                pass\n",
        T_TRIAL,
        "cannot_work and Port",
    ),
    M(
        "a picture is drawn before a file is made",
        "config/trial.py",
        "                video.try_out(env, plan.id)\n",
        "                pass\n",
        T_TRIAL,
        "cannot_work and NoDisplay",
    ),
    M("the dataset is read before a file is made", "train.py", "    try_out(cfg, specs)\n", "", T_TRIAL, "cannot_work"),
    M(
        "rewards beyond float32 are faults",
        "envs/adapter.py",
        "        if not abs(value) <= _LARGEST:\n",
        "        if False:\n",
        "envs/test_float32.py",
        "",
    ),
    M(
        "SystemExit in an environment is its fault",
        "envs/adapter.py",
        "RAISED = (Exception, SystemExit, GeneratorExit)",
        "RAISED = (Exception,)",
        T_CONTAINED,
        "whatever_it_raises",
    ),
    M(
        "handlers of signals are put back",
        "envs/contained.py",
        "                signal.signal(number, handler)\n",
        "                pass\n",
        T_CONTAINED,
        "put_back",
    ),
    M(
        "grad mode is put back",
        "envs/contained.py",
        '            ("grad mode", grad, after[-4], torch.set_grad_enabled),\n',
        "",
        T_CONTAINED,
        "put_back",
    ),
    M(
        "an environment that seeds torch takes no exploration away",
        "envs/contained.py",
        "            torch.manual_seed(int(np.random.SeedSequence([self._seed, 1]).generate_state(1)[0]))\n",
        "",
        T_CONTAINED,
        "seed_decides",
    ),
    M(
        "evaluations leave the global generators",
        "runs/evaluation.py",
        "    with generators.preserve(), unshared(env), deterministic_mode(actor), limit, _drawing(not deterministic):",
        "    with unshared(env), deterministic_mode(actor), limit, _drawing(not deterministic):",
        T_CONTAINED,
        "evaluation_more",
    ),
    M(
        "evaluations act deterministically",
        "runs/episodes.py",
        "set_exploration_type(ExplorationType.DETERMINISTIC)",
        "set_exploration_type(ExplorationType.RANDOM)",
        "runs/test_evaluation.py",
        "deterministic",
    ),
    M(
        "an evaluation has a time limit",
        "runs/evaluation.py",
        "    limit = time_limit(timeout, LATE.format(timeout))",
        "    limit = nullcontext()",
        T_CONTAINED,
        "has_a_limit",
    ),
    M(
        "returns are finite",
        "runs/evaluation.py",
        "    if not all(map(math.isfinite, returns)):",
        "    if False:",
        "envs/test_float32.py",
        "returns",
    ),
    M(
        "rows of another dtype or shape are refused",
        "replay/packing.py",
        "                if column.dtype != dtype or column.shape[1:] != shape:",
        "                if False:",
        "replay/test_replay.py",
        "refused or fit or wrong or schema",
    ),
    M(
        "priorities are finite",
        "replay/prioritized.py",
        "        if not 0 <= least <= largest < inf:",
        "        if False:",
        "replay/test_prioritized.py",
        "finite",
    ),
    M(
        "offline actions are within the bounds",
        "replay/offline.py",
        "        if (np.abs(scaled) > 1 + _ROUNDED).any():",
        "        if False:",
        "replay/test_offline.py",
        "cannot_be_learned",
    ),
    M("no link is followed", "files.py", " | os.O_NOFOLLOW", "", T_HOSTILE, "link"),
    M("no pipe is waited for", "files.py", " | os.O_NONBLOCK", "", T_HOSTILE, "pipe"),
    M(
        "values are counted before JSON is read",
        SNAP,
        '    if sum(map(content.count, (b",", b"[", b"{"))) > _MOST_VALUES:',
        "    if False:",
        T_HOSTILE,
        "lists",
    ),
    M(
        "sizes are checked before a file is read",
        "files.py",
        "content = file.read(most + 1)",
        "content = file.read()",
        T_HOSTILE,
        "gigabyte",
    ),
    M(
        "a full disk ends with 74",
        "errors.py",
        "    exit_code = 74",
        "    exit_code = 70",
        "runs/test_run.py",
        "foreseen",
    ),
    M(
        "a folder is locked",
        RUN,
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
        "runs/test_run.py",
        "another_process_holds",
    ),
    M(
        "exit code 0 only after the run is finished",
        RUN,
        "            except SystemExit as asked:",
        "            except ZeroDivisionError as asked:",
        T_CONTAINED,
        "ends_with_0",
    ),
    M(
        "processes do not outlive the run",
        "orphans.py",
        "                    os.kill(one, signal.SIGKILL)\n",
        "                    pass\n",
        "test_orphans.py",
        "",
    ),
    M(
        "a poisoned learner is not saved",
        "learner/learner.py",
        "        if (name := not_finite([*_tensors(self.agent.loss).items(), *moments])) is not None:",
        "        if (name := None) is not None:",
        "reliability/test_bad_input.py",
        "poisoned_learner",
    ),
    M(
        "another configuration is refused on resume",
        "config/files.py",
        "    if differences:\n",
        "    if False:\n",
        "config/test_config.py",
        "another_configuration or differ or resumed",
    ),
]


def main() -> None:
    """Try them one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="numbers, from 1")
    only = parser.parse_args().only
    numbers = [int(word) for word in only.split(",")] if only else range(1, len(MUTATIONS) + 1)
    __import__("torchrl.collectors"), __import__("torchrl.objectives"), __import__("gymnasium")
    unnoticed = 0
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("sac_torchrl", "tests", "recipes", "docs"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, copy / name)
        for number in numbers:
            one = MUTATIONS[number - 1]
            path = copy / "sac_torchrl" / one.file
            whole = path.read_text()
            if whole.count(one.old) != 1:
                raise SystemExit(f"{number}: {one.file} has {whole.count(one.old)} times {one.old!r}")
            path.write_text(whole.replace(one.old, one.new))
            broken = failures(copy, one)
            path.write_text(whole)
            unnoticed += broken not in ("1", "hangs")
            said = {"0": "NO", "1": "yes", "hangs": "yes, it hangs"}.get(broken, f"not tried (pytest: {broken})")
            print(f"| {number} | {one.guarantee} | `{one.file}` | `{one.tests}` | {said} |", flush=True)
    sys.exit(unnoticed > 0)


def failures(copy: Path, one: Mutation) -> str:
    """The exit code of pytest in a process of its own: 0 where all tests pass, 1 where one fails."""
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        os.setsid()
        sys.path.insert(0, str(copy))
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(silence, descriptor)
        words = ["-q", "-x", "-n0", "-p", "no:cacheprovider", f"tests/{one.tests}"]
        os._exit(int(pytest.main([*words, *(["-k", one.chosen] if one.chosen else [])])))
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.1)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return "hangs"


if __name__ == "__main__":
    main()
