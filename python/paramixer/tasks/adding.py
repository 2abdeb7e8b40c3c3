"""The adding problem: find the two marked values of a long sequence and add them.

As published with PSF-Attn (Khalitov et al., 2022) and Paramixer (Yu et al., CVPR 2022): values x
uniform in (-1, 1], marks 1 at two distinct places p, q drawn uniformly and 0 elsewhere, target
0.5 + (x_p + x_q) / 4 in [0, 1], squared error; a prediction off by less than 0.04 is correct.
A flatten or sum head solves it without any mixing, so success does not prove long-range mixing:
`temporal_order` does.
"""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
import torch

from paramixer.tasks.synthetic import PAPER_COUNTS, Draw, paper_task, two_places
from paramixer.tasks.task import Counts, Reals, Regression, Sample, Task

TOLERANCE = 0.04

_FLOORS = {
    "constant 0.5": 15.36,  # P(|x_p + x_q| < 4 * 0.04): 0.16 - 0.16^2 / 4, for triangular sums
    "sum of marked values, no mixing": 100.0,
}


def adding(
    length: SupportsIndex = 128,
    counts: Counts = PAPER_COUNTS,
    *,
    seed: SupportsIndex = 0,
    fresh: bool = False,
) -> Task:
    """The task at one length; nothing is stored.

    Arguments and errors are those of `paper_task`.

    Returns:
        x (N, 2) float32, the values and the marks; y () float32.
    """
    return paper_task(
        "adding",
        _sample,
        Reals(2),
        Regression(TOLERANCE),
        _FLOORS,
        length,
        counts,
        seed,
        fresh,
    )


def _sample(length: int, draw: Draw) -> Sample:
    words = draw(length + 2)
    places = two_places(words[:2], length)
    x = np.zeros((length, 2), dtype=np.float32)
    x[:, 0] = 1 - 2.0**-23 * (words[2:] >> np.uint64(40))
    x[places, 1] = 1
    return Sample(torch.from_numpy(x), torch.tensor(0.5 + float(x[places, 0].sum()) / 4))
