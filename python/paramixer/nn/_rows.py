"""What mixers do with rows and their padding."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """X (.., N, D) with zeros in the rows that mask (.., N) excludes."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)


def at_least_float32(x: Tensor) -> Tensor:
    """X in float32 where it has 16 bits: for sums over all rows and products of inverses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_of_valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean (B, D) of the valid rows of x (B, N, D), zero at padding; zero without any."""
    return x.mean(1) if mask is None else x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
