"""Temporal order: two signs lie somewhere in a long sequence; which came first, which second?

As published with PSF-Attn (Khalitov et al., 2022) and Paramixer (Yu et al., CVPR 2022): symbols
uniform in 0 .. 3; at two distinct places, drawn uniformly, an independent choice between the signs
4 (X) and 5 (Y); the classes XX, XY, YX, YY are 0 .. 3. (In the classical task the places are drawn
from windows.) Every symbol is data: there is no padding, all samples are equally long.
"""

from __future__ import annotations

from functools import partial
from typing import SupportsIndex

import torch

from paramixer.tasks.generators import check_range
from paramixer.tasks.synthetic import MOST_LENGTH, Draw, generated_parts, integers, two_places
from paramixer.tasks.task import Classes, Counts, Sample, Task, Tokens, published

SYMBOLS = ("a", "b", "c", "d", "X", "Y")
CLASSES = 4
LEAST_LENGTH = 32  # so that two samples of any parts practically never agree
PAPER_COUNTS = Counts(100_000, 1_000, 1_000)

_FLOORS = {"any class": 25.0, "signs counted, their order unknown": 75.0}
_FIRST_SIGN = 4


def temporal_order(
    length: SupportsIndex = 128,
    counts: Counts = PAPER_COUNTS,
    *,
    seed: SupportsIndex = 0,
    fresh: bool = False,
) -> Task:
    """The task at one length; nothing is stored.

    Args:
        length: N, 32 .. 2^24; published for 2^7 .. 2^14.
        counts: samples of each part; the default is Paramixer's, PSF-Attn used 200,000 / 5,000 /
            5,000.
        seed: 0 .. 2^64 - 1.
        fresh: whether every training epoch has samples of its own (see `Generated.set_epoch`).

    Returns:
        x (N,) int64 in 0 .. 5; y () int64 in 0 .. 3.

    Raises:
        TypeError: an integer is none.
        ValueError: an argument is out of its range.
    """
    length = check_range("temporal_order", "length", length, LEAST_LENGTH, MOST_LENGTH)
    make = partial(_sample, length)
    return Task(
        name="temporal_order",
        variant="paramixer",
        input=Tokens(len(SYMBOLS), symbols=SYMBOLS),
        output=Classes(CLASSES),
        length=length,
        floors=_FLOORS,
        published=published("temporal_order", length=length),
        comparable_to="PSF-Attn and Paramixer",
        parts=generated_parts("temporal_order", lambda _: make, length, counts, seed, fresh),
    )


def _sample(length: int, draw: Draw) -> Sample:
    words = draw(length + 4)
    signs = integers(words[2:4], 2)
    x = integers(words[4:], _FIRST_SIGN)
    x[two_places(words[:2], length)] = _FIRST_SIGN + signs
    return Sample(torch.from_numpy(x), torch.tensor(int(2 * signs[0] + signs[1])))
