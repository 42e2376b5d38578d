"""How the package hangs together: imports run down the list of `docs/design.md`, and one table has the extras."""

import ast
import tomllib
from pathlib import Path

import pytest

import sac_torchrl
from sac_torchrl import extras
from sac_torchrl.errors import ConfigError

PACKAGE = Path(sac_torchrl.__file__).parent
# From the ground up: a file imports from its own line and those before it.
LEVELS = (
    ("errors", "files", "imports", "trees"),
    ("extras", "fields", "orphans", "signals", "specs"),
    ("envs",),
    ("agents",),
    ("replay",),
    ("learner",),
    ("collectors",),
    ("runs",),
    ("config",),
    ("deploy",),
    ("train",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def imports() -> dict[str, set[str]]:
    """What every module of the package imports from it, by dotted name below `sac_torchrl`."""
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if "recipes" not in path.parts
    }
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sac_torchrl":
                base = (node.module or "").partition(".")[2]
                for alias in node.names:
                    inner = f"{base}.{alias.name}".strip(".")
                    wanted.add(inner if inner in modules else base)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                wanted |= {
                    str(getattr(argument, "value", "")).removeprefix("sac_torchrl.") for argument in node.args
                } & modules.keys()
        found[name] = wanted - {name, ""}
    return found


def test_imports_run_down() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if LEVEL[other.partition(".")[0]] > LEVEL[name.partition(".")[0]]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph, done = imports(), set[str]()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_every_optional_package_is_in_the_extra_that_its_advice_installs() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    for package in extras.PACKAGES.values():
        wanted = project["optional-dependencies"][package.extra]
        assert any(line.lower().replace("_", "-").startswith(package.distribution) for line in wanted), package


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for module, package in extras.PACKAGES.items():
        with pytest.raises(ConfigError, match=rf"KEY needs .*: pip install 'sac_torchrl\[{package.extra}\]'"):
            extras.require(module, "KEY")


def test_a_package_that_fails_to_import_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "envpool.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"EnvPool is installed and fails to import .*nothing_of_this_name"):
        extras.require("envpool", "env.id=envpool/CartPole-v1")


def test_spaces_that_older_gymnasiums_do_not_subscript_are_quoted() -> None:
    # From 1.4 on Tuple is generic; at runtime Gymnasium 1.1 to 1.3 raise TypeError for Tuple[Any].
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        named = [
            node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "gymnasium.spaces"
        ]
        if any(one.name == "Tuple" for node in named for one in node.names):
            subscripts = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
            assert not [node for node in subscripts if getattr(node.value, "id", "") == "Tuple"], path
