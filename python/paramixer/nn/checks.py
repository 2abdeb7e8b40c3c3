"""What every module of this package demands of a sequence and its mask."""

from __future__ import annotations

import torch
from torch import Tensor


def check_sequence(module: str, x: Tensor, mask: Tensor | None, length: int) -> None:
    """Raises unless x (B, N, ..) has N <= length and mask, where given, is (B, N) and bool."""
    if x.shape[1] > length:
        raise ValueError(
            f"{module}: the sequence must not be longer than length {length}, got N = {x.shape[1]}"
        )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"{module}: mask must be bool, got {mask.dtype}")
        if mask.shape != x.shape[:2]:
            raise ValueError(
                f"{module}: mask must be (B, N) = {list(x.shape[:2])}, got {list(mask.shape)}"
            )
