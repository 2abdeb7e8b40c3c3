"""Short texts that people wrote, read as bytes: film reviews, four kinds of sources, food reviews.

Film reviews and sources are the texts that came with the sentiment lexicon VADER (Hutto and
Gilbert, 2014), in the source distribution of vaderSentiment 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paramixer.tasks.mini import FOLDER, TEST, TRAIN, Samples, deal, keep_aside, mini_task
from paramixer.tasks.packages import of_archive, of_debian, read_tar
from paramixer.tasks.rdata import read_object
from paramixer.tasks.stored import BYTES, byte_reading, byte_tokens
from paramixer.tasks.task import Task

SOURCES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")

_LENGTH = 256
_VADER = of_archive(
    "vaderSentiment", "0.5", "vaderSentiment", "vaderSentiment-0.5.zip", "--no-binary :all: "
)
_VADER_FILE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_VADER_TABLE = "hutto_ICWSM_2014/{}_GroundTruth.txt"
_FOODS = of_debian("r-cran-modeldata")
_FOODS_FILES = [f"usr/lib/R/site-library/modeldata/data/Rdata.{end}" for end in ("rdx", "rdb")]
_FOODS_TABLES = {"training_data": TRAIN, "testing_data": TEST}
_FOODS_LENGTH = 512
_GREAT = 1  # the first level of the score


def mini_movies(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Is a sentence of a film review praise, in the mean rating of twenty readers?

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (n,) int64, n <= 256, bytes + 1; y () int64, 1 for a rating above 0; 70 / 10 / 20 % of
        10,605.
    """

    def read(contents: Mapping[str, bytes]) -> Samples:
        rows = list(_vader_rows(contents, SOURCES[0]))
        labels = np.array([rating > 0 for _, rating, _ in rows]).astype(np.int64)
        texts = [(byte_tokens(text[:_LENGTH]),) for _, _, text in rows]
        return Samples(texts, labels, deal(labels, 0.1, 0.2))

    return mini_task(
        "mini-movies",
        "mini",
        folder,
        _VADER,
        [_VADER_FILE],
        read,
        byte_reading(_LENGTH),
        BYTES,
        2,
        **options,
    )


def mini_sources(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Is a sentence from a film review, a review of goods, an editorial or a tweet?

    Sentences of one review of goods, or of one editorial, are in the same part.

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (n,) int64, n <= 256, bytes + 1; y () int64, the number in `SOURCES`; 80 / 10 / 10 % of
        23,702.
    """

    def read(contents: Mapping[str, bytes]) -> Samples:
        texts, labels, documents = [], [], []
        for label, source in enumerate(SOURCES):
            for identifier, _, text in _vader_rows(contents, source):
                texts.append((byte_tokens(text[:_LENGTH]),))
                labels.append(label)
                documents.append(f"{source} {identifier.partition('_')[0]}")
        parts = deal(np.array(labels), 0.1, 0.1, groups=np.array(documents))
        return Samples(texts, np.array(labels), parts)

    return mini_task(
        "mini-sources",
        "mini",
        folder,
        _VADER,
        [_VADER_FILE],
        read,
        byte_reading(_LENGTH),
        BYTES,
        len(SOURCES),
        **options,
    )


def mini_foods(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Did a review of food give five stars ("great")? Debian's r-cran-modeldata.

    Every review is of another product. The official test part; validation is a tenth of each class
    of the training part.

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (n,) int64, n <= 512, bytes + 1; y () int64, 1 for great; 3,600 / 400 / 1,000 but for
        twins.
    """

    def read(contents: Mapping[str, bytes]) -> Samples:
        tables = [read_object(name, *contents.values()) for name in _FOODS_TABLES]
        parts = np.repeat(list(_FOODS_TABLES.values()), [len(table["score"]) for table in tables])
        labels = np.array([score == _GREAT for table in tables for score in table["score"]])
        labels = labels.astype(np.int64)
        reviews = [review[:_FOODS_LENGTH] for table in tables for review in table["review"]]
        texts = [(byte_tokens(review),) for review in reviews]
        return Samples(texts, labels, keep_aside(parts, labels, 0.1))

    return mini_task(
        "mini-foods",
        "mini",
        folder,
        _FOODS,
        _FOODS_FILES,
        read,
        byte_reading(_FOODS_LENGTH),
        BYTES,
        2,
        **options,
    )


def _vader_rows(contents: Mapping[str, bytes], source: str) -> Iterator[tuple[str, float, bytes]]:
    """Identifier, mean rating and text of every sentence."""
    name = _VADER_TABLE.format(source)
    for line in read_tar(contents[_VADER_FILE], [name])[name].splitlines():
        identifier, rating, text = line.split(b"\t", maxsplit=2)
        yield identifier.decode(), float(rating), text.strip()
