"""What the small tasks share: real data that a package brings, split once and kept in a store.

They are named `mini-*`, so that nobody takes their numbers for the Long Range Arena's, and have
floors measured by

    python scripts/make_data.py floors mini-digits

Every function that makes one takes `folder`, where archives of packages are looked for, and

    stores      folder of the store, by default inside `folder`
    progress    is told how many samples more are read, if there is no store yet

and raises ImportError if the package is missing, with the command that brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramixer._load import __version__
from paramixer.tasks.draws import carve
from paramixer.tasks.floors import stored_floors
from paramixer.tasks.packages import Package
from paramixer.tasks.store import Content, Row, prepare
from paramixer.tasks.stored import Reading, in_groups, store_path, stored_task
from paramixer.tasks.task import Parts, Reals, Task, Tokens

FOLDER = "data"  # as in scripts/make_data.py
TRAIN, VALIDATION, TEST = range(3)


class Samples(NamedTuple):
    """All samples of a data set.

    Attributes:
        sequences: of every sample; several where it consists of several.
        labels: (n,) class of every sample.
        parts: (n,) `TRAIN`, `VALIDATION` or `TEST`.
    """

    sequences: Sequence[tuple[NDArray, ...]]
    labels: NDArray
    parts: NDArray


def mini_task(
    name: str,
    variant: str,
    folder: str | Path,
    package: Package,
    files: Sequence[str],
    read: Callable[[Mapping[str, bytes]], Samples],
    reading: Reading,
    input: Tokens | Reals,
    classes: int,
    *,
    sequences: int = 1,
    stores: Path | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Task:
    """A task of a package's files, read into a store once.

    A sample whose twin is in a later part (of train, validation, test) is left out.

    Args:
        name: of the task.
        variant: of the task.
        folder: see the module.
        package: that brings the data.
        files: of the package.
        read: makes the samples of the files' contents.
        reading: how stored tokens become inputs.
        input: of the task.
        classes: how many.
        sequences: of each sample.
        stores: see the module.
        progress: see the module.
    """
    found = package.find(name, files, Path(folder))
    tokens = len(reading.table)
    store = prepare(
        store_path(Path(folder), stores, f"{name}-{variant}"),
        {"task": name, "variant": variant, "paramixer": __version__},  # parts may change with it
        found.sources,
        lambda: _content(read(found.read()), tokens, sequences),
        progress,
    )
    rows = [in_groups(store, [part]) for part in (TRAIN, VALIDATION, TEST)]
    return stored_task(
        name,
        variant,
        store,
        (rows[TRAIN], rows[VALIDATION], rows[TEST]),
        reading,
        input,
        classes,
        floors=stored_floors(name, variant),
        comparable_to="itself alone: a small task of this project",
        sequences=sequences,
    )


def deal(
    labels: NDArray, validation: float, test: float, groups: NDArray | None = None
) -> NDArray[np.int64]:
    """The part of every sample, these shares of each class at random; groups stay whole.

    Args:
        labels: (n,) class of every sample.
        validation: share of all samples.
        test: share of all samples.
        groups: see `carve`.

    Returns:
        (n,) `TRAIN`, `VALIDATION` or `TEST`.
    """
    parts = np.full(len(labels), TRAIN)
    parts[carve(labels, test, seed=0, groups=groups)] = TEST
    return keep_aside(parts, labels, validation / (1 - test), groups)


def keep_aside(
    parts: NDArray, labels: NDArray, share: float, groups: NDArray | None = None
) -> NDArray[np.int64]:
    """The same parts, but a share of each class of the training part becomes validation."""
    rows = np.flatnonzero(parts == TRAIN)
    chosen = carve(labels[rows], share, seed=1, groups=None if groups is None else groups[rows])
    parts = parts.copy()
    parts[rows[chosen]] = VALIDATION
    return parts


def _content(samples: Samples, vocabulary: int, sequences: int) -> Content:
    kept = _without_twins(samples)
    facts: dict[str, Any] = {"twins left out": len(samples.labels) - len(kept)}
    return Content(_rows(samples, kept), Parts._fields, vocabulary, sequences, facts)


def _without_twins(samples: Samples) -> list[int]:
    """The samples of which no later part has a twin."""
    keys = [tuple(one.tobytes() for one in sequences) for sequences in samples.sequences]
    latest: dict[tuple[bytes, ...], int] = {}
    for key, part in zip(keys, samples.parts.tolist(), strict=True):
        latest[key] = max(part, latest.get(key, TRAIN))
    return [row for row, key in enumerate(keys) if samples.parts[row] == latest[key]]


def _rows(samples: Samples, kept: Sequence[int]) -> Iterator[Row]:
    for row in kept:
        yield Row(samples.sequences[row], int(samples.labels[row]), int(samples.parts[row]))
