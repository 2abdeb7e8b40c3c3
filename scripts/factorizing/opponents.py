"""Approximations to compare with, each storing exactly as many values as it is told.

What a method cannot spend on its own kind of term goes into its residual's largest entries, whose
positions are not counted: in the opponent's favour.
"""

from __future__ import annotations

import numpy as np


def truncated_svd(matrix: np.ndarray, numbers: int) -> np.ndarray:
    """The best approximation of rank r = numbers // 2 N."""
    left, values, right = np.linalg.svd(matrix)
    rank = min(numbers // (2 * len(matrix)), len(matrix))
    approximation = (left[:, :rank] * values[:rank]) @ right[:rank]
    return _spend(matrix, approximation, numbers - 2 * len(matrix) * rank)


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
    kept = np.zeros(values.size, dtype=bool)
    kept[np.argsort(-values, axis=None, kind="stable")[:terms]] = True
    values = np.where(kept.reshape(values.shape), values, 0)
    cut = (left * values[..., None, :]) @ right
    approximation = cut.transpose(2, 0, 1, 3).reshape(length, length)
    return _spend(matrix, approximation, numbers - terms * (m + b))


def _spend(matrix: np.ndarray, approximation: np.ndarray, numbers: int) -> np.ndarray:
    """The approximation with that many entries, the worst ones, made exact."""
    if numbers == 0:
        return approximation
    worst = np.argsort(-np.abs(matrix - approximation), axis=None, kind="stable")[:numbers]
    result = approximation.copy()
    result.flat[worst] = matrix.flat[worst]
    return result
