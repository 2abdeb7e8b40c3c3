"""Random numbers that depend on a seed and a position alone.

They come from the raw stream of the counter-based generator Philox (Salmon et al., 2011), which
NumPy keeps the same in every version, unlike its distributions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SPLIT_STREAM = 2**64 - 1  # no data set has as many parts


def bits(count: int, seed: int, *, part: int = 0, epoch: int = 0, index: int = 0) -> NDArray:
    """The first random words of the stream that the four numbers name.

    Args:
        count: of words, n.
        seed: 0 .. 2^64 - 1, as the others are.
        part: of the data set.
        epoch: of the part.
        index: of the sample.

    Returns:
        (n,) uint64, uniform. Streams of different names share nothing: they are 2^64 blocks apart.
    """
    key = np.array([seed, 0], dtype=np.uint64)
    counter = np.array([0, index, epoch, part], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """The numbers 0 .. count - 1 in random order, (count,) int64."""
    return np.argsort(bits(count, seed, part=_SPLIT_STREAM), kind="stable")


def carve(
    labels: NDArray, share: float, seed: int, groups: NDArray | None = None
) -> NDArray[np.bool_]:
    """Which samples to set aside: `share` of each class, rounded down, at random.

    Args:
        labels: (n,) class of every sample.
        share: 0 .. 1.
        seed: of the choice.
        groups: (n,) what is set aside as a whole or not at all, such as the document that samples
            are cut from; its class is that of its first sample. By default each sample is one.

    Returns:
        (n,) bool.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    _, first, group_of, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    order = permutation(len(first), seed)
    chosen = np.zeros(len(first), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[first[order]] == label]
        most = int(share * sizes[members].sum())
        chosen[members[np.cumsum(sizes[members]) <= most]] = True
    return chosen[group_of]
