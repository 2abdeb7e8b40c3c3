"""Fly DNA: is a window of the genome real, or were its letters shuffled?

The windows lie before genes of Drosophila melanogaster (genome dm3), in Debian's
r-bioc-biostrings. Parts are chromosomes: 2L, 2R and 3R train, 3L validation, X and 4 test; windows
do not overlap, and each is in one part with its own shuffle.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramixer._checks import check_choice
from paramixer.tasks.draws import bits
from paramixer.tasks.mini import FOLDER, TEST, TRAIN, VALIDATION, Samples, mini_task
from paramixer.tasks.packages import of_debian
from paramixer.tasks.stored import Reading
from paramixer.tasks.task import Task, Tokens

VARIANTS = {
    "256": "256 letters against the same in random order",
    "512-pairs": "512 letters against an order with as many of each pair of neighbours: harder",
}
LETTERS = "acgt"
PARTS = {"2L": TRAIN, "2R": TRAIN, "3R": TRAIN, "3L": VALIDATION, "X": TEST, "4": TEST}
CLASSES = 2

_PACKAGE = of_debian("r-bioc-biostrings")
_FILE = "usr/lib/R/site-library/Biostrings/extdata/dm3_upstream2000.fa.gz"
_HEADER = re.compile(r">\S+ chr(\w+):(-?\d+)-(\d+)")
_WINDOWS = 2  # of a sequence, those next to its gene


def mini_dna(folder: str | Path = FOLDER, variant: str = "256", **options: Any) -> Task:
    """Is a window of fly DNA real, or are its letters shuffled?

    Args:
        folder: see `paramixer.tasks.mini`.
        variant: one of `VARIANTS`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (256,) or (512,) int64 in 0 .. 3, y () int64, 1 for real; about 25,500 / 8,100 / 7,200.
    """
    check_choice("mini_dna", "variant", variant, VARIANTS)
    length = int(variant.partition("-")[0])
    shuffled = shuffled_pairs if variant == "512-pairs" else shuffled_letters

    def read(contents: Mapping[str, bytes]) -> Samples:
        sequences, parts = [], []
        for number, (part, window) in enumerate(_windows(contents[_FILE], length)):
            sequences += [(window,), (shuffled(window, number),)]
            parts += [part, part]
        return Samples(sequences, np.tile([1, 0], len(parts) // 2), np.array(parts))

    return mini_task(
        "mini-dna",
        variant,
        folder,
        _PACKAGE,
        [_FILE],
        read,
        Reading(torch.arange(len(LETTERS)), length),
        Tokens(len(LETTERS), symbols=tuple(LETTERS)),
        CLASSES,
        **options,
    )


def shuffled_letters(window: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """The same letters in the random order of that number, (n,)."""
    return window[np.argsort(bits(len(window), seed=0, index=number), kind="stable")]


def shuffled_pairs(window: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """The same pairs of neighbours in a random order, (n,), after Altschul and Erickson (1985).

    Letters are the nodes of a graph, pairs its edges, and the window is a path along all of them.
    Another such path exists for every order of the edges in which the last ones to leave the
    letters lead to the letter at which the window ends; orders are drawn until one does.
    """
    end = window[-1]
    followers = [window[1:][window[:-1] == letter] for letter in range(len(LETTERS))]
    for attempt in range(2**16):
        words = bits(len(window) - 1, seed=0, epoch=1 + attempt, index=number)
        pieces = np.split(words, np.cumsum([len(one) for one in followers])[:-1])
        order = [
            one[np.argsort(piece, kind="stable")]
            for one, piece in zip(followers, pieces, strict=True)
        ]
        if _all_lead_to(end, order):
            return _path(window[0], order)
    raise RuntimeError(f"mini_dna: window {number} has no other order of its pairs")


def _all_lead_to(end: int, order: list[NDArray]) -> bool:
    """Whether the last edges of all letters that have any lead to the end."""
    for start, edges in enumerate(order):
        letter = start
        for _ in order:
            if letter != end and len(edges) > 0:
                letter = order[letter][-1]
        if letter != end and len(edges) > 0:
            return False
    return True


def _path(start: int, order: list[NDArray]) -> NDArray[np.uint8]:
    edges = [iter(letters.tolist()) for letters in order]
    path = [int(start)]
    while (following := next(edges[path[-1]], None)) is not None:
        path.append(following)
    return np.array(path, dtype=np.uint8)


def _windows(data: bytes, length: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Part and letters of every window, along the chromosomes."""
    table = np.full(256, len(LETTERS), dtype=np.uint8)
    table[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = range(len(LETTERS))
    end = ("", 0)
    for chromosome, first, last, text in sorted(_sequences(data)):
        if chromosome not in PARTS or (chromosome == end[0] and first <= end[1]):
            continue
        end = (chromosome, last)
        letters = table[np.frombuffer(text.encode(), dtype=np.uint8)]
        for number in range(_WINDOWS):
            window = letters[len(letters) - (number + 1) * length :][:length]
            if len(window) == length and (window < len(LETTERS)).all():
                yield PARTS[chromosome], window


def _sequences(data: bytes) -> Iterator[tuple[str, int, int, str]]:
    """Chromosome, first and last place, and letters."""
    for record in gzip.decompress(data).decode().split("\n>"):
        header, _, lines = record.partition("\n")
        found = _HEADER.match(f">{header.removeprefix('>')}")
        if found is None:
            raise ValueError(f"mini_dna: headers must name a place on a chromosome (got {header})")
        yield found[1], int(found[2]), int(found[3]), lines.replace("\n", "").lower()
