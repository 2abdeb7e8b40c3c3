"""What functions and modules demand of their arguments, and how they say so."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import SupportsIndex

import torch
from torch import Tensor


def check_integer(function: str, name: str, value: SupportsIndex) -> int:
    """The value as an int; TypeError unless it is an integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {name} must be an integer (got {value!r})") from None


def check_size(function: str, name: str, value: SupportsIndex, most: int | None = None) -> int:
    """The value as an int; ValueError unless 1 <= value (<= most)."""
    size = check_integer(function, name, value)
    if size < 1 or (most is not None and size > most):
        rule = "at least 1" if most is None else f"at least 1 and at most {most}"
        raise ValueError(f"{function}: {name} must be {rule} (got {size})")
    return size


def check_heads(module: str, heads: int, width: int, name: str = "width") -> None:
    """ValueError unless heads divide width, an argument of that name."""
    if width % heads != 0:
        raise ValueError(
            f"{module}: heads must divide {name} (got heads {heads} and {name} {width})"
        )


def check_offsets(
    function: str, name: str, offsets: Sequence[Sequence[SupportsIndex]]
) -> list[list[int]]:
    """The offsets of every factor as ints; TypeError unless they are lists of integers."""
    try:
        return [[operator.index(offset) for offset in factor] for factor in offsets]
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be one list of integers per factor (got {offsets!r})"
        ) from None


def check_choice(function: str, name: str, value: str, choices: Collection[str]) -> None:
    """ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{function}: {name} must be one of {tuple(choices)} (got {value!r})")


def check_rows(module: str, name: str, x: Tensor, width: int) -> None:
    """Raises unless x is (B, N, width) and floating."""
    if x.dim() != 3 or x.shape[2] != width:
        raise ValueError(f"{module}: {name} must be (B, N, {width}) (got shape {list(x.shape)})")
    if not x.is_floating_point():
        raise TypeError(f"{module}: {name} must be floating (got {x.dtype})")


def check_sequence(module: str, x: Tensor, mask: Tensor | None, length: int) -> None:
    """Raises unless x (B, N, ..) has N <= length and mask, where given, is (B, N) and bool."""
    if x.shape[1] > length:
        raise ValueError(
            f"{module}: x must not be longer than length {length} (got N = {x.shape[1]})"
        )
    if mask is not None:
        check_mask(module, "mask", x, mask)


def check_mask(module: str, name: str, x: Tensor, mask: Tensor) -> None:
    """Raises unless mask is (B, N), that of x (B, N, ..), and bool."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{module}: {name} must be bool (got {mask.dtype})")
    if mask.shape != x.shape[:2]:
        raise ValueError(
            f"{module}: {name} must be (B, N) = {list(x.shape[:2])} (got shape {list(mask.shape)})"
        )
