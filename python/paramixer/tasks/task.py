"""What a task is: inputs, outputs, three parts, floors and published results, and its batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

_PUBLISHED_FILE = Path(__file__).with_name("published.json")


class Counts(NamedTuple):
    """Samples of each part."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Tokens:
    """Inputs are symbols, int64 numbers 0 .. vocabulary - 1.

    Attributes:
        vocabulary: how many numbers there are, padding included.
        padding: the number that fills batches up; None where all samples are equally long.
        symbols: what the numbers mean, to show samples; empty where they say it themselves.
    """

    vocabulary: int
    padding: int | None = None
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reals:
    """Inputs are `width` float32 values at every position; batches are filled up with zeros."""

    width: int


@dataclass(frozen=True)
class Classes:
    """One of `count` classes, y () int64; or one at each of the last `positions`, (positions,)."""

    count: int
    positions: int | None = None


@dataclass(frozen=True)
class Regression:
    """A value, y () float32; a prediction is correct if it is off by less than `tolerance`."""

    tolerance: float


class Sample(NamedTuple):
    """One item of a part.

    Attributes:
        x: (n,) int64 tokens or (n, width) float32 values, of its own true length n; a tuple of
            them where a sample consists of several sequences.
        y: what to predict; see `Classes` and `Regression`.
    """

    x: Tensor | tuple[Tensor, ...]
    y: Tensor


class Batch(NamedTuple):
    """Samples of equal shape.

    Attributes:
        x: (B, N) int64 or (B, N, width) float32; (B, S, N) with S > 1 sequences a sample.
        mask: (B, N) or (B, S, N) bool, True where x is data; None where the task hides padding.
        y: (B,) or (B, positions).
    """

    x: Tensor
    mask: Tensor | None
    y: Tensor


class Part(Protocol):
    """A map-style data set that knows its lengths, (n,) int64, without reading the samples."""

    @property
    def lengths(self) -> NDArray:
        """The length of every sample, the longest of its sequences."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Parts(NamedTuple):
    """What is learned from, what a model is chosen by, and what is evaluated once."""

    train: Part
    validation: Part
    test: Part


class Published(NamedTuple):
    """A result from the literature.

    Attributes:
        model: its name.
        value: in percent.
        metric: "accuracy" or "error".
        variant: of the data that it was measured on.
        source: where it is written.
        length: N, where the task has several.
    """

    model: str
    value: float
    metric: str
    variant: str
    source: str
    length: int | None = None


@dataclass(frozen=True)
class Collate:
    """Makes batches of samples; the `collate_fn` of a `DataLoader`.

    Attributes:
        padding: what fills tokens up.
        sequences: of each sample.
        pad_to: the length of every batch; None for that of its longest sample.
        masked: whether batches tell data from padding.
    """

    padding: int | None
    sequences: int = 1
    pad_to: int | None = None
    masked: bool = True

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The samples as one batch."""
        rows = [row for x, _ in samples for row in (x if isinstance(x, tuple) else (x,))]
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max()) if self.pad_to is None else self.pad_to
        x = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), self.padding or 0)
        for place, row in zip(x, rows, strict=True):
            place[: len(row)] = row
        mask = torch.arange(longest) < lengths.unsqueeze(1) if self.masked else None
        if self.sequences > 1:
            x = x.unflatten(0, (-1, self.sequences))
            mask = None if mask is None else mask.unflatten(0, (-1, self.sequences))
        return Batch(x, mask, torch.stack([y for _, y in samples]))


@dataclass(frozen=True)
class Task:
    """A data set with all that is needed to learn from it and to judge the result.

    Attributes:
        name: of the task.
        variant: which reading of the data this is.
        input: `Tokens` or `Reals`.
        output: `Classes` or `Regression`.
        length: N, which no sample exceeds.
        parts: train, validation and test, also attributes of the task itself.
        floors: accuracies in percent that methods without understanding reach on the test part.
        published: results on this variant from the literature.
        comparable_to: which published rows the variant may be compared with.
        sequences: of each sample; 2 for retrieval.
        pad_to: the length of every batch; None for that of its longest sample.
        masked: whether batches tell data from padding.
        validation_is_test: whether the two are the same samples, as in many publications.
        facts: further numbers, such as how many unreadable files were left out.
    """

    name: str
    variant: str
    input: Tokens | Reals
    output: Classes | Regression
    length: int
    parts: Parts
    floors: Mapping[str, float]
    published: tuple[Published, ...] = ()
    comparable_to: str = ""
    sequences: int = 1
    pad_to: int | None = None
    masked: bool = True
    validation_is_test: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def train(self) -> Part:
        """What is learned from."""
        return self.parts.train

    @property
    def validation(self) -> Part:
        """What a model is chosen by."""
        return self.parts.validation

    @property
    def test(self) -> Part:
        """What is evaluated once."""
        return self.parts.test

    @property
    def collate(self) -> Collate:
        """What makes batches; give it to a `DataLoader` as `collate_fn`."""
        padding = self.input.padding if isinstance(self.input, Tokens) else None
        return Collate(padding, self.sequences, self.pad_to, self.masked)


def published(
    task: str, variant: str | None = None, length: int | None = None
) -> tuple[Published, ...]:
    """Results from the literature, of one variant and one length if these are given."""
    rows = (Published(**row) for row in _published().get(task, []))
    return tuple(
        row
        for row in rows
        if variant in (None, row.variant) and (length is None or row.length in (None, length))
    )


@cache
def _published() -> dict[str, list[dict[str, Any]]]:
    return json.loads(_PUBLISHED_FILE.read_text())
