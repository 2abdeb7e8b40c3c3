"""The official files of the Long Range Arena: where they may lie, and how they are read.

The variants of every task here:

    "honest"     the default: true lengths and masks, no two parts share a sample, number 0 is
                 padding and never data
    "lra"        what the rows of the Long Range Arena's own README were measured on
    "s4"         what S4 and its successors (S5, SGConv, Mega) were measured on
    "paramixer"  what Paramixer and PSF-Attn were measured on

Every function that makes one takes

    folder      the release, outer or inner, or the task's own folder
    variant     one of its module's `VARIANTS`, which says what each may be compared with
    stores      folder of the store that the files are read into; by default inside the data's
    progress    is told how many samples more are read, if there is no store yet

and raises FileNotFoundError if the files are not there, with all places that it looked into, and
ValueError if a file is malformed or the variant is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramixer.tasks.store import Store
from paramixer.tasks.task import published

RELEASE = (
    "lra_release.gz of github.com/google-research/long-range-arena, an archive that "
    "`tar xf lra_release.gz` unpacks"
)

Encoder = Callable[[bytes], NDArray]
"""Makes the stored tokens of a text."""

_NESTED = ("lra_release/lra_release", "lra_release", "")  # innermost first: see lra_pathfinder
_SPECIAL = ("<pad>", "<unk>", "<eos>")
EOS = 2


def find_folder(
    task: str, folder: Path, names: Sequence[str], required: Collection[str], origin: str
) -> Path:
    """The folder that holds all required files, inside `folder` or one that it contains.

    Args:
        task: for the message.
        folder: the outer or the inner folder of the release, or the task's own.
        names: of the task's folder, in the release and in others' renamings of it.
        required: files or folders that it must hold.
        origin: where the data come from, for the message.

    Raises:
        FileNotFoundError: there is none; the message names all folders that were looked into.
    """
    looked = [folder / nested / name for nested in _NESTED for name in (*names, "")]
    for place in looked:
        if all((place / one).exists() for one in required):
            return place
    raise FileNotFoundError(
        f"{task}: folder must be, or contain, one with {', '.join(required)} (got {folder}; looked "
        f"into {', '.join(str(place) for place in looked)}). The data come from {origin}."
    )


def comparison(name: str, variant: str, variants: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a `Task` that say what a variant of the released data may be compared with."""
    return {
        "published": published(name, None if variant == "honest" else variant),
        "comparable_to": variants[variant],
    }


def table_rows(task: str, path: Path, columns: int) -> Iterator[tuple[int, list[bytes]]]:
    """Line number and columns of every line of a file of tab-separated columns without quoting.

    Raises:
        ValueError: a line has another number of columns.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            cells = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
            if len(cells) != columns:
                raise ValueError(
                    f"{task}: {path}, line {number} must have {columns} columns separated by tabs "
                    f"(got {len(cells)})"
                )
            yield number, cells


def read_label(task: str, where: object, text: str | bytes | int, classes: int) -> int:
    """A label of a file, which may be written as a float; ValueError unless 0 .. classes - 1."""
    try:
        label = float(text)
    except ValueError:
        label = -1
    if label not in range(classes):
        raise ValueError(f"{task}: {where}: label must be in 0 .. {classes - 1} (got {text!r})")
    return int(label)


def character_tokens(text: bytes) -> NDArray[np.uint16]:
    """(n,) the code points of a text in UTF-8; 65,535 for all above, U+FFFD for invalid bytes."""
    points = np.frombuffer(text.decode(errors="replace").encode("utf-32-le"), dtype=np.uint32)
    return np.minimum(points, 2**16 - 1).astype(np.uint16)


def character_table(
    store: Store, least_count: int, group: int = 0
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Numbers for characters as S4 gives them, and what the numbers mean.

    0 is padding, 1 an unknown character, 2 the end; then those that occur at least `least_count`
    times in the group of the training part, the most frequent first.
    """
    counts = store.arrays["histogram"][group]
    known = np.flatnonzero(counts >= least_count)
    known = known[np.argsort(-counts[known], kind="stable")]
    table = torch.ones(len(counts), dtype=torch.int64)
    table[torch.from_numpy(known)] = torch.arange(len(_SPECIAL), len(_SPECIAL) + len(known))
    return table, (*_SPECIAL, *map(chr, known.tolist()))


def grey_table(variant: str, mean: float, deviation: float) -> torch.Tensor:
    """(256,) what grey values become: 1 .. 256, for "lra" and "paramixer" 0 .. 255, "s4" reals."""
    grey = torch.arange(256)
    if variant == "s4":
        return (grey / 255 - mean) / deviation
    return grey + (variant == "honest")


def random_rows(count: int, sizes: Iterable[int]) -> list[NDArray[np.int64]]:
    """0 .. count - 1 in random parts of these sizes, as PyTorch's `random_split` with seed 42."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(42)).numpy()
    return np.split(order, np.cumsum(list(sizes))[:-1])
