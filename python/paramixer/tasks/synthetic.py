"""Parts of tasks that are generated while they are read: a sample is a function of its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from paramixer.tasks.draws import bits
from paramixer.tasks.generators import MOST_32, check_range
from paramixer.tasks.task import (
    Classes,
    Counts,
    Parts,
    Reals,
    Regression,
    Sample,
    Task,
    Tokens,
    published,
)

MOST_LENGTH = 2**24
PAPER_LEAST_LENGTH = 32  # so that two samples of any parts practically never agree
PAPER_COUNTS = Counts(100_000, 1_000, 1_000)  # Paramixer's; PSF-Attn had 200,000 / 5,000 / 5,000

Draw = Callable[[int], NDArray]
"""Gives the first n random words (uint64) of a sample's own stream."""


class Generated(Dataset):
    """One part: sample i is a function of (seed, part, epoch, i), in every process.

    Training parts are fixed, or `fresh`: then `set_epoch` brings other samples. The epoch lies in
    shared memory, where workers that were started before see it.

    Attributes:
        lengths: (n,) int64, all equal.

    Args:
        make: a sample from its random words.
        length: of all samples.
        part: 0, 1 or 2, as in `Parts`.
        count: of samples, n.
        seed: of all parts.
        fresh: whether epochs differ.
    """

    def __init__(
        self,
        make: Callable[[Draw], Sample],
        length: int,
        part: int,
        count: int,
        seed: int,
        fresh: bool,
    ):
        self._make, self._part, self._count, self._seed = make, part, count, seed
        self._fresh = fresh
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._length = length

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The length of every sample."""
        return np.full(self._count, self._length, dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the samples of an epoch, 0, 1, ..; without effect on a fixed part."""
        if self._fresh:
            self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; IndexError past the end."""
        if not 0 <= index < self._count:
            raise IndexError(f"index must be in 0 .. {self._count - 1} (got {index})")
        epoch = int(self._epoch)
        return self._make(lambda n: bits(n, self._seed, part=self._part, epoch=epoch, index=index))


def generated_parts(
    task: str,
    make: Callable[[int], Callable[[Draw], Sample]],
    length: int,
    counts: Counts,
    seed: SupportsIndex,
    fresh: bool,
) -> Parts:
    """The three parts, their arguments checked.

    Args:
        task: for messages.
        make: for the number of a part, what makes a sample of it.
        length: of all samples.
        counts: of samples.
        seed: 0 .. 2^64 - 1.
        fresh: whether the epochs of the training part differ.

    Raises:
        TypeError: an integer is none.
        ValueError: a number is out of its range.
    """
    seed = check_range(task, "seed", seed, 0, 2**64 - 1)
    sizes = [
        check_range(task, f"counts.{name}", count, 0, MOST_32)
        for name, count in zip(Counts._fields, counts, strict=True)
    ]
    return Parts(
        *(
            Generated(make(part), length, part, size, seed, fresh and part == 0)
            for part, size in enumerate(sizes)
        )
    )


def paper_task(
    name: str,
    make: Callable[[int, Draw], Sample],
    input: Tokens | Reals,
    output: Classes | Regression,
    floors: Mapping[str, float],
    length: SupportsIndex,
    counts: Counts,
    seed: SupportsIndex,
    fresh: bool,
) -> Task:
    """A task as PSF-Attn (Khalitov et al., 2022) and Paramixer (Yu et al., CVPR 2022) have it.

    Args:
        name: of the task.
        make: a sample from N and its random words.
        input: of the task.
        output: of the task.
        floors: of the task.
        length: N, 32 .. 2^24; published for 2^7 .. 2^14 or 2^15.
        counts: samples of each part.
        seed: 0 .. 2^64 - 1.
        fresh: whether every training epoch has samples of its own (see `Generated.set_epoch`).

    Raises:
        TypeError: an integer is none.
        ValueError: an argument is out of its range.
    """
    length = check_range(name, "length", length, PAPER_LEAST_LENGTH, MOST_LENGTH)
    sample = partial(make, length)
    return Task(
        name=name,
        variant="paramixer",
        input=input,
        output=output,
        length=length,
        floors=floors,
        published=published(name, length=length),
        comparable_to="PSF-Attn and Paramixer",
        parts=generated_parts(name, lambda _: sample, length, counts, seed, fresh),
    )


def integers(words: NDArray, most: int) -> NDArray[np.int64]:
    """Uniform 0 .. most - 1 from random words; the bias is below most / 2^32."""
    return ((words >> np.uint64(32)) * np.uint64(most) >> np.uint64(32)).astype(np.int64)


def two_places(words: NDArray, length: int) -> NDArray[np.int64]:
    """Two distinct places 0 .. length - 1 in ascending order, all pairs equally likely."""
    first = integers(words[:1], length)
    second = integers(words[1:2], length - 1)
    return np.sort(np.concatenate([first, second + (second >= first)]))
