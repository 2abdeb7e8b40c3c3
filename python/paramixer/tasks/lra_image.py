"""Image: which of ten things does a picture (CIFAR-10, Krizhevsky, 2009) show, as grey pixels?

The data are the binary form, `cifar-10-batches-bin`: records of a label and 3 x 1,024 bytes, red,
green and blue. Grey = 0.299 red + 0.587 green + 0.114 blue, rounded; rows follow one another.
The official training part is cut by position in these files; the Long Range Arena cut it in the
shuffled order of TensorFlow's copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramixer._checks import check_choice
from paramixer.tasks.lra_release import comparison, find_folder, grey_table, random_rows
from paramixer.tasks.store import Content, Row, prepare
from paramixer.tasks.stored import Reading, in_groups, store_path, stored_task
from paramixer.tasks.task import Reals, Task, Tokens

VARIANTS = {
    "honest": "the rows of lra: the same sizes of parts and pixels as tokens",
    "lra": "Long Range Arena's own rows: as honest, but black is token 0",
    "s4": "S4 and successors: normalised real values, an easier input; parts as theirs",
    "paramixer": "Paramixer and PSF-Attn: tokens, all 50,000 to learn from; validation is the test "
    "part",
}
CLASSES = 10
SIDE = 32
FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")

_ORIGIN = "www.cs.toronto.edu/~kriz/cifar.html (cifar-10-binary.tar.gz)"
_PIXELS = SIDE * SIDE
_RECORD = 1 + 3 * _PIXELS
_MEAN, _DEVIATION = 122.6 / 255, 61.0 / 255  # of the training part's grey values, as S4 has them


def lra_image(
    folder: str | Path,
    variant: str = "honest",
    *,
    stores: Path | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Task:
    """Reads the binary files, or a store made from them before.

    Arguments and errors are those of `lra_release`; `folder` is, or contains,
    `cifar-10-batches-bin`.

    Returns:
        x (1024,) int64, grey values + 1; in "lra" and "paramixer" grey values; in "s4" (1024, 1)
        float32. y () int64 in 0 .. 9.
    """
    check_choice("lra_image", "variant", variant, VARIANTS)
    names = ("cifar-10-batches-bin", "cifar10/cifar-10-batches-bin")
    place = find_folder("lra_image", Path(folder), names, FILES, _ORIGIN)
    files = [place / name for name in FILES]
    store = prepare(
        store_path(place, stores, "image"),
        {"task": "image"},
        files,
        lambda: Content(_read(files), FILES, 256),
        progress,
    )
    learnt, test = in_groups(store, range(5)), in_groups(store, [5])
    train, validation = _split(learnt, test, variant)
    reading = Reading(grey_table(variant, _MEAN, _DEVIATION), _PIXELS)
    tokens = Tokens(257, padding=0) if variant == "honest" else Tokens(256)
    return stored_task(
        "image",
        variant,
        store,
        (train, validation, test),
        reading,
        Reals(1) if variant == "s4" else tokens,
        CLASSES,
        validation_is_test=variant == "paramixer",
        **comparison("image", variant, VARIANTS),
    )


def _split(learnt: NDArray, test: NDArray, variant: str) -> tuple[NDArray, NDArray]:
    if variant == "paramixer":
        return learnt, test
    size = len(learnt) * 9 // 10
    if variant == "s4":
        train, validation = random_rows(len(learnt), [size, len(learnt) - size])
        return learnt[train], learnt[validation]
    return learnt[:size], learnt[size:]


def _read(files: list[Path]) -> Iterator[Row]:
    for group, path in enumerate(files):
        data = np.fromfile(path, dtype=np.uint8)
        if len(data) % _RECORD != 0:
            raise ValueError(
                f"lra_image: {path} must have a multiple of {_RECORD} bytes (got {len(data)})"
            )
        records = data.reshape(-1, _RECORD)
        wrong = np.flatnonzero(records[:, 0] >= CLASSES)
        if len(wrong) > 0:
            raise ValueError(
                f"lra_image: {path}, record {wrong[0]}: label must be in 0 .. {CLASSES - 1} "
                f"(got {records[wrong[0], 0]})"
            )
        for label, grey in zip(records[:, 0], grey_of(records[:, 1:]), strict=True):
            yield Row((grey,), int(label), group)


def grey_of(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 3 P) red, green and blue of P pixels as (n, P) grey values."""
    red, green, blue = np.split(colours.astype(np.uint32), 3, axis=1)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)
