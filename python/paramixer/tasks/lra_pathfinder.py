"""Pathfinder and Path-X from the official files: do two discs lie on the same dashed path?

Folders `pathfinder32`, 64, 128 and 256 of the release, or those that `paramixer.tasks.pathfinder`
writes: pictures `imgs/<b>/sample_<k>.png`, and their labels in `metadata/<b>.npy`, which is text in
the release and a NumPy array from the original generator. Path-X is the hard part of 128 pixels;
the release contains a copy of it that cannot be learnt beside the right one in the inner folder
`lra_release/lra_release`, which is therefore preferred here. Empty pictures (the release has one)
are left out and counted.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramixer._checks import check_choice
from paramixer._extras import needs_extra
from paramixer.tasks.draws import permutation
from paramixer.tasks.lra_release import (
    RELEASE,
    comparison,
    find_folder,
    grey_table,
    random_rows,
    read_label,
)
from paramixer.tasks.pathfinder import CLASSES, FOLDERS
from paramixer.tasks.store import Content, Row, Store, prepare
from paramixer.tasks.stored import Reading, store_path, stored_task
from paramixer.tasks.task import Reals, Task, Tokens

VARIANTS = {
    "honest": "the rows of lra, and of s4 but for its real-valued pixels: hard pictures, 80/10/10",
    "lra": "Long Range Arena's own rows: as honest, but black is token 0 (their attention hides "
    "black pixels as if they were padding, this does not; their order is unpublished)",
    "s4": "S4 and successors: real values in [-1, 1]; parts as theirs",
    "paramixer": "Paramixer and PSF-Attn alone: all difficulties of 32 pixels mixed, of each the "
    "first 10 metadata files test, the next 10 validation; tokens are the grey values that occur",
}

_ORIGIN = f"{RELEASE}; `python scripts/make_data.py pathfinder` makes similar ones"
_NAMES = {32: "pathfinder", 128: "path-x"}
_FILES_OF_A_PART = 10
_FILES = 1000  # of one difficulty, at most
_NUMPY = b"\x93NUMPY"


def lra_pathfinder(
    folder: str | Path,
    variant: str = "honest",
    *,
    size: int = 32,
    stores: Path | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Task:
    """Reads pictures and labels, or a store made from them before.

    Arguments and errors are those of `lra_release`, and `size`, of the pictures in pixels: 32 is
    Pathfinder, 128 Path-X. ImportError is raised if Pillow is missing, ValueError for "paramixer"
    with another size than 32.

    Returns:
        x (size^2,) int64, grey values + 1; in "lra" grey values, in "paramixer" the numbers of
        those that occur; in "s4" (size^2, 1) float32. y () int64, 1 for the same path. `facts` has
        the number of "empty pictures".
    """
    check_choice("lra_pathfinder", "variant", variant, VARIANTS)
    if variant == "paramixer" and size != 32:
        raise ValueError(f'lra_pathfinder: size must be 32 for variant "paramixer" (got {size})')
    mixed = variant == "paramixer"
    difficulties = list(FOLDERS.values()) if mixed else [FOLDERS["hard"]]
    names = (f"pathfinder{size}", f"pathfinder/pathfinder{size}")
    required = [f"{difficulty}/metadata" for difficulty in difficulties]
    place = find_folder("lra_pathfinder", Path(folder), names, required, _ORIGIN)
    metadata = [_metadata_files(place / one) for one in required]
    images = [place / difficulty / "imgs" for difficulty in difficulties]
    store = prepare(
        store_path(place, stores, f"pathfinder{size}-{'mixed' if mixed else 'hard'}"),
        {"task": "pathfinder", "size": size, "difficulties": difficulties},
        [path for files in metadata for path in files] + _folders_in(images),
        lambda: _content(metadata, size),
        progress,
    )
    rows = _split(store, variant)
    reading, values = _reading(store, variant, size)
    name = _NAMES.get(size, f"pathfinder{size}")
    return stored_task(
        name,
        variant,
        store,
        rows,
        reading,
        values,
        CLASSES,
        **comparison(name, variant, VARIANTS),
    )


def lra_path_x(folder: str | Path, variant: str = "honest", **options: Any) -> Task:
    """Path-X: `lra_pathfinder` with 128 pixels, sequences of 16,384."""
    return lra_pathfinder(folder, variant, size=128, **options)


def _split(store: Store, variant: str) -> tuple[NDArray, NDArray, NDArray]:
    count = len(store.labels)
    if variant == "paramixer":
        tens = store.groups % _FILES // _FILES_OF_A_PART
        test, validation = np.flatnonzero(tens == 0), np.flatnonzero(tens == 1)
        return np.flatnonzero(tens > 1), validation, test
    tenth = count // 10
    if variant == "s4":
        train, validation, test = random_rows(count, [count - 2 * tenth, tenth, tenth])
        return train, validation, test
    order = permutation(count, seed=0)
    return order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth]


def _reading(store: Store, variant: str, size: int) -> tuple[Reading, Tokens | Reals]:
    if variant == "paramixer":
        occurs = torch.from_numpy(store.arrays["histogram"].sum(axis=0) > 0)
        return Reading(occurs.cumsum(0) - 1, size * size), Tokens(int(occurs.sum()))
    reading = Reading(grey_table(variant, mean=0.5, deviation=0.5), size * size)
    if variant == "s4":
        return reading, Reals(1)
    return reading, Tokens(257, padding=0) if variant == "honest" else Tokens(256)


def _metadata_files(folder: Path) -> list[Path]:
    """In the order of their numbers."""
    files = sorted(folder.glob("*.npy"), key=lambda path: (len(path.stem), path.stem))
    if not 1 <= len(files) <= _FILES:
        raise ValueError(
            f"lra_pathfinder: {folder} must have 1 .. {_FILES} files *.npy (got {len(files)})"
        )
    return files


def _folders_in(folders: list[Path]) -> list[Path]:
    return [one for folder in folders if folder.is_dir() for one in sorted(folder.iterdir())]


def _content(metadata: list[list[Path]], size: int) -> Content:
    """Groups are metadata files: those of difficulty d begin at number d * _FILES."""
    facts = {"empty pictures": 0}
    groups = [""] * (len(metadata) * _FILES)
    for difficulty, files in enumerate(metadata):
        for number, path in enumerate(files):
            groups[difficulty * _FILES + number] = f"{path.parent.parent.name}/{path.name}"
    return Content(_read(metadata, size, facts), groups, 256, facts=facts)


def _read(metadata: list[list[Path]], size: int, facts: dict[str, int]) -> Iterator[Row]:
    with needs_extra("lra_pathfinder", "train"):
        import PIL.Image  # noqa: F401
    for difficulty, files in enumerate(metadata):
        for number, path in enumerate(files):
            for row, columns in enumerate(_metadata_rows(path)):
                where = f"{path}, row {row}"
                if len(columns) < 4:
                    raise ValueError(
                        f"lra_pathfinder: {where} must have at least 4 columns (got {columns})"
                    )
                label = read_label("lra_pathfinder", where, columns[3], CLASSES)
                picture = _picture(path.parent.parent / columns[0] / columns[1], size)
                if picture is None:
                    facts["empty pictures"] += 1
                else:
                    yield Row((picture,), label, difficulty * _FILES + number)


def _metadata_rows(path: Path) -> Sequence[Sequence[str]]:
    """The columns of every line, or of every row of an array."""
    data = path.read_bytes()
    if not data.startswith(_NUMPY):
        return [line.split() for line in data.decode(errors="replace").splitlines() if line.strip()]
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"lra_pathfinder: {path} must be a plain array ({error})") from error
    return np.atleast_2d(table).astype(str).tolist()


def _picture(path: Path, size: int) -> NDArray[np.uint8] | None:
    """(size^2,) grey values; None if the file is empty."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.stat().st_size == 0:
            return None
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
    except (FileNotFoundError, UnidentifiedImageError, SyntaxError, OSError) as error:
        raise ValueError(f"lra_pathfinder: {path} must be a picture (got {error})") from error
    if grey.shape != (size, size):
        raise ValueError(
            f"lra_pathfinder: {path} must have {size} x {size} pixels (got {grey.shape})"
        )
    return grey.reshape(-1)
