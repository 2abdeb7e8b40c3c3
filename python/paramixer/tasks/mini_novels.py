"""Passages of Jane Austen's six novels as bytes: small stand-ins for Text and Retrieval.

The novels are in Debian's r-cran-janeaustenr. Passages are cut from chapters without overlap; a
chapter is in one part as a whole, and the line that numbers it in none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramixer.tasks.draws import permutation
from paramixer.tasks.mini import FOLDER, Samples, deal, mini_task
from paramixer.tasks.packages import of_debian
from paramixer.tasks.rdata import read_object
from paramixer.tasks.stored import BYTES, byte_reading, byte_tokens
from paramixer.tasks.task import Task

NOVELS = (
    "emma",
    "mansfieldpark",
    "northangerabbey",
    "persuasion",
    "prideprejudice",
    "sensesensibility",
)

_PACKAGE = of_debian("r-cran-janeaustenr")
_FILES = [f"usr/lib/R/site-library/janeaustenr/data/Rdata.{end}" for end in ("rdx", "rdb")]
_HEADING = re.compile(rb"(chapter|volume) ([ivxl]+|\d+)\.?\s*", re.IGNORECASE)
_TEXT_LENGTH, _RETRIEVAL_LENGTH = 1024, 512


class Passages(NamedTuple):
    """Pieces of novels.

    Attributes:
        texts: equally long.
        novels: (n,) which novel each is from.
        parts: (n,) the part of its chapter.
    """

    texts: list[bytes]
    novels: NDArray[np.int64]
    parts: NDArray[np.int64]


def mini_text(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Which novel is a passage from?

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (1024,) int64, bytes + 1; y () int64, the number in `NOVELS`; about 70 / 10 / 20 % of
        3,800.
    """

    def read(contents: Mapping[str, bytes]) -> Samples:
        passages = _passages(contents, _TEXT_LENGTH)
        texts = [(byte_tokens(text),) for text in passages.texts]
        return Samples(texts, passages.novels, passages.parts)

    return mini_task(
        "mini-text",
        "mini",
        folder,
        _PACKAGE,
        _FILES,
        read,
        byte_reading(_TEXT_LENGTH),
        BYTES,
        len(NOVELS),
        **options,
    )


def mini_retrieval(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Are two passages from the same novel?

    Every passage is the first of two pairs, one of each class; both passages are of one part.

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x, a pair of (512,) int64, bytes + 1; y () int64, 1 for the same novel; about 70 / 10 / 20 %
        of 15,400.
    """
    return mini_task(
        "mini-retrieval",
        "mini",
        folder,
        _PACKAGE,
        _FILES,
        lambda contents: _pairs(_passages(contents, _RETRIEVAL_LENGTH)),
        byte_reading(_RETRIEVAL_LENGTH),
        BYTES,
        2,
        sequences=2,
        **options,
    )


def _passages(contents: Mapping[str, bytes], length: int) -> Passages:
    texts, novels, chapters = [], [], []
    for novel, name in enumerate(NOVELS):
        for chapter, text in enumerate(_chapters(read_object(name, *contents.values()))):
            for start in range(0, len(text) - length + 1, length):
                texts.append(text[start : start + length])
                novels.append(novel)
                chapters.append(f"{name} {chapter}")
    parts = deal(np.array(novels), 0.1, 0.2, groups=np.array(chapters))
    return Passages(texts, np.array(novels), parts)


def _chapters(lines: Sequence[bytes]) -> list[bytes]:
    """The texts between the headings; what stands before the first is a title."""
    chapters: list[list[bytes]] = [[]]
    for line in lines:
        if _HEADING.fullmatch(line):
            chapters.append([])
        else:
            chapters[-1].append(line)
    return [b"\n".join(chapter).strip() for chapter in chapters[1:]]


def _pairs(passages: Passages) -> Samples:
    sequences, labels, parts = [], [], []
    order = permutation(len(passages.texts), seed=0)
    for same in (0, 1):
        for first, second in _partners(passages, order, same):
            sequences.append(tuple(byte_tokens(passages.texts[row]) for row in (first, second)))
            labels.append(same)
            parts.append(passages.parts[first])
    return Samples(sequences, np.array(labels), np.array(parts))


def _partners(passages: Passages, order: NDArray, same: int) -> list[tuple[int, int]]:
    """For every passage, the next one in random order of its part and of its or another novel."""
    pairs = []
    for part in np.unique(passages.parts):
        rows = order[passages.parts[order] == part]
        novels = passages.novels[rows]
        for place, row in enumerate(rows):
            others = np.roll(rows, -place)[1:]
            fits = (np.roll(novels, -place)[1:] == novels[place]) == same
            pairs.append((int(row), int(others[fits.argmax()])))
    return pairs
