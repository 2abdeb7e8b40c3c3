"""Data of any shape from which nothing can be learned: to measure time and memory of a model."""

from __future__ import annotations

from functools import partial

import torch

from paramixer.tasks.synthetic import Draw, generated_parts, integers
from paramixer.tasks.task import Classes, Counts, Sample, Task, Tokens

COUNTS = Counts(1_000, 100, 100)


def noise(
    vocabulary: int, length: int, classes: int, counts: Counts = COUNTS, seed: int = 0
) -> Task:
    """Random tokens with random classes.

    For the published configurations whose data no loader of this library reads.

    Args:
        vocabulary: number of tokens.
        length: N of all sequences.
        classes: number of classes.
        counts: samples of each part.
        seed: of all samples.
    """
    make = partial(_sample, vocabulary, length, classes)
    return Task(
        name="noise",
        variant="random",
        input=Tokens(vocabulary),
        output=Classes(classes),
        length=length,
        floors={"any class": 100 / classes},
        parts=generated_parts("noise", lambda _: make, length, counts, seed, fresh=False),
    )


def _sample(vocabulary: int, length: int, classes: int, draw: Draw) -> Sample:
    words = draw(length + 1)
    y = integers(words[:1], classes)[0]
    return Sample(torch.from_numpy(integers(words[1:], vocabulary)), torch.tensor(y))
