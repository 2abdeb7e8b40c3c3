"""The picture of a factorization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw(path: Path, matrix: np.ndarray, approximations: Mapping[str, np.ndarray]) -> None:
    """Original, the first approximation and its residual; singular values of all."""
    name, approximation = next(iter(approximations.items()))
    residual = matrix - approximation
    figure = Figure(figsize=(16, 4), layout="constrained")
    axes = figure.subplots(1, 4)
    low, high = matrix.min(), matrix.max()
    bound = np.abs(residual).max() or 1.0
    for axis, image, title, limits, colours in (
        (axes[0], matrix, "original", (low, high), "viridis"),
        (axes[1], approximation, name, (low, high), "viridis"),
        (axes[2], residual, "residual", (-bound, bound), "RdBu_r"),
    ):
        shown = axis.imshow(image, vmin=limits[0], vmax=limits[1], cmap=colours)
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(shown, ax=axis, shrink=0.8)
    floor = np.linalg.norm(matrix, 2) * 1e-8  # what is below is rounding
    for label, shown in {"original": matrix, **approximations}.items():
        values = np.linalg.svd(shown, compute_uv=False)
        axes[3].semilogy(np.where(values > floor, values, np.nan), label=label)
    axes[3].set(title="singular values", xlabel="index")
    axes[3].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
