"""Private names of other packages that the package relies on: where each is defined, and why it is used.

When an upgrade moves one, a test names it; whoever uses another one adds it here with its reason.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

import sac_torchrl

PACKAGE = Path(sac_torchrl.__file__).parent

_BUFFERS = "torchrl.data.replay_buffers"
_SAC = "torchrl.objectives.sac"
_COMMON = "torchrl.objectives.common"
# Name: the modules that define it, and the reason.
NAMES = {
    "_alpha": ((_SAC,), "the temperature that a loss computes with, without gradient"),
    "_alpha_loss": ((_SAC,), "the weights of prioritized rows are the critics' alone, and alpha_form differs"),
    "_cached_detached_qvalue_params": ((_SAC,), "the actor's loss of a subclass asks the critics without gradient"),
    "_compute_target": ((_SAC,), "the target of discrete actions with a scaled reward"),
    "_compute_target_v2": ((_SAC,), "the target with a scaled reward"),
    "_make_vmap": ((_SAC,), "critics are evaluated as one stack, not by vmap"),
    "_maybe_get_priority_weight": ((_COMMON,), "the weights of prioritized rows, as TorchRL's losses read them"),
    "_reduce_loss": (("torchrl.objectives.utils",), "the mean of a loss, weighted as TorchRL's losses are"),
    "_vmap_qnetworkN0": ((_SAC,), "all critics at once, in losses that replace the critics' loss"),
    "_vmap_func": (("torchrl.objectives.utils",), "all critics at once, in the loss of the heads"),
    "_carrier": (("torchrl.collectors._single",), "what the next step of a collector begins from, to save and restore"),
    "_should_use_random_frames": (("torchrl.collectors._single",), "whether a collector's action is drawn uniformly"),
    "_env": (("torchrl.envs.common", "torchrl.envs.libs.gym"), "the vector environment that GymWrapper holds"),
    "_make_specs": (("torchrl.envs.libs.gym",), "specs of MultiDiscrete actions as indices"),
    "_batch_size": ((f"{_BUFFERS}.replay_buffers",), "whether a buffer's own sampling can be shortened"),
    "_bump_mutation_revision": ((f"{_BUFFERS}.storages",), "rows written in one place count as a write"),
    "_delayed_init": ((f"{_BUFFERS}.replay_buffers",), "whether a buffer's own sampling can be shortened"),
    "_extend": ((f"{_BUFFERS}.replay_buffers",), "rows that are packed already are written without a second check"),
    "_get_new_len": ((f"{_BUFFERS}.storages",), "the length of a storage after rows written in one place"),
    "_init": ((f"{_BUFFERS}.storages",), "a storage of packed rows is made when the first ones come"),
    "_prefetch": ((f"{_BUFFERS}.replay_buffers",), "whether a buffer's own sampling can be shortened"),
    "_eps": ((f"{_BUFFERS}.samplers",), "the least priority, added to every error"),
    "_replay_lock": ((f"{_BUFFERS}.replay_buffers",), "one thread at a time draws and writes, as in TorchRL's own"),
    "_write_lock": ((f"{_BUFFERS}.replay_buffers",), "one thread at a time draws and writes, as in TorchRL's own"),
    "_sample_unit": ((f"{_BUFFERS}.replay_buffers",), "whether a buffer's own sampling can be shortened"),
    "_transform": ((f"{_BUFFERS}.replay_buffers",), "whether a buffer's own sampling can be shortened"),
    "_sample_dependency": ((f"{_BUFFERS}.replay_buffers",), "whether a buffer's own sampling can be shortened"),
    "_sampler": ((f"{_BUFFERS}.replay_buffers",), "new rows get the largest priority so far"),
    "_service_shutdown": ((f"{_BUFFERS}.replay_buffers",), "whether a buffer's own sampling can be shortened"),
    "_set_last_cursor": ((f"{_BUFFERS}.storages",), "where rows written in one place begin"),
    "_storage": ((f"{_BUFFERS}.replay_buffers",), "new rows get the largest priority so far"),
    "_rng": ((f"{_BUFFERS}.replay_buffers",), "the generator that a buffer samples with, to seed and save it"),
    "_max_priority": ((f"{_BUFFERS}.samplers",), "the largest priority so far, to save and restore"),
    "_min_tree": ((f"{_BUFFERS}.samplers",), "priorities, to save and restore"),
    "_sum_tree": ((f"{_BUFFERS}.samplers",), "priorities, to save and restore"),
    "_attached_entities_iter": ((f"{_BUFFERS}.storages",), "samplers hear of rows that were written side by side"),
    "_new_unsafe": (("tensordict._td",), "a TensorDict of tensors that are known to fit, without checks"),
    "_foreach_add_": (("torch",), "one call for many tensors"),
    "_foreach_copy_": (("torch",), "one call for many tensors"),
    "_foreach_lerp_": (("torch",), "one call for many tensors"),
    "torch._guards": (("torch._guards",), "one fake mode for a recording, where make_fx makes one for every operation"),
    "torch._subclasses.fake_tensor": (("torch._subclasses.fake_tensor",), "that fake mode"),
    "torch._ops": (("torch._ops",), "the operations that a recording holds"),
    "_get_graph_executor_optimize": (("torch._C",), "TorchScript must not compute otherwise than eager does"),
    "_set_graph_executor_optimize": (("torch._C",), "TorchScript must not compute otherwise than eager does"),
    "torch.utils._python_dispatch": (("torch.utils._python_dispatch",), "matrix products in bfloat16"),
    "_np_random": (("gymnasium.spaces.space",), "a space's generator is part of an environment's state"),
    "_step_limit": (("dm_control.rl.control",), "a dm_control task's own time limit"),
    "_envs": (("brax.envs",), "the names of Brax's tasks, for suggestions"),
    "_config": (("multiprocessing.process",), "where multiprocessing keeps its sockets is removed after a kill, too"),
    "_forkserver": (("multiprocessing.forkserver",), "the process that forks the workers ends with this one"),
    "_forkserver_alive_fd": (("multiprocessing.forkserver",), "the process that forks the workers ends with this one"),
    "_actions": (("argparse",), "the flags that a parser knows, for suggestions"),
}


def defined(node: ast.AST) -> str | None:
    """What a node gives a name to: a function, a class, a variable, or an attribute of self."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return node.name
        case ast.Name(ctx=ast.Store()):
            return node.id
        case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
            return node.attr
    return None


def used() -> set[str]:
    """Private names that the package reads and does not define, and private modules that it imports from."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    names: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sac_torchrl"):
                names |= {alias.name for alias in node.names}
                names |= {node.module or ""} if "._" in (node.module or "") else set()
    own = {defined(node) for tree in trees for node in ast.walk(tree)}
    return {name for name in names if re.match(r"_[a-z]|\w+(\.\w+)*\._", name) and name not in own}


def test_every_private_name_of_another_package_has_its_reason() -> None:
    assert sorted(used() - NAMES.keys()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_is_where_it_was(name: str) -> None:
    modules, reason = NAMES[name]
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ImportError:
            pytest.skip(f"{module} is not installed")
        file = Path(found.__file__ or "")
        files = file.parent.rglob("*.py") if file.name == "__init__.py" else [file]
        if "." in name or hasattr(found, name) or any(re.search(rf"\b{name}\b", one.read_text()) for one in files):
            return
    pytest.fail(f"{name} is in none of {', '.join(modules)} any more; it is needed for: {reason}")
