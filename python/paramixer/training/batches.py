"""Which samples make which batch: the same in every process, a function of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from paramixer.tasks.draws import bits

POOL = 50  # batches whose samples are sorted by length among each other
_ORDER_STREAM = 2**64 - 2  # no data set has as many parts


class Plan(NamedTuple):
    """A batch before it is read.

    Attributes:
        epoch: for parts whose epochs differ.
        indices: of the samples that this process reads.
        length: of the longest sample that any process reads.
    """

    epoch: int
    indices: list[int]
    length: int


class Batches(Sampler[Plan]):
    """One process's share of all batches.

    Training batches hold samples of similar length in random order: the samples are shuffled, cut
    into pools of `POOL` batches, sorted by length inside a pool and cut into batches, which are
    shuffled. Evaluation reads every sample once, the longest first, so that what does not fit into
    memory shows at once. Process r of R reads the samples r, r + R, .. of every batch. The last
    batch may be smaller; fewer samples than processes join the batch before.

    Attributes:
        epoch: whose batches come next.
        start: the first batch of that epoch; set it to go on in its midst.

    Args:
        lengths: (n,) of the samples.
        batch_size: samples of a batch, over all processes.
        rank: r of this process.
        processes: R.
        seed: of the order of training batches; None for evaluation.

    Raises:
        ValueError: there are fewer samples than processes, or batches are smaller.
    """

    def __init__(
        self,
        lengths: NDArray,
        batch_size: int,
        *,
        rank: int = 0,
        processes: int = 1,
        seed: int | None = None,
    ):
        for name, count in (("lengths", len(lengths)), ("batch_size", batch_size)):
            if count < processes:
                raise ValueError(
                    f"Batches: {name} must give every process a sample "
                    f"(got {count} samples and {processes} processes)"
                )
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._rank, self._processes = rank, processes
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, unless it is the present one."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Batches of an epoch, those before `start` included."""
        full, rest = divmod(len(self._lengths), self._batch_size)
        return max(1, full + (rest >= self._processes))

    def __iter__(self) -> Iterator[Plan]:
        for batch in self.all_batches()[self.start :]:
            share = batch[self._rank :: self._processes]
            yield Plan(self.epoch, share.tolist(), max(1, int(self._lengths[batch].max())))

    def all_batches(self) -> list[NDArray[np.int64]]:
        """The samples of every batch of the epoch, over all processes."""
        if self._seed is None:
            return self._cut(np.argsort(-self._lengths, kind="stable"))
        order = self._shuffled(len(self._lengths), part=_ORDER_STREAM)
        pools = np.split(order, range(0, len(order), POOL * self._batch_size)[1:])
        ordered = [pool[np.argsort(-self._lengths[pool], kind="stable")] for pool in pools]
        batches = self._cut(np.concatenate(ordered))
        return [batches[i] for i in self._shuffled(len(batches), part=_ORDER_STREAM - 1)]

    def _shuffled(self, count: int, part: int) -> NDArray[np.int64]:
        assert self._seed is not None
        words = bits(count, self._seed, part=part, epoch=self.epoch)
        return np.argsort(words, kind="stable")

    def _cut(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return np.split(order, [number * self._batch_size for number in range(1, len(self))])


class ResumableLoader(DataLoader):
    """A loader that can go on behind the last batch it gave.

    Args:
        dataset: gives a batch for a `Plan`.
        batches: the plans.
        options: of `DataLoader`.
    """

    def __init__(self, dataset: Any, batches: Batches, **options: Any):
        super().__init__(dataset, batch_size=None, sampler=batches, **options)
        self._batches = batches
        self._given = 0
        self._next: dict[str, int] = {}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self._next:
            self._batches.epoch, self._batches.start = self._next["epoch"], self._next["given"]
            self._next = {}
        self._given = self._batches.start
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were given."""
        if self._given == len(self._batches):
            return {"epoch": self._batches.epoch + 1, "given": 0}
        return {"epoch": self._batches.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where a loader of that state stopped, whatever epoch is set before."""
        self._next = dict(state)
