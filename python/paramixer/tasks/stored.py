"""Parts of tasks that lie in a store: which samples, and how tokens become inputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from paramixer.tasks.store import Store
from paramixer.tasks.task import Classes, Parts, Reals, Sample, Task, Tokens

BYTES = Tokens(257, padding=0)
"""A text as its bytes + 1."""


@dataclass(frozen=True)
class Reading:
    """How stored tokens become inputs.

    Attributes:
        table: (V,) what each stored token becomes: int64 tokens, or float32 values of width 1.
        limit: how many stored tokens of a sequence are used.
        prefix: tokens before them.
        suffix: tokens behind them.
    """

    table: Tensor
    limit: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """No sequence becomes longer."""
        return len(self.prefix) + self.limit + len(self.suffix)

    def __call__(self, stored: NDArray) -> Tensor:
        """(n,) stored tokens as (N,) int64 or (N, 1) float32."""
        x = self.table[torch.from_numpy(stored[: self.limit].astype(np.int64))]
        if x.is_floating_point():
            return x.unsqueeze(-1)
        return torch.cat([x.new_tensor(self.prefix), x, x.new_tensor(self.suffix)])


class StoredPart(Dataset):
    """Some samples of a store.

    Args:
        store: with all samples.
        rows: (n,) which samples, in their order.
        reading: how their tokens become inputs.
    """

    def __init__(self, store: Store, rows: NDArray[np.int64], reading: Reading):
        self._store, self.rows, self._reading = store, rows, reading

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) the length of every sample, the longest of its sequences."""
        reading = self._reading
        longest = self._store.lengths[self.rows].max(axis=1)
        return np.minimum(longest, reading.limit) + (reading.length - reading.limit)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) the class of every sample."""
        return self._store.labels[self.rows].astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; IndexError past the end."""
        row = int(self.rows[index])
        x = tuple(
            self._reading(self._store.sequence(row, number))
            for number in range(self._store.sequences)
        )
        y = torch.tensor(int(self._store.labels[row]))
        return Sample(x[0] if len(x) == 1 else x, y)


def stored_task(
    name: str,
    variant: str,
    store: Store,
    rows: tuple[NDArray, NDArray, NDArray],
    reading: Reading,
    input: Tokens | Reals,
    classes: int,
    **more: Any,
) -> Task:
    """A task of a store's samples.

    Args:
        name: of the task.
        variant: of the task.
        store: with all samples.
        rows: which of them are train, validation and test.
        reading: how their tokens become inputs.
        input: what the inputs are.
        classes: how many.
        more: further fields of `Task`; `floors` beside that of the majority class.
    """
    train, _, test = rows
    floors = majority_floor(store, train, test) | more.pop("floors", {})
    return Task(
        name=name,
        variant=variant,
        input=input,
        output=Classes(classes),
        length=reading.length,
        parts=Parts(*(StoredPart(store, part, reading) for part in rows)),
        floors=floors,
        facts=store.facts,
        **more,
    )


def majority_floor(store: Store, train: NDArray, test: NDArray) -> dict[str, float]:
    """Accuracy in percent on test of the class that is the most frequent in training."""
    if len(train) == 0 or len(test) == 0:
        return {}
    majority = np.bincount(store.labels[train]).argmax()
    return {"majority class": round(100 * float((store.labels[test] == majority).mean()), 2)}


def in_groups(store: Store, groups: Collection[Any]) -> NDArray[np.int64]:
    """The samples of some groups, in their order."""
    return np.flatnonzero(np.isin(store.groups, list(groups)))


def store_path(folder: Path, stores: Path | None, name: str) -> Path:
    """Where a store lies: in `stores`, by default a folder within the data's own."""
    return (folder / "paramixer-stores" if stores is None else stores) / f"{name}.store"


def byte_tokens(text: bytes) -> NDArray[np.uint8]:
    """(n,) the bytes of a text."""
    return np.frombuffer(text, dtype=np.uint8)


def byte_reading(length: int) -> Reading:
    """The inputs that `BYTES` describes."""
    return Reading(torch.arange(1, BYTES.vocabulary), length)
