"""Link protocols: which positions every row of a factor mixes.

A protocol gives each of M factors its K offsets: row i of factor m mixes the positions
(i + o_mk) mod N, k = 0 .. K-1, and o_m0 = 0 is the link to itself. Offsets are not reduced modulo
N; offsets that coincide modulo N are legal and their links add up.

Both protocols are those of Khalitov, Yu, Cheng and Yang (arXiv 2109.08184) and Yu et al.
(arXiv 2204.10670). `paramixer/links.h` holds the same functions for C++.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

MAX_LINKS = 64  # the operators' bound on K
_MAX_OFFSET = 2**63 - 1  # the operators take 64-bit offsets


def chord(length: int, factors: int | None = None, links: int | None = None) -> list[list[int]]:
    """Offsets (0, 1, 2, 4, .., 2^(K-2)) in every factor.

    Args:
        length: ring length N >= 1.
        factors: number of factors M >= 1; default max(1, ceil(log2 N)).
        links: links per row K, the self link included, 1 <= K <= 64; default 1 + ceil(log2 N),
            whatever M is.

    Returns:
        M lists of K offsets.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument is not an integer.
    """
    length, factors = _ring("chord", length, factors)
    links = _log2_ceil(length) + 1 if links is None else operator.index(links)
    if not 1 <= links <= MAX_LINKS:
        raise ValueError(f"chord: links must be between 1 and {MAX_LINKS}, got {links}")
    offsets = [0] + [1 << power for power in range(links - 1)]
    return [list(offsets) for _ in range(factors)]


def cdil(length: int, factors: int | None = None, links: int = 3) -> list[list[int]]:
    """Offsets (0, +d, .., +h d, -d, .., -h d) with dilation d = 2^m in factor m = 0 .. M-1.

    Args:
        length: ring length N >= 1.
        factors: number of factors M >= 1; default max(1, ceil(log2 N)).
        links: links per row K = 2 h + 1, the self link included; odd, 1 <= K <= 63.

    Returns:
        M lists of K offsets.

    Raises:
        ValueError: an argument is out of range, `links` is even, or an offset would not fit into
            64 bits.
        TypeError: an argument is not an integer.
    """
    length, factors = _ring("cdil", length, factors)
    links = operator.index(links)
    if not 1 <= links <= MAX_LINKS or links % 2 == 0:
        raise ValueError(f"cdil: links must be odd and between 1 and {MAX_LINKS}, got {links}")
    half = (links - 1) // 2
    if half << (factors - 1) > _MAX_OFFSET:
        raise ValueError(
            f"cdil: factors must keep every offset within 64 bits, got {factors} with links {links}"
        )
    steps = [0, *range(1, half + 1), *range(-1, -half - 1, -1)]
    return [[step << power for step in steps] for power in range(factors)]


def reach(offsets: Sequence[Sequence[int]], length: int) -> int | None:
    """How many factors, applied in order, connect every position with every other.

    A path of one link from each of the first m factors leads from i to j exactly when (j - i) mod N
    is a sum of one offset from each; `reach` is the first m for which that holds for all pairs.

    Args:
        offsets: M lists of offsets, of any sign and size.
        length: ring length N >= 1.

    Returns:
        m between 0 (only for N = 1) and M, or None when all M factors are not enough.

    Raises:
        ValueError: `length` is below 1.
    """
    length, _ = _ring("reach", length, None)
    reached = np.zeros(length, dtype=bool)
    reached[0] = True
    for applied, factor in enumerate(offsets):
        if reached.all():
            return applied
        shifts = {offset % length for offset in factor}
        reached = _any_shift(reached, shifts)
    return len(offsets) if reached.all() else None


def _any_shift(reached: np.ndarray, shifts: set[int]) -> np.ndarray:
    result = np.zeros_like(reached)
    for shift in shifts:
        split = len(reached) - shift
        result[shift:] |= reached[:split]
        result[:shift] |= reached[split:]
    return result


def _ring(name: str, length: int, factors: int | None) -> tuple[int, int]:
    length = operator.index(length)
    if length < 1:
        raise ValueError(f"{name}: length must be at least 1, got {length}")
    factors = max(1, _log2_ceil(length)) if factors is None else operator.index(factors)
    if factors < 1:
        raise ValueError(f"{name}: factors must be at least 1, got {factors}")
    return length, factors


def _log2_ceil(length: int) -> int:
    return (length - 1).bit_length()
