"""Draws a contact sheet of Pathfinder pictures: every size and difficulty, both labels.

python scripts/draw_pathfinder.py docs/pathfinder.png
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from paramixer.tasks import pathfinder

SEED = 0
CANDIDATES = 32  # among which both labels occur


def pair(size: int, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
    """The first picture of each label, (size, size)."""
    options = pathfinder.options(size, difficulty)
    pictures, labels, _ = pathfinder.generate(CANDIDATES, options, seed=SEED)
    return pictures[np.argmin(labels)], pictures[np.argmax(labels)]


def main() -> None:
    """A row a size; label 0 and label 1 of every difficulty."""
    columns = 2 * len(pathfinder.FOLDERS)
    figure, axes = plt.subplots(
        len(pathfinder.SIZES),
        columns,
        figsize=(2 * columns, 2.1 * len(pathfinder.SIZES)),
        layout="constrained",
    )
    for row, size in zip(axes, pathfinder.SIZES, strict=True):
        pictures = [picture for level in pathfinder.FOLDERS for picture in pair(size, level)]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{size} pixels")
    titles = [f"{level}, label {label}" for level in pathfinder.FOLDERS for label in (0, 1)]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    figure.savefig(sys.argv[1], dpi=80)


if __name__ == "__main__":
    main()
