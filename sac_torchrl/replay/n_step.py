"""Rows that span several frames: discounted rewards, and the observation that follows the last of them."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from sac_torchrl.specs import EPISODE, SPAN


class NStep:
    """Turns rows of one frame into rows of `steps` frames, for `count` environments, on the rows' `device`.

    Row t becomes r_t + gamma r_(t+1) + ... + gamma^(k-1) r_(t+k-1), with the observation and the `terminated` that
    follow, where k is `steps` or, at the end of an episode, the steps up to it: a row never reaches beyond an end,
    and a truncated episode bootstraps from its last observation with gamma^k (Sutton and Barto 2018, section 7.1).
    """

    def __init__(self, steps: int, *, gamma: float, count: int, device: torch.device | None = None) -> None:
        self._steps = steps
        self._gamma = gamma
        self._count = count
        # Slot i holds the rows that span i + 1 frames so far, one per environment; `_valid` marks those that exist.
        self._held: TensorDictBase | None = None
        self._valid = torch.zeros(steps - 1, count, dtype=torch.bool, device=device)

    def __call__(self, rows: TensorDictBase, done: Tensor, environments: slice | Tensor) -> TensorDictBase:
        """Return the rows that are complete, `(m,)`, given one frame `(n,)` of the `environments`.

        `done` `(n,)` says where an episode ended, terminated or truncated.
        """
        if self._steps == 1:
            return rows
        if self._held is None:
            self._held = rows.new_zeros(self._steps - 1, self._count)
        valid = self._valid[:, environments]
        grown: TensorDictBase = torch.cat([rows.unsqueeze(0), self._held[:, environments]])
        new, following = rows["next"], grown["next"]
        powers = self._gamma ** torch.arange(1, self._steps, device=done.device)
        following["reward"][1:] += powers.view(-1, 1, 1) * new["reward"]
        following["observation"][1:] = new["observation"]
        following["terminated"][1:] = new["terminated"]
        grown[SPAN][1:] += 1
        exists = torch.cat([torch.ones_like(done).unsqueeze(0), valid])
        complete = exists & done
        complete[-1] = exists[-1]
        self._held[:, environments] = grown[:-1]
        self._valid[:, environments] = (exists & ~complete)[:-1]
        return _oldest_first(grown, complete)

    def cut(self, environments: slice | Tensor = slice(None)) -> TensorDictBase:
        """End the running episodes of the `environments` and return their incomplete rows, `(m,)`."""
        if self._held is None:
            return TensorDict(batch_size=[0])
        rows = _oldest_first(self._held[:, environments], self._valid[:, environments])
        self._valid[:, environments] = False
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The rows that are held back, and which slots are filled; empty where rows span one frame."""
        if self._steps == 1:
            return {}
        held = {} if self._held is None else dict(self._held.flatten_keys("/").items())
        return {"held": held, "valid": self._valid}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the rows that were held back; raises ValueError for another number of them."""
        if self._steps == 1:
            return
        if state["valid"].shape != self._valid.shape:
            raise ValueError(f"rows of {tuple(state['valid'].shape)} steps and environments do not fit this run")
        self._valid.copy_(state["valid"])
        self._held = None
        if state["held"]:
            held = {key: value.to(self._valid.device, copy=True) for key, value in state["held"].items()}
            self._held = TensorDict(held, batch_size=self._valid.shape).unflatten_keys("/")


class DelayedNStep(NStep):
    """The rows of NStep, each returned `steps - 1` calls after its frame: as many at every call, however many ended.

    So nothing waits for the device, and a CUDA graph can hold the calls: the rows that grow are changed in place. What
    the first `steps - 1` calls return is no row.
    """

    def __call__(self, rows: TensorDictBase, done: Tensor, environments: slice | Tensor) -> TensorDictBase:
        """Return rows `(n,)`, given one frame `(n,)` of all environments, and `done` `(n,)`."""
        if self._steps == 1:
            return rows
        if self._held is None:
            self._held = rows.new_zeros(self._steps - 1, self._count)
        growing = self._valid
        powers = self._gamma ** torch.arange(1, self._steps, device=done.device)
        grown: dict[Any, Tensor] = {}
        for key, new in rows.items(include_nested=True, leaves_only=True):
            held, wide = self._held.get(key), growing.view(*growing.shape, *[1] * (new.ndim - 1))
            if key == SPAN:
                held = held + wide
            elif key == ("next", "reward"):
                held = held + wide * powers.view(-1, *[1] * new.ndim) * new
            elif isinstance(key, tuple) and key[0] == "next":
                held = torch.where(wide, new, held)
            grown[key] = torch.cat([new.unsqueeze(0), held])
        for key, column in grown.items():
            self._held.get(key).copy_(column[:-1])
        continued = torch.cat([torch.ones_like(done).unsqueeze(0), growing]) & ~done
        self._valid.copy_(continued[:-1])
        complete: TensorDictBase = TensorDict(
            {key: column[-1] for key, column in grown.items()}, batch_size=[self._count]
        )
        return complete

    def cut(self, environments: slice | Tensor = slice(None)) -> TensorDictBase:
        """Raises NotImplementedError: episodes that are stepped in this process continue."""
        raise NotImplementedError("rows of several frames of tensor environments are not cut.")


class NumberedEpisodes(NStep):
    """Rows of one frame, each with its environment and the number of its episode there, in `episode` `(n, 2)`.

    An episode ends with its last row, or where it is cut; the next row of the environment begins another.
    """

    def __init__(self, count: int) -> None:
        super().__init__(1, gamma=1.0, count=count)
        self._numbers = torch.zeros(count, dtype=torch.int32)
        self._begins = torch.ones(count, dtype=torch.bool)

    def __call__(self, rows: TensorDictBase, done: Tensor, environments: slice | Tensor) -> TensorDictBase:
        """Number the rows of one frame, `(n,)`."""
        self._numbers[environments] += self._begins[environments]
        which = torch.arange(len(self._numbers), dtype=torch.int32)[environments]
        self._begins[environments] = done
        return rows.copy().set(EPISODE, torch.stack([which, self._numbers[environments]], -1))

    def cut(self, environments: slice | Tensor = slice(None)) -> TensorDictBase:
        """End the running episodes of the `environments`; no row is held back, `(0,)`."""
        self._begins[environments] = True
        return TensorDict(batch_size=[0])

    def state_dict(self) -> dict[str, Any]:
        """The number of every environment's newest episode, and whether its next row begins another."""
        return {"episodes": self._numbers.clone(), "begins": self._begins.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._numbers.copy_(state["episodes"])
        self._begins.copy_(state["begins"])


def _oldest_first(rows: TensorDictBase, wanted: Tensor) -> TensorDictBase:
    """Select rows `(slots, n)` environment by environment, the longest first."""
    order = torch.arange(len(wanted) - 1, -1, -1, device=wanted.device)
    return rows[order].transpose(0, 1)[wanted[order].transpose(0, 1)]
