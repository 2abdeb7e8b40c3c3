"""ListOps: nested list operations over digits; the label is the value, 0 .. 9.

Expressions are drawn by the rules of the Long Range Arena (its `listops.py`, after Nangia and
Bowman, 2018): above `max_depth` a node is an operator with probability 1/4, with 2 .. `max_args`
children, each of them such a node; expressions whose length is not between `min_length` and
`max_length` are drawn again. `write` makes the files of the official release. The same seed gives
the same samples in every process and for any number of threads; the official script cuts its parts
from a Python set, whose order differs from run to run: nobody can make the released files again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paramixer import _C
from paramixer.tasks.files import Record, replacing, sample_facts
from paramixer.tasks.generators import MOST_32, MOST_63, check_range, check_run
from paramixer.tasks.task import Counts

CLASSES = 10
TOKENS = _C.LISTOPS_TOKENS
HEADER = b"Source\tTarget\r\n"  # the official script writes by Python's csv, whose lines end so

_CHUNK = 2000
_FRUITLESS_CHUNKS = 20


@dataclass(frozen=True)
class Grammar:
    """What expressions are drawn from; the defaults are the Long Range Arena's.

    Attributes:
        max_depth: the root is at depth 1, and at `max_depth` there are only digits.
        max_args: an operator has 2 .. max_args arguments, equally likely.
        min_length: all expressions have more tokens: operators, digits and closing brackets.
        max_length: all expressions have fewer tokens.
        operator_probability: of being an operator, for every node above `max_depth`.
        operators: equally likely, of MIN, MAX, MED (the median, cut to an integer) and SM (the sum
            modulo 10).
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000
    operator_probability: float = 0.25
    operators: tuple[str, ...] = ("MIN", "MAX", "MED", "SM")


class Preset(NamedTuple):
    """A named data set."""

    grammar: Grammar
    counts: Counts


PRESETS = {
    "lra": Preset(Grammar(), Counts(96_000, 2_000, 2_000)),
    "mini": Preset(
        Grammar(max_depth=5, max_args=5, min_length=16, max_length=64),
        Counts(30_000, 1_000, 2_000),
    ),
    "mini-128": Preset(
        Grammar(max_depth=6, max_args=5, min_length=32, max_length=128),
        Counts(30_000, 1_000, 2_000),
    ),
}

FILES = ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv")  # of the parts of Counts


def generate(
    count: int,
    grammar: Grammar = PRESETS["lra"].grammar,
    *,
    seed: int = 0,
    first: int = 0,
    threads: int | None = None,
) -> _C.ListOpsSamples:
    """Samples `first` .. `first + count - 1` of the endless sequence that grammar and seed define.

    Args:
        count: of samples, n.
        grammar: what they are drawn from.
        seed: 0 .. 2^64 - 1.
        first: the first sample; any cut of the sequence into calls gives the same samples.
        threads: by default one for every processor; the samples do not depend on it.

    Returns:
        `tokens` uint8, indices into `TOKENS`, one expression behind the other; `offsets` (n + 1,)
        int64, where each begins; `labels` (n,) uint8; `depths` (n,) uint8, the most operators
        around one digit; `rows(chosen)`, the lines of the official files as bytes. Every access to
        an array copies it.

    Raises:
        TypeError: an integer is none.
        ValueError: an argument is out of its range, or no expression is as long as the grammar
            wants; the message names argument, rule and value.
        RuntimeError: a million draws brought no expression of a fitting length.
    """
    seed, first, count, threads = check_run("listops", seed, first, count, threads)
    return _C.listops(
        seed=seed,
        first=first,
        count=count,
        threads=threads,
        max_depth=check_range("listops", "max_depth", grammar.max_depth, 1, 255),
        max_args=check_range("listops", "max_args", grammar.max_args, 2, MOST_32),
        min_length=check_range("listops", "min_length", grammar.min_length, 0, MOST_63 - 2),
        max_length=check_range("listops", "max_length", grammar.max_length, 0, MOST_63),
        operator_probability=grammar.operator_probability,
        operators=list(grammar.operators),
    )


def write(
    folder: Path,
    preset: Preset = PRESETS["lra"],
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Record:
    """Writes `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv`, or what is missing of them.

    All samples are distinct, as in the official script: those that occurred before are left out.
    The parts follow one another in the sequence that grammar and seed define.

    Args:
        folder: is created; must be empty or hold what the same call began.
        preset: the grammar, and how many samples each part gets.
        seed: of the sequence.
        threads: see `generate`.
        progress: is told how many samples more are done.

    Returns:
        The record of the folder; its `parts` hold for every file the number of samples, the count
        of each label, and mean and quantiles of the lengths.

    Raises:
        ValueError: the folder holds something else, an argument is out of its range, or the grammar
            has too few different expressions.
    """
    grammar, counts = preset
    for name, count in counts._asdict().items():
        check_range("listops", name, count, 0, MOST_63)
    check_run("listops", seed, 0, 0, threads)
    generate(0, grammar)  # refuses an impossible grammar before a folder is made
    record = Record(
        folder, {"task": "listops", "seed": seed, **asdict(grammar), **counts._asdict()}
    )
    if all(map(record.is_complete, FILES)):
        progress(sum(counts))
        return record
    draws = _Distinct(
        lambda first: generate(_CHUNK, grammar, seed=seed, first=first, threads=threads)
    )
    for file, count in zip(FILES, counts, strict=True):
        if record.is_complete(file):
            for _, chosen in draws.take(count):  # the next part must not repeat them
                progress(len(chosen))
        else:
            record.complete(file, _write_part(folder / file, draws.take(count), progress))
    return record


def decode(source: str) -> str:
    """An expression of an official file without its parentheses: "[MAX 1 4 ]"."""
    return " ".join(word for word in source.split() if word not in "()")


_Piece = tuple[_C.ListOpsSamples, list[int]]


class _Distinct:
    """Takes the samples of a sequence in their order, without repetitions."""

    def __init__(self, draw: Callable[[int], _C.ListOpsSamples]):
        self._draw = draw
        self._next = 0
        self._seen: set[bytes] = set()
        self._fresh: list[int] = []
        self._samples: _C.ListOpsSamples | None = None

    def take(self, count: int) -> Iterator[_Piece]:
        """Pieces of samples, and which of them to use, `count` together."""
        while count > 0:
            if self._samples is None or not self._fresh:
                self._samples, self._fresh = self._draw_fresh()
            chosen, self._fresh = self._fresh[:count], self._fresh[count:]
            count -= len(chosen)
            yield self._samples, chosen

    def _draw_fresh(self) -> _Piece:
        for _ in range(_FRUITLESS_CHUNKS):
            samples = self._draw(self._next)
            self._next += _CHUNK
            fresh = [i for i, key in enumerate(_keys(samples)) if self._is_new(key)]
            if fresh:
                return samples, fresh
        raise ValueError(
            f"listops: counts must not exceed the grammar's different expressions (got "
            f"{len(self._seen)} in {self._next} draws); lower them, or widen the grammar"
        )

    def _is_new(self, key: bytes) -> bool:
        before = len(self._seen)
        self._seen.add(key)
        return len(self._seen) > before


def _keys(samples: _C.ListOpsSamples) -> Iterator[bytes]:
    tokens, offsets = samples.tokens.tobytes(), samples.offsets.tolist()
    for start, end in pairwise(offsets):
        yield hashlib.blake2b(tokens[start:end], digest_size=16).digest()


def _write_part(
    path: Path, pieces: Iterator[_Piece], progress: Callable[[int], None]
) -> dict[str, object]:
    lengths, labels = [np.empty(0, np.int64)], [np.empty(0, np.uint8)]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(HEADER)
        for samples, chosen in pieces:
            file.write(samples.rows(chosen))
            lengths.append(np.diff(samples.offsets)[chosen])
            labels.append(samples.labels[chosen])
            progress(len(chosen))
    return sample_facts(np.concatenate(lengths), np.concatenate(labels), CLASSES)
