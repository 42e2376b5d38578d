"""Trains 1,000 frames on environments of many packages, follows what refusals advise, and writes docs/environments.md.

python benchmarks/environments.py                     those of benchmarks/environments.csv without a verdict
python benchmarks/environments.py MiniGrid Blackjack  those whose id or package contains one of the words, again

Each package is installed into an environment of its own below build/environments, over the packages of this one, and
verdicts are kept there. Of an environment that runs, the stored rows are compared with what it returned, and its
actions with what it was given; its state is written and a policy saved, loaded and asked. One that Gymnasium itself
cannot make is not counted.
"""

import csv
import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "environments"
TABLE = ROOT / "benchmarks" / "environments.csv"
PAGE = ROOT / "docs" / "environments.md"
FRAMES = 1000
SECONDS = 1800
LIMIT = 200  # steps an episode, where a refusal asks for a limit

ADVICE = (
    (re.compile(r"env\.(ignore|wrappers|reward_weights|bounds)=(\[(?!LOW).*?\])(?= |,|\.$|\.? )"), "{0}={1}"),
    (re.compile(r"set env\.(max_episode_steps)"), f"max_episode_steps={LIMIT}"),
    (re.compile(r"pip install '([^']+)'"), ""),
)


@dataclass
class Row:
    """One environment: its id, what `pip install` gets it, its plugin, and the keys that it needs."""

    id: str
    package: str
    plugin: str
    keys: dict[str, Any]
    make: str
    advised: list[str] = field(default_factory=list)
    verdict: str = ""


def main(words: list[str]) -> None:
    """Try every row, print a line each as it is known, and write the page."""
    rows = list(_rows())
    for row in rows:
        kept = HOME / "verdicts" / f"{re.sub(r'[^A-Za-z0-9.-]', '_', row.id)}.json"
        if any(word in f"{row.id} {row.package}" for word in words) or (not words and not kept.exists()):
            _try(row)
            print(f"{row.id:40} {' '.join(row.advised):40} {row.verdict}", flush=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"advised": row.advised, "verdict": row.verdict}))
        elif kept.exists():
            row.advised, row.verdict = json.loads(kept.read_text()).values()
    _write(rows)


def _rows() -> Iterator[Row]:
    with TABLE.open() as file:
        for line in csv.DictReader(file):
            keys = json.loads(line["keys"] or "{}")
            yield Row(line["id"], line["package"], line["plugin"], keys, line["make"])


def _try(row: Row) -> None:
    python = _python(row.package)
    if python is None:
        row.verdict = "not made: the package cannot be installed here beside this one"
        return
    keys = {**row.keys, **({"plugins": [row.plugin]} if row.plugin else {})}
    for _ in range(6):
        said = _run(python, row.id, keys)
        if said["verdict"] not in ("refused", "unmade"):
            row.verdict = said["line"]
            return
        advice = _advice(said["line"], row)
        if advice is None or advice in row.advised:
            row.verdict = f"{'refused' if said['verdict'] == 'refused' else 'not made'}: {said['line']}"
            return
        row.advised.append(advice)
        if advice.startswith("EnvConfig"):
            keys["make"] = row.make
        elif advice.startswith("pip install "):
            _install(python, advice.removeprefix("pip install "))
        else:
            name, _, value = advice.partition("=")
            merged = [*keys.get(name, []), *_value(value)] if name in ("ignore", "wrappers") else _value(value)
            keys[name] = merged


def _advice(line: str, row: Row) -> str | None:
    """The first thing that a refusal says to give or to install."""
    if row.make and "EnvConfig(make=...)" in line:
        return f"EnvConfig(make={row.make})"
    for pattern, form in ADVICE:
        if found := pattern.search(line):
            return form.format(*found.groups()) if form else f"pip install {found[1]}"
    return None


def _value(text: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index,call-overload]


def _python(package: str) -> str | None:
    """The interpreter of the environment of a package, made and filled where it is not there yet."""
    folder = HOME / (re.sub(r"[^\w.]+", "_", package) or "none")
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True)
        [site] = (folder / "lib").glob("python*/site-packages")
        # Everything of this environment is there too, unless the package wants another version of it.
        site.joinpath("parent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        if package and not _install(str(python), package):
            return None
        # Some packages hold others at versions that this one is too new for.
        beside = subprocess.run([python, "-c", "import sac_torchrl.envs.config"], env=_environment(), check=False)
        if beside.returncode:
            return None
        (folder / "installed").touch()
    return str(python)


def _install(python: str, package: str) -> bool:
    words = package.replace("sac_torchrl[", f"{ROOT}[").split()  # this one, not the one of the registry
    done = subprocess.run([python, "-m", "pip", "install", "-q", *words], capture_output=True, check=False)
    return done.returncode == 0


def _run(python: str, id: str, keys: dict[str, Any]) -> dict[str, str]:
    try:
        done = subprocess.run(
            [python, ROOT / "benchmarks" / "environment_trial.py", id, json.dumps(keys), str(FRAMES)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        return {"verdict": "failed", "line": f"failed: no {FRAMES} frames in {SECONDS} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"verdict"')]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"verdict": "failed", "line": f"failed: {last[:160]}"}
    said: dict[str, str] = json.loads(lines[-1])
    return said


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "SDL_VIDEODRIVER": "dummy"}


def _write(rows: list[Row]) -> None:
    tried = [row for row in rows if row.verdict]
    made = [row for row in tried if not row.verdict.startswith("not made")]
    runs = [row for row in made if row.verdict.startswith("runs")]
    advised = [row for row in runs if row.advised]
    packages = len({row.package for row in tried})
    left = len(rows) - len(tried)
    share = 100 * len(runs) / max(1, len(made))
    images = [row for row in runs if any("ResizeObservation" in one for one in row.advised)]
    share_without = 100 * (len(runs) - len(images)) / max(1, len(made))
    lines = [
        "# Environments",
        "",
        f"What comes of {len(tried)} environments of {packages} packages, {FRAMES:,} frames each.",
        "`python benchmarks/environments.py` makes this page again, each package in an environment of its own.",
        "Of each that runs, every stored row was compared with what the environment returned, and every action with",
        "what it was given; its state was written as for a checkpoint, and a policy was saved, loaded and asked. Where",
        "a refusal says what to give, that was given, and is in the third column.",
        "",
        f"{len(made)} can be made here. Of these {len(runs) - len(advised)} run as they are and {len(advised)} after",
        f"the refusal's own advice: {len(runs)}, {share:.0f} %. {len(images)} of the latter observe images, of which",
        f"the advice keeps a few numbers. If those count as refused, {share_without:.0f} % run.",
        *([f"{left} more of benchmarks/environments.csv were not tried for this page."] if left else []),
        "",
        "| environment | package | given | what comes of it |",
        "| --- | --- | --- | --- |",
    ]
    for row in tried:
        keys = " ".join(f"env.{name}={json.dumps(value)}" for name, value in row.keys.items())
        given = " ".join(
            [
                *([keys] if keys else []),
                *(one if one.startswith(("pip", "EnvConfig")) else f"env.{one}" for one in row.advised),
            ]
        )
        package = row.package or "Gymnasium, DeepMind Control"
        lines.append(f"| {row.id} | {package} | {f'`{given}`' if given else ''} | {row.verdict.replace('|', '/')} |")
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
