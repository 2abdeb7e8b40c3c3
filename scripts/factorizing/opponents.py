"""Approximations to compare with, each storing exactly as many values as it is told.

Where the numbers do not come out even, the last term keeps only its largest entries. Positions are
not counted: in the opponent's favour.
"""

from __future__ import annotations

import numpy as np
import torch
from paramixer.nn.monarch import from_monarch_slices, monarch_slices


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

    As `paramixer.nn.project_monarch` with its default blocks, m of b x b and b of m x m, but for
    the budget: the slices share it, and the largest singular terms of all of them are kept.

    Returns:
        The approximation, or None for a prime N, which has no such blocks.
    """
    slices = monarch_slices(torch.from_numpy(matrix)).numpy()
    b, m = slices.shape[:2]
    if b == 1:
        return None
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
    return from_monarch_slices(torch.from_numpy(cut)).numpy()


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
