"""Whether an environment resumes in the middle of an episode."""

from typing import Any

from sac_torchrl.envs import generators
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.findings import Finding, Kind
from sac_torchrl.envs.state import capture, restore
from sac_torchrl.errors import short
from sac_torchrl.trees import decode, encode

_PLAYED = 30


def resume_finding(plan: EnvConfig) -> tuple[Finding, bool]:
    """Put the state of one instance into another, play both the same way, and say whether they went on alike.

    One that has played more than an episode is read; the other one has only been reset. Both play on beyond the next
    reset, one after the other: they may share a class. False means that the state cannot be put back at all.
    """
    env, other = (plan.build(seed=seed, count=1) for seed in (2, 3))
    try:
        other.reset()
        env.rollout(_PLAYED, auto_reset=True)
        root = env.reset()
        for _ in range(3):
            _, root = env.step_and_maybe_reset(env.rand_action(root))
        try:
            state = decode(*encode(capture(env)))
        except TypeError as error:
            return Finding(Kind.warning, f"episodes are cut at every checkpoint, because {short(error)}"), False
        drawn = generators.get_states()
        expected = _go_on(env, root, state)
        generators.set_states(drawn)
        try:
            restore(other, state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            return Finding(Kind.warning, f"episodes are cut at every checkpoint, because {short(error)}"), False
        alike = _go_on(other, root, state) == expected
    finally:
        env.close()
        other.close()
    advice = "give the environment state_dict and load_state_dict"
    if not alike:
        return Finding(Kind.warning, f"a resumed episode continues differently: {advice}"), True
    if "missing" in state:
        why = " and ".join(state["missing"])
        return Finding(Kind.note, f"episodes are cut at every checkpoint, because {why}; {advice}"), True
    return Finding(Kind.note, "a resumed run continues in the middle of its episodes"), True


def _go_on(env: Any, root: Any, state: dict[str, Any]) -> list[bytes]:
    """What is observed in the middle of an episode, with new ones where it ends and in the middle of the steps."""
    if "missing" in state:
        env.set_seed(1)
        root = env.reset()
    root, seen = root.clone(), []
    for number in range(2 * _PLAYED):
        step, root = env.step_and_maybe_reset(env.rand_action(root))
        seen += [leaf.numpy().tobytes() for leaf in step["next"].values(True, True, sort=True)]
        if number == _PLAYED:
            root = env.reset()
    return seen
