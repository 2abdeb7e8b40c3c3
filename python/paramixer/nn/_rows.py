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
