"""Where the values of several discrete actions lie in a vector, in a table, and among joint actions."""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn


class Layout:
    """Where the values of M discrete actions of `sizes` lie: side by side, in a padded table, and as joint actions."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.widest = max(self.sizes)
        self.joint = math.prod(self.sizes)
        self.total = sum(self.sizes)
        self.offsets = (0, *accumulate(self.sizes))[:-1]
        self.strides = tuple(math.prod(self.sizes[place + 1 :]) for place in range(len(self.sizes)))

    def owners(self, device: torch.device) -> Tensor:
        """The dimension that each of the `total` values belongs to, `(total,)`."""
        sizes = torch.tensor(self.sizes, device=device)
        return torch.arange(len(self.sizes), device=device).repeat_interleave(sizes, output_size=self.total)

    def levels(self, device: torch.device) -> Tensor:
        """Which value of its dimension each of the `total` values is, `(total,)`."""
        return torch.cat([torch.arange(size, device=device) for size in self.sizes])

    def steps(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of the joint actions beside one: the dimension that differs, `(total - M,)`, and by how many values."""
        sizes = torch.tensor(self.sizes, device=device)
        dimensions = torch.arange(len(self.sizes), device=device)
        differs = dimensions.repeat_interleave(sizes - 1, output_size=self.total - len(self.sizes))
        return differs, torch.cat([torch.arange(1, size, device=device) for size in self.sizes])

    def table(self, device: torch.device) -> Tensor:
        """All joint actions, `(joint, M)`, the last dimension running fastest."""
        places = torch.arange(self.joint, device=device).unsqueeze(-1)
        strides, sizes = (torch.tensor(numbers, device=device) for numbers in (self.strides, self.sizes))
        return places // strides % sizes

    def sums(self, values: Tensor) -> Tensor:
        """For every joint action the sum of what its dimensions' values have: `(..., total)` as `(..., joint)`."""
        found = values.new_zeros(*values.shape[:-1], 1)
        for part in values.split_with_sizes(list(self.sizes), -1):
            found = (found.unsqueeze(-1) + part.unsqueeze(-2)).flatten(-2)
        return found

    def padded(self, logits: Tensor) -> Tensor:
        """Logits `(..., total)` as `(..., M, widest)`; values that a dimension does not have are the lowest number."""
        if self.total == len(self.sizes) * self.widest:
            return logits.reshape(*logits.shape[:-1], len(self.sizes), self.widest)
        lowest = torch.finfo(logits.dtype).min
        parts = [
            nn.functional.pad(part, (0, self.widest - size), value=lowest)
            for part, size in zip(logits.split_with_sizes(list(self.sizes), -1), self.sizes, strict=True)
        ]
        return torch.stack(parts, -2)

    def flat(self, padded: Tensor) -> Tensor:
        """The inverse of `padded`: `(..., M, widest)` as `(..., total)`."""
        return torch.cat([padded[..., place, :size] for place, size in enumerate(self.sizes)], -1)
