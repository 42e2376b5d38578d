import importlib
import importlib.util
import ipaddress
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import counting
import pytest
import runs
import torch
from descendants import below, command_of, listening
from torchrl.data import TensorDictReplayBuffer

from sac_torchrl import EnvConfig, Ray, ReplayConfig, ReplayRatio, SacError, Storage, tanh_normal_actor
from sac_torchrl.collectors.experience import Experience
from sac_torchrl.errors import ConfigError, WorkerDied
from sac_torchrl.runs import snapshot

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
    # Ray's, about itself.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

Machine = Callable[[str], "subprocess.CompletedProcess[str]"]


def processes_of(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in entry.read_text():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def make_collector(
    monkeypatch: pytest.MonkeyPatch,
    plan: Ray,
    environments: int = 2,
    *,
    plugin: str = "counting",
    total_frames: int = 10_000,
    random_frames: int = 0,
) -> tuple[Experience, TensorDictReplayBuffer]:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    env = EnvConfig("Counting-v0", environments, plugins=[plugin])
    specs, cpu = env.specs(), torch.device("cpu")
    buffer = ReplayConfig(storage=Storage.ram).build(Path(), specs, rows=total_frames, batch_size=1, seed=0, device=cpu)
    actor = tanh_normal_actor(counting.AlwaysUp(), specs)
    frames = {"total_frames": total_frames, "random_frames": random_frames}
    return plan.build(env, actor, buffer, specs=specs, seed=3, **frames), buffer


def test_every_transition_is_there_once_although_a_worker_dies(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Ray(workers=2, steps=4, restarts=1)
    experience, buffer = make_collector(monkeypatch, plan, 3, total_frames=2000, random_frames=12)
    replay_ratio, updates, killed = ReplayRatio(0.3, after=0), 0, False
    with caplog.at_level(logging.WARNING):
        for new_frames in experience:
            updates += replay_ratio.due(new_frames)
            assert updates == int(Fraction(3, 10) * experience.frames)
            numbers = set(buffer.storage[:]["observation"][:, 0].int().tolist())
            if len(numbers) == 3 and not killed and experience.frames > 60:
                os.kill(processes_of("ray::RemoteCollector")[0], signal.SIGKILL)
                killed = True
            if len(numbers) > 3:
                break
    assert len(counting.check(buffer.storage[:], environments=None)) in (4, 5)
    assert experience.frames == len(buffer)
    assert 0 < experience.metrics()["train/policy_lag"] <= 2 * 4 * 3
    assert re.search("its Ray worker .* is gone .*replaced .1 of 1", caplog.text)
    drawn = buffer.storage[:]["action"].flatten()
    assert (drawn[24:] == 1).any()
    assert processes_of("ray::RemoteCollector") == []


STRANGER = """
import logging, sys
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print(ray.get(ray.remote(num_cpus=0)(lambda: "a task ran").remote(), timeout=60))
"""


@pytest.mark.parametrize("mode", ["", "disabled", "token"])
def test_a_stranger_reaches_no_local_cluster(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Nothing listens but on the loopback interface, and a task runs only for who knows the token."""
    ray = importlib.import_module("ray")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    if mode:  # what the process is told of other clusters
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "the token of another cluster")
    before = {name: value for name, value in os.environ.items() if "AUTH" in name}
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    steps = iter(make_collector(monkeypatch, Ray(workers=2, steps=4))[0])
    next(steps)
    assert handlers == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    found = listening(below(os.getpid()))
    assert len(found) >= 4  # this process, GCS, raylet and workers: the list is no empty one
    for command, addresses in found.items():
        assert all(ipaddress.ip_address(address).is_loopback for address in addresses), command
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 64
    address = ray.get_runtime_context().gcs_address
    strangers = {
        "none": {"RAY_AUTH_MODE": "disabled"},
        "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        "right": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]},
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    asked = {
        who: subprocess.Popen(
            [sys.executable, "-c", STRANGER, address],
            env=clean | {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who, given in strangers.items()
    }
    said = {who: process.communicate(timeout=100) for who, process in asked.items()}
    assert "a task ran" in said["right"][0], said["right"][1]
    for who in ("none", "wrong"):
        assert asked[who].returncode != 0
        assert "a task ran" not in said[who][0]
        assert "InvalidAuthToken" in said[who][1]
    steps.close()  # type: ignore[attr-defined]  # it is a generator
    assert {name: value for name, value in os.environ.items() if "AUTH" in name} == before
    assert not ray.is_initialized()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_saves_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = runs.start(
        "train", "continuous", "collector=ray", "collector.workers=2", "env.count=2", f"run.folder={folder}",
        "log_every=10", "total_frames=1000000", "replay.capacity=1000", *runs.SMALL, cwd=tmp_path,
    )  # fmt: skip
    metrics = folder / "metrics.csv"
    runs.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 1, process)
    started = below(process.pid)
    assert any("ray::RemoteCollector" in command_of(one) for one in started)
    process.send_signal(number)
    code, _, errors = runs.finish(process, 30)
    if number == signal.SIGTERM:
        assert code == 75, errors
        assert len(snapshot.frames_in(folder / "checkpoints")) == 1
    runs.wait_until(lambda: not any(map(command_of, started)), seconds=15)


def test_a_process_that_is_connected_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = importlib.import_module("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"connected to a Ray cluster already: call ray\.shutdown\(\)"):
        next(iter(make_collector(monkeypatch, Ray())[0]))


def test_a_ray_that_opens_its_ports_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version in which loopback is asked for in another way fails closed."""
    monkeypatch.setattr(
        "sac_torchrl.collectors.ray_cluster.ipaddress.ip_address", lambda address: SimpleNamespace(is_loopback=False)
    )
    with pytest.raises(ConfigError, match=r"opens its local cluster to the network"):
        next(iter(make_collector(monkeypatch, Ray())[0]))
    assert not importlib.import_module("ray").is_initialized()


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_TOKEN": "secret"}, {"RAY_AUTH_MODE": "token"}])
def test_a_cluster_without_a_token_is_refused(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env = EnvConfig("Counting-v0", 1, plugins=["counting"])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():  # one without the other
        monkeypatch.setenv(name, value)
    with pytest.raises(SacError, match=r"collector\.address=10\.0\.0\.1:6379.*RAY_AUTH_MODE=token") as caught:
        Ray(address="10.0.0.1:6379").build(
            env,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            specs=env.specs(),
            total_frames=1,
            random_frames=0,
            seed=0,
        )
    assert caught.value.exit_code == 64


def test_a_worker_that_cannot_be_started_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text(
        "import sys\nfrom counting import *\nif 'pytest' not in sys.modules:\n    raise ImportError('not there')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    experience, _ = make_collector(monkeypatch, Ray(workers=2), plugin="only_here", total_frames=9)
    with pytest.raises(WorkerDied, match=r"cannot be started .*only_here, which cannot be imported \(not there\)"):
        next(iter(experience))
    runs.wait_until(lambda: not processes_of("ray::RemoteCollector"), seconds=30)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    """Two machines with one processor each as far as the network can tell; calling one runs a command on it."""
    setup = """
        ip netns add sac0 && ip netns add sac1
        ip link add sac netns sac0 type veth peer name sac netns sac1
        for i in 0 1; do
            ip -n sac$i addr add 10.77.0.1$i/24 dev sac
            ip -n sac$i link set sac up; ip -n sac$i link set lo up; ip -n sac$i route add default dev sac
        done"""
    if os.getuid() != 0 or subprocess.run(["sh", "-ec", setup], capture_output=True).returncode:
        pytest.skip("the system allows no network namespaces")
    (tmp_path / "token").write_text("d" * 64)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    staying = [
        subprocess.Popen(
            ["ip", "netns", "exec", f"sac{number}", "unshare", "-mu", "sh", "-c",
             f"hostname machine{number}; echo up; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip

    def on(number: int, command: str) -> subprocess.CompletedProcess[str]:
        into = ["nsenter", "-t", str(staying[number].pid), "-m", "-n", "-u", "sh", "-c", command]
        return subprocess.run(into, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)

    try:
        for process in staying:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
        head = "--head --node-ip-address=10.77.0.10 --port=6379 --include-dashboard=false"
        for number, how in enumerate([head, "--address=10.77.0.10:6379"]):
            started = on(number, f"ray start {how} --num-cpus=1 --disable-usage-stats")
            assert started.returncode == 0, started.stderr
        yield [partial(on, number) for number in range(2)]
    finally:
        on(0, "ray stop --force")
        for number, process in enumerate(staying):
            process.kill()
            process.communicate()
            subprocess.run(["ip", "netns", "del", f"sac{number}"], check=True)


TRAIN = (
    f"{sys.executable} {Path(__file__).parents[2] / 'recipes' / 'continuous.py'} collector=ray "
    "collector.address=10.77.0.10:6379 collector.steps=8 env.count=2 random_frames=100 batch_size=32 "
    "evaluate.episodes=1 "
)


def test_workers_on_several_machines(machines: list[Machine], tmp_path: Path) -> None:
    """They are where processors are, whatever the names of the machines stand for."""
    here, _ = machines
    done = here(f"{TRAIN} total_frames=400 evaluate.every=400 run.folder={tmp_path}/both")
    assert done.returncode == 0, done.stderr
    assert "400/400 frames" in done.stderr


@pytest.mark.parametrize("spare", [False, True])
def test_a_machine_is_lost(machines: list[Machine], tmp_path: Path, spare: bool) -> None:
    """Its worker goes on where a processor is left. Where none is, the run ends in a line."""
    here, _ = machines
    metrics = tmp_path / "run" / "metrics.csv"
    train = f"{TRAIN} collector.restarts=1 total_frames=3000 evaluate.every=3000 log_every=100"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(here, f"{train} run.folder={tmp_path}/run")
        runs.wait_until(lambda: run.done() or (metrics.exists() and metrics.read_text().count("\n") > 4), seconds=120)
        assert not run.done(), run
        if spare:
            assert here("ray start --address=10.77.0.10:6379 --num-cpus=1").returncode == 0
        subprocess.run("ip netns pids sac1 | xargs kill -9", shell=True, check=True)
        done = run.result()
    assert "It is replaced (1 of 1)" in done.stderr
    if spare:
        assert done.returncode == 0, done.stderr
        assert "3000/3000 frames" in done.stderr
    else:
        assert done.returncode == 69
        assert "cannot be started (the Ray cluster has 1 CPUs left for 2 workers)" in done.stderr
