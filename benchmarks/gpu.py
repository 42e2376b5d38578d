"""The path of a GPU, proven or shown where it breaks, in eight minutes.

python benchmarks/gpu.py [--device cuda] [--output gpu.json] [--minutes 8] [--quick]

Parts of at most sixty seconds, the most important first, each in a process of its own: one that fails, hangs or runs
out of memory loses nothing but itself. Every part writes its lines to the table and to the JSON file as it ends.
`--quick` has small sizes, and with `--device cpu` what needs a GPU is left out by name. Ends with 1 where a part
failed.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU starts nothing

import torch
from torch import Tensor, nn

import sac_torchrl as sac
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.learner import Order
from sac_torchrl.learner.precision import Precision
from sac_torchrl.replay.buffer import Storage
from sac_torchrl.runs.checkpoint import CheckpointConfig

Lines = Iterator[tuple[str, str]]
SMALL = {"network": sac.NetworkConfig([32])}
VARIANTS: dict[str, Callable[[], Any]] = {
    "sac": lambda: sac.SAC(**SMALL),
    "discrete_sac": lambda: sac.DiscreteSAC(**SMALL),
    "fastsac": lambda: sac.FastSAC(**SMALL, critic_hidden=[32]),
    "redq": lambda: sac.REDQ(**SMALL),
    "droq": lambda: sac.DroQ(**SMALL),
    "tqc": lambda: sac.TQC(**SMALL, critic_hidden=[32]),
    "crossq": lambda: sac.CrossQ(**SMALL, critic_hidden=[32]),
    "simba": lambda: sac.SimBa(actor_width=32, critic_width=32),
    "sac_v1": lambda: sac.SACv1(**SMALL),
}
FAST = {"betas": (0.9, 0.95), "weight_decay": 1e-3, "actor_every": 4, "order": Order.critics_first}


class Run:
    """The parts of a run, and what a recipe does with them."""

    def __init__(
        self,
        device: torch.device,
        *,
        variant: Any = None,
        env: str = "torch/pendulum",
        count: int = 16,
        storage: Storage = Storage.device,
        n_steps: int = 1,
        prioritized: bool = False,
        normalize: bool = False,
        batch: int = 256,
        capacity: int = 100_000,
        folder: Path | None = None,
        **learner: Any,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.count = device, count
        config = sac.EnvConfig(env, count)
        specs = replace(config.specs(), n_steps=n_steps)
        self.agent = (variant or sac.SAC()).build(specs, device=device)
        if normalize:
            self.agent = with_normalization(self.agent, specs, device=device)
        self.learner = sac.LearnerConfig(**learner).build(self.agent)
        folder = folder or Path(tempfile.mkdtemp())
        self.buffer = sac.ReplayConfig(max(capacity, 4 * count), storage, prioritized).build(
            folder / "rows", specs, rows=10**9, batch_size=batch, seed=0, device=device
        )
        self.experience = sac.Direct().build(
            config, self.agent.actor, self.buffer, specs=specs, total_frames=10**9, random_frames=4 * count, seed=0
        )
        self.frames = iter(self.experience)
        self.checkpoints = CheckpointConfig().build(
            folder / "checkpoints", self.buffer, learner=self.learner, experience=self.experience
        )
        self.test = lambda: config.build(count=16, device=device)
        torch.manual_seed(1)

    def go(self, steps: int, updates: int = 1) -> None:
        """Steps of all environments, each with so many updates once there are rows."""
        for _ in range(steps):
            next(self.frames)
            self.agent.observe(self.buffer)
            for _ in range(updates if len(self.buffer) else 0):
                batch = self.buffer.sample()
                self.learner.update(batch)
                self.buffer.update_tensordict_priority(batch)

    def weights(self) -> Tensor:
        """All of them in a row."""
        return torch.cat([one.detach().double().flatten().cpu() for one in self.agent.loss.parameters()])


def rate(what: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """How often a second `what` is done, after a warm-up."""
    for limit in (seconds / 3, seconds):
        _wait(device)
        start, times = time.perf_counter(), 0
        while times < 4 or time.perf_counter() - start < limit:
            what()
            times += 1
        _wait(device)
        took = time.perf_counter() - start
    return times / took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def places(device: torch.device, quick: bool) -> Lines:
    """Environment x storage x rows of several frames x priorities x normalization: collect, update, save, resume."""
    cells = list(product(("Pendulum-v1", "torch/pendulum"), Storage, (1, 3), (False, True), (False, True)))
    cells, failed = cells[::11] if quick else cells, []
    for env, storage, n_steps, prioritized, normalize in cells:
        options: dict[str, Any] = {"env": env, "storage": storage, "n_steps": n_steps, "prioritized": prioritized}
        options |= {"normalize": normalize, "count": 2, "variant": VARIANTS["sac"](), "batch": 16, "capacity": 500}
        try:
            with tempfile.TemporaryDirectory() as folder:
                first = Run(device, **options, folder=Path(folder))
                first.go(14)
                first.checkpoints.save(first.experience.frames)
                second = Run(device, **options, folder=Path(folder))
                second.checkpoints.restore()
                second.go(6)
                if not second.weights().isfinite().all():
                    raise ValueError("weights are not finite")
        except Exception as error:  # noqa: BLE001 - the next cell says more
            name = f"{env} {storage.value} n_steps={n_steps} prioritized={prioritized} normalize={normalize}"
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:160]}")
    yield (
        "cells that ran",
        f"{len(cells[::7] if quick else cells) - len(failed)} of {len(cells[::7] if quick else cells)}",
    )
    if failed:
        raise RuntimeError("; ".join(failed))


def equal(device: torch.device, quick: bool, names: tuple[str, ...]) -> Lines:
    """Captured is eager in numbers, after 200 updates on the same batches."""
    updates = 8 if quick else 200
    for name in names:
        ends = []
        for execution in (Execution.eager, Execution.captured):
            env = "torch/cartpole" if name == "discrete_sac" else "torch/pendulum"
            run = Run(device, variant=VARIANTS[name](), env=env, normalize=name == "fastsac", execution=execution)
            run.go(8, updates=0)
            batches = [run.buffer.sample() for _ in range(4)]
            torch.manual_seed(2)
            for number in range(updates):
                run.learner.update(batches[number % 4])
            ends.append(run.weights())
        difference = float((ends[0] - ends[1]).abs().max())
        yield f"{name}: largest difference of a weight after {updates} updates", f"{difference:.1e}"
        if not difference < 1e-2:
            raise ValueError(f"{name}: captured and eager differ by {difference}")


def resumed(device: torch.device, quick: bool) -> Lines:
    """Two runs that go on from the same checkpoint are the same."""
    for name in ("sac", "fastsac"):
        options: dict[str, Any] = {"variant": VARIANTS[name](), "normalize": name == "fastsac"}
        with tempfile.TemporaryDirectory() as folder:
            first = Run(device, **options, folder=Path(folder))
            first.go(12)
            first.checkpoints.save(first.experience.frames)
            ends = []
            for _ in range(2):
                run = Run(device, **options, folder=Path(folder))
                run.checkpoints.restore()
                run.go(8)
                ends.append(run.weights())
        yield f"{name}: difference of two resumed runs", f"{float((ends[0] - ends[1]).abs().max()):.1e}"


def silent(device: torch.device, quick: bool) -> Lines:
    """A warm step with its updates waits for nothing, or raises where it does."""
    for name in ("sac", "fastsac"):
        run = Run(device, variant=VARIANTS[name](), normalize=name == "fastsac")
        run.go(24)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run.go(8)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield f"{name}: waits in 8 steps with updates", "none"


def collection(device: torch.device, quick: bool) -> Lines:
    """Frames a second of torch/pendulum with the default policy; goal: a million with 65,536."""
    for count in (4, 64) if quick else (1, 256, 4096, 65536):
        run = Run(device, count=count, capacity=max(1000, 16 * count))
        run.go(12, updates=0)
        stored = rate(partial(next, run.frames), device, 0.2 if quick else 3)
        run.buffer.extend = lambda rows: None  # the rest is collection alone
        bare = rate(partial(next, run.frames), device, 0.2 if quick else 3)
        yield f"{count} environments", f"{stored * count:,.0f} frames/s stored, {bare * count:,.0f} not stored"


def fastsac(device: torch.device, quick: bool) -> Lines:
    """preset=fastsac's numbers: frames and updates a second (goal: 100,000 frames), memory, time to a solved task."""
    count, batch, updates = (16, 64, 2) if quick else (4096, 8192, 8)
    variant = sac.FastSAC(reward_scale=0.03)
    options: dict[str, Any] = {"variant": variant, "count": count, "batch": batch, "normalize": True, **FAST}
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    run = Run(device, **options, capacity=10_000 if quick else 1_000_000)
    if device.type == "cuda":
        yield "memory of a million rows", f"{(torch.cuda.memory_allocated() - before) / 2**20:,.0f} MiB"
    start = time.perf_counter()
    solved = None
    while time.perf_counter() - start < (1 if quick else 24) and solved is None:
        run.go(10, updates)
        if run.experience.frames % (40 * count) == 0:
            mean = sac.evaluate(run.agent.actor, run.test(), episodes=16, seed=1).mean
            if mean >= -200:
                solved = time.perf_counter() - start
    frames = run.experience.frames
    yield (
        "torch/pendulum at -200",
        f"after {solved:.0f} s, {frames:,} frames" if solved else f"not by {frames:,} frames",
    )
    speed = rate(lambda: run.go(1, updates), device, 0.5 if quick else 8)
    yield "training", f"{speed * count:,.0f} frames/s, {speed * updates:,.0f} updates/s"

    def at_once() -> None:
        next(run.frames)
        run.agent.observe(run.buffer)
        run.learner.update(*[run.buffer.sample() for _ in range(updates)])

    speed = rate(at_once, device, 0.5 if quick else 8)
    yield f"training, {updates} updates as one graph", f"{speed * count:,.0f} frames/s"
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            began = time.perf_counter()
            run.go(50, updates)
            _wait(device)
            took = time.perf_counter() - began
        busy = sum(one.self_device_time_total for one in profile.key_averages()) / 1e6
        yield "share of the time in which the device waits", f"{max(0.0, 1 - busy / took):.2f}"


def learning(device: torch.device, quick: bool, batch: int, width: int) -> Lines:
    """Updates a second of the default with other sizes, and the share of the rate of one large matrix product."""
    size = 256 if quick else 8192
    left, right = torch.randn(2, size, size, device=device).unbind(0)
    peak = 2 * size**3 * rate(lambda: left @ right, device, 0.1 if quick else 1)
    yield "matrix products in float32", f"{peak / 1e12:.2f} TFLOP/s"
    critic, actor = 2 * batch * (4 * width + width**2 + width), 2 * batch * (3 * width + width**2 + 2 * width)
    work = 12 * critic + 4 * actor  # two critics: target, value and gradients twice; the policy twice and its gradients
    precisions = [one for one in Precision if one is not Precision.tf32 or device.type == "cuda"]
    for precision, execution in product(precisions, (Execution.captured, Execution.eager)):
        run = Run(
            device,
            variant=sac.SAC(network=sac.NetworkConfig([width, width])),
            batch=batch,
            precision=precision,
            execution=execution,
        )
        run.go(8, updates=0)
        data = run.buffer.sample()
        speed = rate(partial(run.learner.update, data), device, 0.2 if quick else 2)
        yield f"{precision.value} {execution.value}", f"{speed:,.1f} updates/s, {speed * work / peak:.2f} of that rate"


def reference(device: torch.device, quick: bool) -> Lines:
    """A textbook update in plain PyTorch, batch 256 and width 256, beside ours."""
    speeds = {}
    for how in ("eager", "torch.compile", "CudaGraphModule"):
        if quick and how == "torch.compile":
            continue  # it takes half a minute to compile
        if how == "CudaGraphModule" and device.type != "cuda":
            continue
        update = textbook(device, how)
        speeds[how] = rate(update, device, 0.3 if quick else 5)
        yield f"textbook, {how}", f"{speeds[how]:,.1f} updates/s"
    run = Run(device)
    run.go(8, updates=0)
    batch = run.buffer.sample()
    ours = rate(lambda: run.learner.update(batch), device, 0.3 if quick else 5)
    yield "ours, captured", f"{ours:,.1f} updates/s, {ours / max(speeds.values()):.2f} of the fastest"


def textbook(device: torch.device, how: str) -> Callable[[], Any]:
    """SAC's update (Haarnoja et al. 2018b, algorithm 1) as one writes it down, on one batch."""

    def network(inputs: int, outputs: int) -> nn.Module:
        layers = nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)
        return nn.Sequential(*layers).to(device)

    actor, critics, targets = network(3, 2), [network(4, 1) for _ in range(2)], [network(4, 1) for _ in range(2)]
    log_alpha = torch.zeros((), device=device, requires_grad=True)
    options: dict[str, Any] = {"lr": 3e-4, "fused": True, "capturable": device.type == "cuda"}
    weights = [one for critic in critics for one in critic.parameters()]
    optimizers = [torch.optim.Adam(group, **options) for group in (weights, list(actor.parameters()), [log_alpha])]
    state, following = torch.randn(2, 256, 3, device=device).unbind(0)
    action, reward, going = torch.rand(256, 1, device=device), torch.randn(256, 1, device=device), 1.0

    def act(seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(seen).chunk(2, -1)
        std = log_std.clamp(-20, 2).exp()
        noise = torch.randn_like(mean)
        chosen = mean + std * noise
        density = -0.5 * noise**2 - std.log() - 0.9189385
        density = density - 2 * (0.6931472 - chosen - nn.functional.softplus(-2 * chosen))
        return chosen.tanh(), density.sum(-1, keepdim=True)

    def update() -> Tensor:
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            new, density = act(following)
            soft = torch.minimum(*(target(torch.cat([following, new], -1)) for target in targets)) - alpha * density
            goal = reward + 0.99 * going * soft
        losses = [((critic(torch.cat([state, action], -1)) - goal) ** 2).mean() for critic in critics]
        new, density = act(state)
        value = torch.minimum(*(critic(torch.cat([state, new], -1)) for critic in critics))
        of_actor = (alpha * density - value).mean()
        of_alpha = -(log_alpha * (density.detach() - 1.0)).mean()
        for optimizer, loss, group in zip(
            optimizers, (sum(losses), of_actor, of_alpha), (weights, list(actor.parameters()), [log_alpha]), strict=True
        ):
            for one, gradient in zip(group, torch.autograd.grad(loss, group, retain_graph=True), strict=True):
                one.grad = gradient
            del optimizer
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            for target, critic in zip(targets, critics, strict=True):
                torch._foreach_lerp_(list(target.parameters()), list(critic.parameters()), 0.005)
        return of_actor.detach()

    if how == "torch.compile":
        return torch.compile(update, mode="max-autotune-no-cudagraphs" if device.type == "cuda" else None)
    if how == "CudaGraphModule":
        from tensordict.nn import CudaGraphModule

        return CudaGraphModule(update)
    return update


def halfcheetah(device: torch.device, quick: bool) -> Lines:
    """One HalfCheetah-v5 on the CPU, the default learner on the device, an update a frame."""
    run = Run(device, env="HalfCheetah-v5", count=1, storage=Storage.ram)
    run.go(300, updates=0)
    run.go(20)
    yield "training", f"{rate(lambda: run.go(1), device, 0.5 if quick else 10):,.0f} frames/s"


PARTS: dict[str, Callable[..., Lines]] = {
    "places": places,
    "captured = eager": lambda *a: equal(*a, names=tuple(VARIANTS)[:3]),
    "resume": resumed,
    "no wait": silent,
    "collection": collection,
    "fastsac": fastsac,
    "update, batch 256, width 256": lambda *a: learning(*a, batch=256, width=256),
    "textbook": reference,
    "update, batch 65,536, width 4,096": lambda d, q: learning(d, q, *((64, 32) if q else (65536, 4096))),
    "HalfCheetah-v5": halfcheetah,
    "update, batch 4,096, width 1,024": lambda d, q: learning(d, q, *((64, 32) if q else (4096, 1024))),
    "captured = eager, the others": lambda *a: equal(*a, names=tuple(VARIANTS)[3:]),
}
GPU_ONLY = {"no wait"}


def _part(name: str, device: str, quick: bool, pipe: Any) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    try:
        for line in PARTS[name](torch.device(device), quick):
            pipe.send(line)
    except BaseException:  # noqa: BLE001 - it is shown, and the next part begins
        pipe.send(("FAILED", traceback.format_exc(limit=-4)))
    pipe.close()


def run_part(name: str, device: str, quick: bool, seconds: float) -> list[tuple[str, str]]:
    """Its lines, printed as they come."""
    context = multiprocessing.get_context("fork")  # what is imported is there; nothing has started a GPU
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_part, args=(name, device, quick, theirs))
    process.start()
    theirs.close()
    end, lines = time.monotonic() + seconds, []
    while True:
        if not ours.poll(max(0.0, end - time.monotonic())):
            lines.append(("FAILED", f"not over after {seconds:.0f} s"))
            break
        try:
            lines.append(ours.recv())
        except EOFError:
            process.join()
            if process.exitcode:
                lines.append(("FAILED", f"the process ended with {process.exitcode}"))
            break
        print(f"| {name} | {lines[-1][0]} | {lines[-1][1]} |", flush=True)
    process.kill()
    process.join()
    return lines


def main() -> None:
    """Run the parts for as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = {"torch": torch.__version__, "device": given.device, "quick": given.quick, "parts": {}}
    end, bad = time.monotonic() + 60 * given.minutes, False
    print("| part | | |\n|---|---|---|")
    for name in PARTS:
        left = min(60.0, end - time.monotonic())
        if given.device == "cpu" and name in GPU_ONLY:
            lines = [("left out", "it needs a GPU")]
        elif left < 5:
            lines = [("left out", "no time is left")]
        else:
            lines = run_part(name, given.device, given.quick, left)
        if lines[-1][0] in ("left out", "FAILED"):
            print(f"| {name} | {lines[-1][0]} | {lines[-1][1]} |", flush=True)
        bad |= any(line[0] == "FAILED" for line in lines)
        found["parts"][name] = dict(lines)
        given.output.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
