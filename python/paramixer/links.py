"""Link protocols: which positions every row of a factor mixes.

A protocol gives each of M factors its K offsets: row i of factor m mixes the positions
(i + o_mk) mod N, k = 0 .. K-1, and o_m0 = 0 is the link to itself. Offsets are not reduced modulo
N; offsets that coincide modulo N are legal and their links add up.

Both protocols are those of Khalitov, Yu, Cheng and Yang (arXiv 2109.08184) and Yu et al.
(arXiv 2204.10670). `paramixer/links.h` holds the same functions for C++.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paramixer._checks import check_integer, check_offsets, check_size

MAX_LINKS = 64  # the operators' bound on K
OFFSET_BITS = 64  # the operators take signed 64-bit offsets


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
    links = _log2_ceil(length) + 1 if links is None else links
    links = check_size("chord", "links", links, MAX_LINKS)
    offsets = [0] + [1 << power for power in range(links - 1)]
    return [list(offsets) for _ in range(factors)]


def cdil(length: int, factors: int | None = None, links: int = 3) -> list[list[int]]:
    """Offsets (0, +d, .., +h d, -d, .., -h d) with dilation d = 2^m in factor m = 0 .. M-1.

    Args:
        length: ring length N >= 1.
        factors: number of factors M, 1 <= M <= 63, fewer for large K: every offset has to fit into
            64 bits; default max(1, ceil(log2 N)).
        links: links per row K = 2 h + 1, the self link included; odd, 1 <= K <= 63.

    Returns:
        M lists of K offsets.

    Raises:
        ValueError: an argument is out of range, or `links` is even.
        TypeError: an argument is not an integer.
    """
    links = check_integer("cdil", "links", links)
    if links % 2 == 0 or not 1 <= links < MAX_LINKS:
        raise ValueError(
            f"cdil: links must be odd, at least 1 and at most {MAX_LINKS - 1} (got {links})"
        )
    half = (links - 1) // 2
    # So that h 2^(M-1) fits; the same bound for K = 1 as for K = 3.
    most_factors = OFFSET_BITS - max(1, half.bit_length())
    length, factors = _ring("cdil", length, factors, most_factors)
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
        TypeError: `length` or an offset is not an integer.
    """
    length = check_size("reach", "length", length)
    factors = check_offsets("reach", "offsets", offsets)
    reached = np.zeros(length, dtype=bool)
    reached[0] = True
    for applied, factor in enumerate(factors):
        if reached.all():
            return applied
        shifts = {offset % length for offset in factor}
        reached = _any_shift(reached, shifts)
    return len(factors) if reached.all() else None


def average(offsets: Sequence[Sequence[int]], length: int) -> list[list[float]]:
    """Weights, the same in all rows, with which the product of the factors averages all positions.

    A factor whose weights are 1/p at the offsets a, a + s, .., a + (p - 1) s modulo s p averages
    over the digit of place value s and radix p of a position; digits whose radices multiply to N
    average over all positions, and other factors only shift. So there are such weights if the
    factors offer those digits: Chord and CDIL of default size do for N = 2^n and N = 3 2^n.
    (For N = 2^n these are the one-peer exponential graphs, in general hyper-cuboids, which Jiang,
    Nguyen, Uribe and Ying, arXiv 2401.14596, compare with.)

    Args:
        offsets: M lists of offsets, of any sign and size.
        length: ring length N >= 1.

    Returns:
        M lists of weights: 1/p at p of a factor's offsets, or 1 at its first, and 0 elsewhere. The
        product of the factors is the N x N matrix of entries 1/N.

    Raises:
        ValueError: `length` is below 1, a factor has no offset, or the digits are not there.
        TypeError: `length` or an offset is not an integer.
    """
    length = check_size("average", "length", length)
    factors = check_offsets("average", "offsets", offsets)
    if not all(factors):
        raise ValueError(f"average: offsets must hold at least one a factor (got {factors})")
    found = _digits(dict(enumerate(factors)), length, place=1)
    if found is None:
        raise ValueError(
            f"average: offsets must let single factors average digits that make up N = {length} "
            f"(got {len(factors)} factors that do not)"
        )
    weights = []
    for m, factor in enumerate(factors):
        chosen = found.get(m, [0])
        weights.append([1 / len(chosen) if k in chosen else 0.0 for k in range(len(factor))])
    return weights


def _digits(factors: dict[int, list[int]], length: int, place: int) -> dict[int, list[int]] | None:
    """The links of each factor that average its digit, for digits from `place` up to `length`."""
    if place == length:
        return {}
    tried = set()  # equal factors fail alike
    for m, factor in factors.items():
        if tuple(factor) in tried:
            continue
        tried.add(tuple(factor))
        others = {other: offsets for other, offsets in factors.items() if other != m}
        for radix in range(2, len(factor) + 1):
            if length % (place * radix) != 0:
                continue
            chosen = _digit(factor, place, radix)
            rest = None if chosen is None else _digits(others, length, place * radix)
            if chosen is not None and rest is not None:
                return {m: chosen, **rest}
    return None


def _digit(factor: list[int], place: int, radix: int) -> list[int] | None:
    """The links at a, a + place, .., a + (radix - 1) place modulo place * radix, if there are."""
    modulus = place * radix
    links = {offset % modulus: k for k, offset in reversed(list(enumerate(factor)))}
    for start in links:
        digit = [(start + step * place) % modulus for step in range(radix)]
        if all(residue in links for residue in digit):
            return [links[residue] for residue in digit]
    return None


def _any_shift(reached: np.ndarray, shifts: set[int]) -> np.ndarray:
    result = np.zeros_like(reached)
    for shift in shifts:
        split = len(reached) - shift
        result[shift:] |= reached[:split]
        result[:shift] |= reached[split:]
    return result


def _ring(
    name: str, length: int, factors: int | None, most_factors: int | None = None
) -> tuple[int, int]:
    length = check_size(name, "length", length)
    factors = max(1, _log2_ceil(length)) if factors is None else factors
    return length, check_size(name, "factors", factors, most_factors)


def _log2_ceil(length: int) -> int:
    return (length - 1).bit_length()
