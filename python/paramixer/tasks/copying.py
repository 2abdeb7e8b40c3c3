"""Copying: remember a few symbols through a long silence and write them down at its end.

The memory task of Hochreiter and Schmidhuber (1997) in the form of Arjovsky et al. (2016), which S4
uses too: `memorized` symbols out of `alphabet`, blanks, and `memorized` markers, at which the
symbols are asked for in their order. With `scattered` the symbols stand anywhere before the
markers, in the same order ("variable" in S4).
"""

from __future__ import annotations

import zlib
from functools import partial
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray

from paramixer.tasks.generators import check_range
from paramixer.tasks.synthetic import MOST_LENGTH, Draw, generated_parts, integers
from paramixer.tasks.task import Classes, Counts, Sample, Task, Tokens, published

DEFAULT_COUNTS = Counts(100_000, 1_000, 1_000)

_TRIES = 400  # of 1/10 each: one seed in 10^18 has no sample of its part among them


def copying(
    length: SupportsIndex = 128,
    counts: Counts = DEFAULT_COUNTS,
    *,
    memorized: SupportsIndex = 10,
    alphabet: SupportsIndex = 8,
    scattered: bool = False,
    seed: SupportsIndex = 0,
    fresh: bool = False,
) -> Task:
    """The task at one length; nothing is stored.

    A checksum of the symbols decides which part a sample belongs to (test 1/10, validation 1/10),
    so no part asks for what another one taught.

    Args:
        length: N, at least 3 `memorized`, at most 2^24.
        counts: samples of each part.
        memorized: symbols to remember, M, 4 .. 1,024.
        alphabet: different symbols, 4 .. 250.
        scattered: whether they stand anywhere instead of at the beginning.
        seed: 0 .. 2^64 - 1.
        fresh: whether every training epoch has samples of its own (see `Generated.set_epoch`).

    Returns:
        x (N,) int64: symbols 0 .. alphabet - 1, blank alphabet, marker alphabet + 1; y (M,) int64,
        what the last M positions should say.

    Raises:
        TypeError: an integer is none.
        ValueError: an argument is out of its range.
    """
    memorized = check_range("copying", "memorized", memorized, 4, 1024)
    alphabet = check_range("copying", "alphabet", alphabet, 4, 250)
    length = check_range("copying", "length", length, 3 * memorized, MOST_LENGTH)
    symbols = (*(str(symbol) for symbol in range(alphabet)), "blank", "marker")
    return Task(
        name="copying",
        variant="scattered" if scattered else "standard",
        input=Tokens(alphabet + 2, symbols=symbols),
        output=Classes(alphabet, positions=memorized),
        length=length,
        floors={"any symbol": 100 / alphabet},
        published=published("copying"),
        parts=generated_parts(
            "copying",
            lambda part: partial(_sample, length, memorized, alphabet, scattered, part),
            length,
            counts,
            seed,
            fresh,
        ),
    )


def _sample(
    length: int, memorized: int, alphabet: int, scattered: bool, part: int, draw: Draw
) -> Sample:
    silent = length - memorized
    words = draw(silent * scattered + _TRIES * memorized)
    symbols = _symbols_of(part, integers(words[-_TRIES * memorized :], alphabet), memorized)
    places = np.sort(np.argsort(words[:silent])[:memorized]) if scattered else slice(memorized)
    x = np.full(length, alphabet, dtype=np.int64)
    x[silent:] = alphabet + 1
    x[places] = symbols
    return Sample(torch.from_numpy(x), torch.from_numpy(symbols.copy()))


def _symbols_of(part: int, drawn: NDArray[np.int64], memorized: int) -> NDArray[np.int64]:
    """The first row of symbols that belongs to the part."""
    for symbols in drawn.reshape(-1, memorized):
        tenth = zlib.crc32(symbols.astype(np.uint8).tobytes()) % 10
        if part == {8: 1, 9: 2}.get(tenth, 0):
            return symbols
    raise RuntimeError("copying: no sample of this part was drawn; choose another seed")
