"""PLAID: which of eleven household appliances draws a current? Series of their own lengths.

The Plug Load Appliance Identification Dataset (Gao et al., 2014), as the UCR archive has it, in
sktime's wheel, of which nothing else is needed. The official test part; validation is carved
from the training part. Measurements reach from thousandths of an ampere to hundreds, hence x =
asinh(1000 ampere) / 8, to 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramixer.tasks.mini import FOLDER, TEST, TRAIN, Samples, keep_aside, mini_task
from paramixer.tasks.packages import of_archive
from paramixer.tasks.stored import Reading
from paramixer.tasks.task import Reals, Task

CLASSES = 11
LENGTH = 1344

_PACKAGE = of_archive("sktime", "1.2.0", "sktime", "sktime-*.whl")
_FILES = [f"sktime/datasets/data/PLAID/PLAID_{part}.ts" for part in ("TRAIN", "TEST")]
_VALIDATION = 0.15
_BOUND = 2.0  # of |x|
_STEPS = 2**16


def mini_plaid(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Which appliance draws a current?

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (n, 1) float32, 100 <= n <= 1,344, y () int64 in 0 .. 10; about 455 / 75 / 537.
    """
    table = (torch.arange(_STEPS) + 0.5) * (2 * _BOUND / _STEPS) - _BOUND
    reading = Reading(table, LENGTH)
    return mini_task(
        "mini-plaid", "mini", folder, _PACKAGE, _FILES, _read, reading, Reals(1), CLASSES, **options
    )


def _read(contents: Mapping[str, bytes]) -> Samples:
    sequences: list[tuple[NDArray]] = []
    labels: list[int] = []
    parts: list[int] = []
    for part, data in zip((TRAIN, TEST), contents.values(), strict=True):
        _, _, lines = data.decode("utf-8-sig").partition("@data")
        for line in lines.split():
            values, _, label = line.rpartition(":")
            sequences.append((_tokens(np.array(values.split(","), dtype=float)),))
            labels.append(int(label))
            parts.append(part)
    kept = keep_aside(np.array(parts), np.array(labels), _VALIDATION)
    return Samples(sequences, np.array(labels), kept)


def _tokens(ampere: NDArray[np.float64]) -> NDArray[np.uint16]:
    x = np.arcsinh(1000 * ampere) / 8
    steps = np.floor((x + _BOUND) * (_STEPS / (2 * _BOUND)))
    return steps.clip(0, _STEPS - 1).astype(np.uint16)
