"""Floors: the accuracies that methods without understanding of a sequence reach.

Those of the small tasks were measured on exactly their parts by

    python scripts/make_data.py floors mini-digits

and are kept in `floors.json`, in percent, by task and variant. None of them depends on the order of
the pixels of a picture, so "784-permuted" has the floors of "784".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paramixer._extras import needs_extra
from paramixer.tasks.files import replacing
from paramixer.tasks.task import Part, Reals, Task

FILE = Path(__file__).with_name("floors.json")

_BINS = 32
_GRAMS = (1, 3)  # from single tokens to three neighbours
_MOST_GRAMS = 50_000

Inputs = Sequence[Any]
"""The inputs of a part's samples, `Sample.x`."""


class Floor(NamedTuple):
    """A method: how it sees the samples, and what learns from that (with scikit-learn's `fit`)."""

    view: Callable[[Inputs], Any]
    model: Any


def stored_floors(task: str, variant: str) -> dict[str, float]:
    """Test accuracies in percent that were measured; empty if they were not."""
    variants = _stored().get(task, {})
    return variants.get(_key(variant), {}).get("accuracy", {})


def store_floors(task: Task, command: str) -> dict[str, float]:
    """Measures the floors of a task, notes them in `floors.json` beside the command, returns them.

    Raises:
        ImportError: scikit-learn is missing.
    """
    accuracy = measure_floors(task)
    content = json.loads(FILE.read_text())
    variants = content.get(task.name, {}) | {
        _key(task.variant): {"command": command, "accuracy": accuracy}
    }
    content = dict(sorted((content | {task.name: variants}).items()))
    with replacing(FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    _stored.cache_clear()
    return accuracy


def measure_floors(task: Task) -> dict[str, float]:
    """Test accuracy in percent of each method, fitted on the training part.

    Raises:
        ImportError: scikit-learn is missing.
    """
    with needs_extra("measure_floors", "train"):
        methods = _methods(task)
    (train_x, train_y), (test_x, test_y) = map(_samples, (task.train, task.test))
    accuracy = {}
    for name, (view, model) in methods.items():
        model.fit(view(train_x), train_y)
        accuracy[name] = round(100 * float(model.score(view(test_x), test_y)), 2)
    return accuracy


def _methods(task: Task) -> dict[str, Floor]:
    from sklearn.dummy import DummyClassifier

    majority = {
        "majority class": Floor(lambda inputs: np.zeros((len(inputs), 1)), DummyClassifier())
    }
    if task.sequences > 1:
        return majority | _pair_methods()
    if not isinstance(task.input, Reals):
        return majority | _token_methods()
    if len({*task.train.lengths.tolist()}) > 1:
        return majority | _series_methods(task)
    return majority | _picture_methods()


def _picture_methods() -> dict[str, Floor]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = LogisticRegression(C=0.1, max_iter=200)  # 54,000 pictures take minutes
    histogram = make_pipeline(StandardScaler(), logistic)
    return {
        "grey histogram (order-free)": Floor(lambda x: _histograms(x, 0, 1), histogram),
        "logistic regression": Floor(np.stack, logistic),
        "nearest neighbour": Floor(np.stack, KNeighborsClassifier(n_neighbors=1)),
    }


def _series_methods(task: Task) -> dict[str, Floor]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier

    def padded(inputs: Inputs) -> NDArray:
        return np.stack([np.pad(x, (0, task.length - len(x))) for x in inputs])

    def length(inputs: Inputs) -> NDArray:
        return np.array([[len(x)] for x in inputs])

    def forest() -> Any:
        return RandomForestClassifier(300, random_state=0)

    return {
        "length alone": Floor(length, forest()),
        "value histogram (order-free)": Floor(lambda x: _histograms(x, -2, 2), forest()),
        "nearest neighbour": Floor(padded, KNeighborsClassifier(n_neighbors=1)),
    }


def _token_methods() -> dict[str, Floor]:
    return {
        "bag of tokens (order-free)": Floor(_text, _grams((1, 1))),
        "1 to 3 neighbouring tokens": Floor(_text, _grams(_GRAMS)),
    }


def _pair_methods() -> dict[str, Floor]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    class Differences:
        """Of the two vectors of counts of every pair."""

        def __init__(self, grams: tuple[int, int]):
            self._vectors = _vectors(grams)

        def fit(self, pairs: Inputs, _: Any = None) -> Any:
            self._vectors.fit([text for pair in pairs for text in _text(pair)])
            return self

        def transform(self, pairs: Inputs) -> Any:
            first, second = (
                self._vectors.transform(_text([pair[side] for pair in pairs])) for side in (0, 1)
            )
            return abs(first - second)

    return {
        name: Floor(
            lambda pairs: pairs,
            make_pipeline(Differences(grams), LogisticRegression(C=10, max_iter=1000)),
        )
        for name, grams in (
            ("bags of tokens (order-free)", (1, 1)),
            ("1 to 3 neighbouring tokens", _GRAMS),
        )
    }


def _grams(grams: tuple[int, int]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(_vectors(grams), LogisticRegression(C=10, max_iter=1000))


def _vectors(grams: tuple[int, int]) -> Any:
    """Counts of neighbouring tokens, damped and weighed by how rare they are."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer="char",
        lowercase=False,
        ngram_range=grams,
        max_features=_MOST_GRAMS,
        sublinear_tf=True,
    )


def _text(inputs: Inputs) -> list[str]:
    """Every sequence of tokens as a string, which is what scikit-learn counts neighbours in."""
    return ["".join(map(chr, (tokens + ord("0")).tolist())) for tokens in inputs]


def _histograms(inputs: Inputs, least: float, most: float) -> NDArray:
    """(n, bins) how often each value occurs."""
    return np.stack([np.histogram(x, bins=_BINS, range=(least, most))[0] for x in inputs])


def _samples(part: Part) -> tuple[Inputs, NDArray[np.int64]]:
    samples = [part[index] for index in range(len(part))]
    return [_numbers(x) for x, _ in samples], np.array([int(y) for _, y in samples])


def _numbers(x: Tensor | tuple[Tensor, ...]) -> Any:
    return tuple(map(_numbers, x)) if isinstance(x, tuple) else x.flatten().numpy()


def _key(variant: str) -> str:
    return variant.removesuffix("-permuted")


@cache
def _stored() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(FILE.read_text())
