import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import counting
import pytest
import torch

from sac_torchrl import EnvConfig, Ray, ReplayConfig, ReplayRatio, SacError, Storage, tanh_normal_actor
from sac_torchrl.errors import WorkerDied

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


def test_every_transition_is_there_once_although_a_worker_dies(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    env = EnvConfig("Counting-v0", 3, plugins=["counting"])
    specs = env.specs()
    buffer = ReplayConfig(storage=Storage.ram).build(
        Path(), specs, rows=2000, batch_size=1, seed=0, device=torch.device("cpu")
    )
    experience = Ray(workers=2, steps=4, restarts=1).build(
        env,
        tanh_normal_actor(counting.AlwaysUp(), specs),
        buffer,
        specs=specs,
        total_frames=2000,
        random_frames=12,
        seed=3,
    )
    replay_ratio, updates, killed = ReplayRatio(0.3, after=0), 0, False
    with caplog.at_level(logging.WARNING):
        for new_frames in experience:
            updates += replay_ratio.due(new_frames)
            assert updates == int(Fraction(3, 10) * experience.frames)
            numbers = set(buffer.storage[:]["observation"][:, 0].int().tolist())
            if len(numbers) == 3 and not killed and experience.frames > 60:
                os.kill(processes_of("ray::Collector")[0], signal.SIGKILL)
                killed = True
            if len(numbers) > 3:
                break
    assert len(counting.check(buffer.storage[:], environments=None)) in (4, 5)
    assert experience.frames == len(buffer)
    assert 0 < experience.metrics()["train/policy_lag"] <= 2 * 4 * 3
    assert re.search("its Ray worker .* is gone .*replaced .1 of 1", caplog.text)
    drawn = buffer.storage[:]["action"].flatten()
    assert (drawn[24:] == 1).any()
    assert processes_of("ray::Collector") == []


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
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.syspath_prepend(tmp_path)
    env = EnvConfig("Counting-v0", 2, plugins=["only_here"])
    specs = env.specs()
    buffer = ReplayConfig(storage=Storage.ram).build(
        Path(), specs, rows=9, batch_size=1, seed=0, device=torch.device("cpu")
    )
    experience = Ray(workers=2).build(
        env,
        tanh_normal_actor(counting.AlwaysUp(), specs),
        buffer,
        specs=specs,
        total_frames=9,
        random_frames=0,
        seed=3,
    )
    with pytest.raises(WorkerDied, match=r"cannot be started .*only_here, which cannot be imported \(not there\)"):
        next(iter(experience))
    until = time.monotonic() + 10
    while processes_of("ray::Collector"):
        assert time.monotonic() < until
        time.sleep(0.1)


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
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.77.0.10 machine0\n10.77.0.11 machine1\n")
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
             f"hostname machine{number}; mount --bind {tmp_path}/hosts /etc/hosts; echo up; exec sleep infinity"],
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
    """They are where processors are; a machine whose name leads nobody to it is refused in a line."""
    here, there = machines
    command = f"{TRAIN} total_frames=400 evaluate.every=400 run.folder={tmp_path}/"
    done = here(f"{command}both")
    assert done.returncode == 0, done.stderr
    assert "400/400 frames" in done.stderr
    for machine, name, others in ((here, "machine0", 64), (there, "machine1", 69)):
        assert machine("umount /etc/hosts").returncode == 0
        refused = here(f"{command}{name}")
        assert refused.returncode == others
        assert re.search(rf"error: .*the name {name} stands for .*/etc/hosts", refused.stderr)
        assert machine(f"mount --bind {tmp_path}/hosts /etc/hosts").returncode == 0


@pytest.mark.parametrize("spare", [False, True])
def test_a_machine_is_lost(machines: list[Machine], tmp_path: Path, spare: bool) -> None:
    """Its worker goes on where a processor is left. Where none is, the run ends in a line."""
    here, _ = machines
    metrics = tmp_path / "run" / "metrics.csv"
    train = f"{TRAIN} collector.restarts=1 total_frames=3000 evaluate.every=3000 log_every=100"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(here, f"{train} run.folder={tmp_path}/run")
        until = time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 4):
            assert time.monotonic() < until and not run.done(), run
            time.sleep(0.1)
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
