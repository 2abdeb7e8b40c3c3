"""Pathfinder and Path-X: do the two discs of a picture lie on the same dashed path?

Two long paths start near the middle and grow in turns without touching; several short ones
distract. One disc lies at the start of a path, the other at the end of the same path (label 1) or
of the other one (label 0). After the generator of Linsley et al. (2018) with the settings of the
Long Range Arena for 32, 64, 128 (Path-X) and 256 pixels; those for 16 are ours. `write` makes
folders as in the official release. Where it differs from the official generator:

- the two paths never touch: there, the last segment of one is no obstacle to the other;
- points are rounded to the nearest pixel, not up, and pictures always use all grey values;
- a picture is a function of seed and index, in every process and for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramixer import _C
from paramixer._checks import check_choice
from paramixer._extras import needs_extra
from paramixer.tasks.files import Record, replacing
from paramixer.tasks.generators import MOST_63, check_range, check_run

CLASSES = 2
SIZES = (16, 32, 64, 128, 256)
FOLDERS = {  # of each difficulty
    "easy": "curv_baseline",
    "medium": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
LRA_COUNT = 200_000  # pictures of each difficulty
BATCH = 1_000  # pictures of a folder; readers split the data by these

_CHUNK = 100  # so that Ctrl-C is noticed soon


def options(size: int, difficulty: str) -> _C.PathfinderOptions:
    """The settings for a size and a difficulty, whose attributes can be set.

    Args:
        size: of the square picture in pixels, one of `SIZES`.
        difficulty: "easy", "medium" or "hard": paths of 6, 9 or 14 segments (16 pixels: 3, 4, 5).

    Returns:
        size, padding, antialias, segment_length, thickness, margins, continuity, seed_distance,
        marker_radius, contour_length, distractor_length, distractors, path_contrast,
        distractor_contrast; csrc/generators/pathfinder.h says what they mean.

    Raises:
        ValueError: it is none of these sizes and difficulties.
    """
    if size not in SIZES:
        raise ValueError(f"pathfinder: size must be one of {SIZES} (got {size!r})")
    check_choice("pathfinder", "difficulty", difficulty, FOLDERS)
    return _C.pathfinder_options(size, difficulty)


def generate(
    count: int,
    options: _C.PathfinderOptions,
    *,
    seed: int = 0,
    first: int = 0,
    threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32]]:
    """Pictures `first` .. `first + count - 1` of the endless sequence of these options and seed.

    Args:
        count: of pictures, n.
        options: from `options`.
        seed: 0 .. 2^64 - 1.
        first: the first picture; any cut of the sequence into calls gives the same pictures.
        threads: by default one for every processor; the pictures do not depend on it.

    Returns:
        Pictures (n, size, size) uint8, labels (n,) uint8, and the margin around the segments of
        each picture (n,) int32.

    Raises:
        TypeError: an integer is none.
        ValueError: an argument is out of its range; the message names argument, rule and value.
        RuntimeError: the two paths find no place in a hundred thousand tries.
    """
    seed, first, count, threads = check_run("pathfinder", seed, first, count, threads)
    return _C.pathfinder(options, seed=seed, first=first, count=count, threads=threads)


def write(
    folder: Path,
    size: int,
    difficulty: str,
    count: int = LRA_COUNT,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda pictures: None,
) -> Record:
    """Writes `imgs/<b>/sample_<k>.png` and `metadata/<b>.npy`, or what is missing of them.

    Below `folder`, in `pathfinder<size>/<FOLDERS[difficulty]>`. A batch b has `BATCH` pictures. The
    metadata are text, as in the release: a line for each picture with folder, file, number, label,
    continuity, segments of the paths, segments of the distractors, length, thickness and margin of
    a segment, and the number of contrasts.

    Args:
        folder: of the release.
        size: in pixels.
        difficulty: see `options`.
        count: of pictures.
        seed: of the sequence.
        threads: see `generate`.
        progress: is told how many pictures more are done.

    Returns:
        The record of the difficulty's folder; its `parts` hold for every metadata file the number
        of samples and the count of each label.

    Raises:
        ImportError: Pillow is missing.
        ValueError: the folder holds something else, or an argument is out of its range.
    """
    count = check_range("pathfinder", "count", count, 0, MOST_63)
    check_run("pathfinder", seed, 0, 0, threads)
    chosen = options(size, difficulty)
    with needs_extra("pathfinder.write", "train"):
        import PIL.Image  # noqa: F401
    parameters = {"task": "pathfinder", "size": size, "difficulty": difficulty, "seed": seed}
    place = folder / f"pathfinder{size}" / FOLDERS[difficulty]
    record = Record(place, {**parameters, "count": count, "batch": BATCH})
    for name in ("imgs", "metadata"):
        (place / name).mkdir(exist_ok=True)
    for batch, first in enumerate(range(0, count, BATCH)):
        pictures = min(BATCH, count - first)
        if _is_complete(record, batch, pictures):
            progress(pictures)
            continue
        labels = _write_batch(
            place, batch, range(first, first + pictures), chosen, seed, threads, progress
        )
        counts = np.bincount(labels, minlength=CLASSES).tolist()
        record.complete(_metadata(batch), {"samples": pictures, "labels": counts})
    return record


def _metadata(batch: int) -> str:
    return f"metadata/{batch}.npy"


def _is_complete(record: Record, batch: int, pictures: int) -> bool:
    images = record.folder / "imgs" / str(batch)
    return (
        record.is_complete(_metadata(batch))
        and images.is_dir()
        and sum(1 for _ in images.iterdir()) == pictures
    )


def _write_batch(
    place: Path,
    batch: int,
    indices: range,
    options: _C.PathfinderOptions,
    seed: int,
    threads: int | None,
    progress: Callable[[int], None],
) -> list[int]:
    """Labels of the batch. The metadata come last: what they name is there."""
    from PIL import Image

    rows: list[Sequence[Any]] = []
    with replacing(place / "imgs" / str(batch)) as images:
        images.mkdir()
        for start in range(0, len(indices), _CHUNK):
            part = indices[start : start + _CHUNK]
            samples = generate(len(part), options, seed=seed, first=part.start, threads=threads)
            for picture, label, margin in zip(*samples, strict=True):
                name = f"sample_{len(rows)}.png"
                Image.fromarray(picture).save(images / name)
                rows.append(_metadata_row(batch, name, len(rows), label, margin, options))
            progress(len(part))
    with replacing(place / _metadata(batch)) as temporary:
        temporary.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    return [row[3] for row in rows]


def _metadata_row(
    batch: int, name: str, number: int, label: int, margin: int, options: _C.PathfinderOptions
) -> Sequence[Any]:
    paths = (options.continuity, options.contour_length, options.distractor_length)
    segments = (options.segment_length, options.thickness, margin)
    contrasts = 1
    return (f"imgs/{batch}", name, number, int(label), *paths, *segments, contrasts)
