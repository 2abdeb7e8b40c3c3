"""Temporal order: two signs lie somewhere in a long sequence; which came first, which second?

As published with PSF-Attn (Khalitov et al., 2022) and Paramixer (Yu et al., CVPR 2022): symbols
uniform in 0 .. 3; at two distinct places, drawn uniformly, an independent choice between the signs
4 (X) and 5 (Y); the classes XX, XY, YX, YY are 0 .. 3. (In the classical task the places are drawn
from windows.) Every symbol is data: there is no padding, all samples are equally long.
"""

from __future__ import annotations

from typing import SupportsIndex

import torch

from paramixer.tasks.synthetic import PAPER_COUNTS, Draw, integers, paper_task, two_places
from paramixer.tasks.task import Classes, Counts, Sample, Task, Tokens

SYMBOLS = ("a", "b", "c", "d", "X", "Y")
CLASSES = 4

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

    Arguments and errors are those of `paper_task`.

    Returns:
        x (N,) int64 in 0 .. 5; y () int64 in 0 .. 3.
    """
    return paper_task(
        "temporal_order",
        _sample,
        Tokens(len(SYMBOLS), symbols=SYMBOLS),
        Classes(CLASSES),
        _FLOORS,
        length,
        counts,
        seed,
        fresh,
    )


def _sample(length: int, draw: Draw) -> Sample:
    words = draw(length + 4)
    signs = integers(words[2:4], 2)
    x = integers(words[4:], _FIRST_SIGN)
    x[two_places(words[:2], length)] = _FIRST_SIGN + signs
    return Sample(torch.from_numpy(x), torch.tensor(int(2 * signs[0] + signs[1])))
