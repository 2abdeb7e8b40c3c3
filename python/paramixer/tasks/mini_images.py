"""Small pictures read pixel by pixel: handwritten digits, clothes, surfaces.

`mini_mnist`, which has a stored split, is in `sequential_mnist`.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramixer._checks import check_choice
from paramixer._extras import needs_extra
from paramixer.tasks.draws import permutation
from paramixer.tasks.mini import (
    FOLDER,
    TEST,
    TRAIN,
    VALIDATION,
    Samples,
    keep_aside,
    mini_task,
)
from paramixer.tasks.packages import of_debian, of_extra
from paramixer.tasks.stored import Reading
from paramixer.tasks.task import Reals, Task

VARIANTS = {
    "196": "2 x 2 pixels averaged",
    "784": "28 x 28 pixels, row by row",
    "784-permuted": "the pixels of all pictures in one random order, so that neighbours are far",
}
GREY = torch.arange(256) / 255

_DIGITS = of_extra("scikit-learn", "sklearn")
_DIGITS_FILE = "sklearn/datasets/data/digits.csv.gz"
_DIGITS_PARTS = (1200, 200, 397)
_FASHION = of_debian("dataset-fashion-mnist")
_FASHION_FILES = [
    f"usr/share/datasets/fashion-mnist/{part}-{content}-ubyte.gz"
    for part in ("train", "t10k")
    for content in ("images-idx3", "labels-idx1")
]
_FASHION_VALIDATION = 0.1
_TEXTURES = of_extra("scikit-image", "skimage")
_SURFACES = ("brick", "grass", "gravel")
_BANDS = {TRAIN: (0, 320), VALIDATION: (320, 384), TEST: (384, 512)}  # rows of a photograph
_PATCH, _STEP = 32, 16


def mini_digits(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Which of ten digits did somebody write, in 8 x 8 pixels? In file order, in scikit-learn.

    The data are UCI optdigits. The order of the file keeps writers together: those of the test part
    are mostly not those of training, which is harder than a random split.

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (64, 1) float32 in [0, 1], y () int64 in 0 .. 9; 1,200 / 200 / 397.
    """
    reading = Reading(torch.arange(17) / 16, limit=64)
    files = [_DIGITS_FILE]
    return mini_task(
        "mini-digits", "mini", folder, _DIGITS, files, _digits, reading, Reals(1), 10, **options
    )


def mini_fashion(folder: str | Path = FOLDER, variant: str = "196", **options: Any) -> Task:
    """Which of ten kinds of clothes is it? Fashion-MNIST, in Debian's dataset-fashion-mnist.

    The data are those of Xiao et al. (2017). The official test part; validation is a tenth of each
    class of the training part.

    Args:
        folder: see `paramixer.tasks.mini`.
        variant: one of `VARIANTS`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (196, 1) or (784, 1) float32 in [0, 1], y () int64 in 0 .. 9; 54,000 / 6,000 / 10,000
        but for twins.
    """
    check_choice("mini_fashion", "variant", variant, VARIANTS)

    def read(contents: Mapping[str, bytes]) -> Samples:
        arrays = [_idx(contents[name]) for name in _FASHION_FILES]
        labels = np.concatenate(arrays[1::2])
        parts = np.repeat([TRAIN, TEST], list(map(len, arrays[1::2])))
        parts = keep_aside(parts, labels, _FASHION_VALIDATION)
        return picture_samples(np.concatenate(arrays[0::2]), labels, parts, variant)

    return mini_task(
        "mini-fashion",
        variant,
        folder,
        _FASHION,
        _FASHION_FILES,
        read,
        Reading(GREY, pixels_of(variant)),
        Reals(1),
        10,
        **options,
    )


def mini_textures(folder: str | Path = FOLDER, **options: Any) -> Task:
    """Brick, grass or gravel? Pieces of 32 x 32 pixels of the photographs in scikit-image.

    Pieces overlap by half with those of the same part alone: the parts are bands of each
    photograph without a common pixel. There is one photograph of each class.

    Args:
        folder: see `paramixer.tasks.mini`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (1024, 1) float32 in [0, 1], y () int64 in 0 .. 2; 1,767 / 279 / 651.
    """
    return mini_task(
        "mini-textures",
        "mini",
        folder,
        _TEXTURES,
        [f"skimage/data/{surface}.png" for surface in _SURFACES],
        _patches,
        Reading(GREY, limit=_PATCH * _PATCH),
        Reals(1),
        len(_SURFACES),
        **options,
    )


def pixels_of(variant: str) -> int:
    """How many pixels the pictures of a variant have."""
    return int(variant.partition("-")[0])


def picture_samples(
    pictures: NDArray[np.uint8], labels: NDArray, parts: NDArray, variant: str
) -> Samples:
    """Pictures (n, 28, 28) as the sequences of a variant."""
    if variant == "196":
        quarters = pictures.reshape(-1, 14, 2, 14, 2).astype(np.uint16).sum(axis=(2, 4))
        pictures = ((quarters + 2) // 4).astype(np.uint8)
    rows = pictures.reshape(len(pictures), -1)
    if variant == "784-permuted":
        rows = rows[:, permutation(rows.shape[1], seed=0)]
    return Samples([(row,) for row in rows], labels, parts)


def _digits(contents: Mapping[str, bytes]) -> Samples:
    text = gzip.decompress(contents[_DIGITS_FILE]).decode()
    table = np.loadtxt(text.splitlines(), delimiter=",").astype(np.uint8)
    parts = np.repeat([TRAIN, VALIDATION, TEST], _DIGITS_PARTS)
    return Samples([(row,) for row in table[:, :-1]], table[:, -1], parts)


def _idx(data: bytes) -> NDArray[np.uint8]:
    """An array of the IDX format: two zeros, the type, the number of axes, and their sizes."""
    data = gzip.decompress(data)
    axes = data[3]
    shape = np.frombuffer(data, ">i4", axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _patches(contents: Mapping[str, bytes]) -> Samples:
    with needs_extra("mini_textures", "train"):
        from PIL import Image
    sequences, labels, parts = [], [], []
    for label, data in enumerate(contents.values()):
        photograph = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        windows = np.lib.stride_tricks.sliding_window_view(photograph, (_PATCH, _PATCH))
        for part, (top, bottom) in _BANDS.items():
            band = windows[top : bottom - _PATCH + 1 : _STEP, ::_STEP].reshape(-1, _PATCH**2)
            sequences += [(patch,) for patch in band]
            labels += [label] * len(band)
            parts += [part] * len(band)
    return Samples(sequences, np.array(labels), np.array(parts))
