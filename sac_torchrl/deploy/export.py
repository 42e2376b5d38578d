"""Policies for programs without this package: ONNX, torch.export and safetensors, each with a proof of its parity."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from sac_torchrl.deploy.edges import output_names
from sac_torchrl.deploy.policy import Policy
from sac_torchrl.deploy.saved import FILE, SavedPolicy
from sac_torchrl.envs.observations import every_leaf
from sac_torchrl.errors import ConfigError, SacError
from sac_torchrl.extras import require
from sac_torchrl.files import replacing

BATCHES = 1, 7, 256
_SMALLEST = 1e-6
_MARGIN = 1e-5

Act = Callable[[Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Parity:
    """How far an exported policy is from the policy itself on `observations` recorded ones, in batches of 1, 7 and 256.

    `error` is the largest difference of an action, in widths of its range, `rounding` that between float32 and
    float64. `bound` is how large `error` may be: 1e-6, or four times `rounding` where that is more, as float32 sums
    differ in their order. Of discrete actions `error` is the largest share of a batch that differs, where the two
    likeliest are more than 1e-5 apart, and may be 0. Of a Dict or Tuple it is the largest of its leaves, and one that
    is discrete may not differ.
    """

    observations: int
    error: float
    rounding: float
    bound: float


def check_output(path: Path) -> None:
    """Raise ConfigError where an export has no such name, needs what is not installed, or would be beside others."""
    if path.suffix == ".onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, f"export {path.name}")
    elif path.suffix not in (".pt2", ""):
        raise ConfigError(f"{path}: give NAME.onnx, NAME.pt2, or the name of a folder, which has no suffix.")
    elif not path.suffix and (path.is_file() or (path.is_dir() and {file.name for file in path.iterdir()} - {FILE})):
        raise ConfigError(f"{path} holds other files: give the name of a new folder.")
    if path.suffix and path.is_dir():
        raise ConfigError(f"{path} is a folder: give another name.")


def export_policy(policy: Policy, path: Path, recorded: Sequence[Any]) -> SavedPolicy:
    """Write the policy as NAME.onnx, NAME.pt2 or a folder, if it acts there as here on the observations `recorded`.

    `recorded` holds for each leaf an array `(count, *shape)` in the environment's own type. Returns the policy with its
    parity. Raises ConfigError as `check_output`, and SacError, with no file left, where actions are not the same.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = {".onnx": _export_onnx, ".pt2": _export_pt2, "": _export_folder}[path.suffix]
    return write(policy, path, recorded)


def measure(policy: Policy, act: Act, recorded: Sequence[Any], *, exact: bool = False) -> Parity:
    """Compare `act`, from the leaves of a batch to those of actions, with the policy; raises SacError beyond the bound.

    `exact` demands the same bits.
    """
    count = len(recorded[0])
    spaces = [space for _, space in every_leaf(policy.spec.action)]
    wide = copy.deepcopy(policy.module).double()
    error = rounding = 0.0
    for batch in BATCHES:
        for start in range(0, count, batch) if batch > 1 else range(0, count, max(1, count // 100)):
            leaves = [leaf[start : start + batch] for leaf in recorded]
            tensors = [torch.from_numpy(leaf) for leaf in leaves]
            with torch.no_grad():
                here = _arrays(policy.module(*tensors))
                with _float64():
                    exactly = _arrays(wide(*tensors))
                    # A NaN is clear, so that it is found.
                    clear = ~(wide.margin(*tensors).numpy() <= _MARGIN)
            there = act(leaves)
            for one, other in zip(here, there, strict=True):
                if other.shape != one.shape or other.dtype != one.dtype:
                    raise SacError(
                        f"the export gives {other.dtype} {other.shape} for {one.dtype} {one.shape}: no file is left."
                    )
            for space, *both in zip(spaces, here, exactly, strict=True):
                if not isinstance(space, Box):
                    # Where float32 and float64 choose differently it is a tie of a head that has no margin.
                    clear &= _same(*both)
            for space, one, other, exact_one in zip(spaces, here, there, exactly, strict=True):
                if isinstance(space, Box):
                    width = space.high.astype(np.float64) - space.low
                    # Unlike max, NumPy's keeps a NaN.
                    error = float(np.maximum(error, _distance(one[clear], other[clear], width)))
                    rounding = max(rounding, _distance(one[clear], exact_one[clear], width))
                else:
                    error = float(np.maximum(error, (~_same(one, other) & clear).mean()))
    numbers = any(isinstance(space, Box) for space in spaces)
    bound = 0.0 if exact or not numbers else max(_SMALLEST, 4 * rounding)
    # Not `error > bound`, which is false of NaN.
    if not error <= bound:
        raise SacError(
            f"the exported actions are off by {error:.1e} of their range, and float32 explains {bound:.1e}: no file is "
            "left. Please report the variant and the versions of torch, onnx and onnxruntime."
        )
    return Parity(count, error, rounding, bound)


def _export_folder(policy: Policy, path: Path, recorded: Sequence[Any]) -> SavedPolicy:
    with TemporaryDirectory(dir=path.parent, prefix=".tmp-") as draft:
        policy.saved.write(Path(draft))
        module = Policy.load(draft).module
        saved = _proven(policy, measure(policy, lambda leaves: _act(module, leaves), recorded, exact=True))
    saved.write(path)
    return saved


def _export_pt2(policy: Policy, path: Path, recorded: Sequence[Any]) -> SavedPolicy:
    with _quiet():
        program = _program(policy, recorded)
    module: Any = program.module()
    saved = _proven(policy, measure(policy, lambda leaves: _act(module, leaves), recorded, exact=True))
    with _quiet(), replacing(path) as draft:
        torch.export.save(program, draft, extra_files={"metadata.json": json.dumps(saved.metadata())})
    return saved


def _export_onnx(policy: Policy, path: Path, recorded: Sequence[Any]) -> SavedPolicy:
    onnx, runtime = require("onnx", f"export {path.name}"), require("onnxruntime", f"export {path.name}")
    with replacing(path) as draft:
        with _quiet():
            torch.onnx.export(
                _program(policy, recorded),
                (),
                draft,
                dynamo=True,
                input_names=[leaf.name for leaf in policy.leaves],
                output_names=output_names(policy.spec.action),
                external_data=False,
                verbose=False,
            )
        session = runtime.InferenceSession(draft.read_bytes(), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]

        def act(leaves: Sequence[Any]) -> list[Any]:
            outputs: list[Any] = session.run(None, dict(zip(names, leaves, strict=True)))
            return outputs

        saved = _proven(policy, measure(policy, act, recorded))
        model = onnx.load(draft)
        onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in saved.metadata().items()})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, draft)
    return saved


def _proven(policy: Policy, parity: Parity) -> SavedPolicy:
    return replace(policy.saved, parity=asdict(parity))


def _program(policy: Policy, recorded: Sequence[Any]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    examples = tuple(torch.from_numpy(leaf[:2]) for leaf in recorded)
    return torch.export.export(policy.module, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))


def _act(module: torch.nn.Module, leaves: Sequence[Any]) -> list[Any]:
    with torch.no_grad():
        return _arrays(module(*(torch.from_numpy(leaf) for leaf in leaves)))


def _arrays(action: torch.Tensor | tuple[torch.Tensor, ...]) -> list[Any]:
    return [leaf.numpy() for leaf in ([action] if isinstance(action, torch.Tensor) else action)]


def _same(one: Any, other: Any) -> Any:
    return (one == other).reshape(len(one), -1).all(-1)


def _distance(one: Any, other: Any, width: Any) -> float:
    return float((np.abs(one.astype(np.float64) - other) / width).max(initial=0.0))


@contextmanager
def _float64() -> Iterator[None]:
    """Let what networks make themselves, one-hot vectors, be of the type of their weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters remark on torchvision, which is not needed, and on their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
