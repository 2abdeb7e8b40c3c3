"""Approximations to compare with, each storing exactly as many values as it is told.

Where the numbers do not come out even, the last term keeps only its largest entries. Positions are
not counted: in the opponent's favour.
"""

from __future__ import annotations

import numpy as np


def truncated_svd(matrix: np.ndarray, numbers: int) -> np.ndarray:
    """The best approximation of rank r = numbers // 2 N."""
    left, values, right = np.linalg.svd(matrix)
    rank = min(numbers // (2 * len(matrix)), len(matrix))
    approximation = (left[:, :rank] * values[:rank]) @ right[:rank]
    if rank < len(matrix):
        spare = numbers - 2 * len(matrix) * rank
        approximation += _part(matrix - approximation, left[:, rank], right[rank], spare)
    return approximation


def monarch(matrix: np.ndarray, numbers: int) -> np.ndarray | None:
    """The best product of two block-diagonal matrices with a permutation between them.

    For N = m b the closed form of Dao et al., "Monarch" (ICML 2022, arXiv 2204.00595): with rows
    (l, j) and columns (k, i), every (m, b) slice at fixed (j, k) is cut to its leading singular
    terms. Here the slices share the budget: the largest terms of all of them are kept.

    Returns:
        The approximation, or None for a prime N, which has no such blocks.
    """
    length = len(matrix)
    b = max(d for d in range(1, int(length**0.5) + 1) if length % d == 0)
    if b == 1:
        return None
    m = length // b
    slices = matrix.reshape(m, b, m, b).transpose(1, 2, 0, 3)  # (j, k, l, i)
    left, values, right = np.linalg.svd(slices, full_matrices=False)
    terms = min(numbers // (m + b), values.size)
    order = np.argsort(-values, axis=None, kind="stable")
    kept = np.zeros(values.size, dtype=bool)
    kept[order[:terms]] = True
    cut = (left * np.where(kept.reshape(values.shape), values, 0)[..., None, :]) @ right
    if terms < values.size:
        j, k, r = np.unravel_index(order[terms], values.shape)
        spare = numbers - terms * (m + b)
        cut[j, k] += _part(slices[j, k] - cut[j, k], left[j, k, :, r], right[j, k, r], spare)
    return cut.transpose(2, 0, 1, 3).reshape(length, length)


def _part(residual: np.ndarray, left: np.ndarray, right: np.ndarray, numbers: int) -> np.ndarray:
    """The best multiple of left x right when only that many of their entries are stored."""
    if numbers < 2:  # one value alone makes no term
        return np.zeros_like(residual)
    left, right = _largest(left, numbers - numbers // 2), _largest(right, numbers // 2)
    term = np.outer(left, right)
    return term * ((residual * term).sum() / np.square(term).sum())


def _largest(vector: np.ndarray, count: int) -> np.ndarray:
    """The vector with zeros but in its largest entries."""
    result = np.zeros_like(vector)
    places = np.argsort(-np.abs(vector), kind="stable")[:count]
    result[places] = vector[places]
    return result
